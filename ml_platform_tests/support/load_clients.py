"""Clients that send the next request after each answer, each on one connection: see `prediction_server.Load`.

Usage: ``python -m ml_platform_tests.support.load_clients ADDRESS FILE CLIENTS``: writes a line for each answer into
the file after a line on standard input, and one word to standard output after the first answer.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RECORD = {"pages": 40, "seconds": 3.0, "plan": "paid"}


async def client(address: str, number: int, results: list[dict[str, Any]], stop: asyncio.Event) -> None:
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    asked = 0
    while not stop.is_set():
        asked += 1
        name = f"client-{number}-{asked}"
        body = json.dumps({"dataframe_records": [{"visitor": number * 1_000 + asked % 97 + 1, **RECORD}]}).encode()
        head = f"POST /invocations HTTP/1.1\r\nhost: x\r\nml-platform-request-id: {name}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            results.append({"id": name, **await answered(reader)})
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            results.append({"id": name, "status": 0, "why": repr(error)})
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.close()


async def answered(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    said = {"status": int(head[0].split()[1]), "score": json.loads(body).get("scores")}
    return {**said, "version": headers.get("ml-platform-version"), "digest": headers.get("ml-platform-digest")}


async def main(address: str, file: str, clients: str) -> None:
    results, stop = list[dict[str, Any]](), asyncio.Event()
    asking = [asyncio.create_task(client(address, number, results, stop)) for number in range(int(clients))]
    while not results:
        await asyncio.sleep(0.01)
    sys.stdout.write("answered\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    stop.set()
    await asyncio.gather(*asking)
    Path(file).write_text("".join(f"{json.dumps(result)}\n" for result in results))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
