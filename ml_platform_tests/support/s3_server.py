"""S3 on loopback: SeaweedFS, a real one, and a small server with faults."""

import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

KEY, SECRET, BUCKET = "testkey", "testsecret", "landing"
WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
PORTS = ("master", "volume", "filer", "s3")


def environment(endpoint: str, secret: str = SECRET) -> dict[str, str]:
    """Return the environment variables for a server on loopback."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
    }


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run SeaweedFS in a folder and yield its endpoint; there is one bucket, `BUCKET`, and one key, `KEY`."""
    account = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps({"identities": [account]}))
    ports = _free_ports(2 * len(PORTS))
    flags = [f"-{name}.port={port}" for name, port in zip(PORTS, ports[::2], strict=True)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(PORTS, ports[1::2], strict=True)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}/data", "-s3", f"-s3.config={folder}/s3.json"]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(WEED), "server", *flags], stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{ports[2 * PORTS.index('s3')]}"
        _wait_for_bucket(endpoint, process, folder / "log")
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:  # it can hang forever
            process.kill()
            process.wait()


def _wait_for_bucket(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    s3, deadline = client(endpoint), time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(BotoCoreError, ClientError):
            if BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
                s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="first", Body=b"1")
            return
        time.sleep(0.1)
    pytest.fail(f"SeaweedFS did not come up: {log.read_text()[-3_000:]}")


def client(endpoint: str) -> Any:
    """Return botocore's client of a server on loopback."""
    from botocore.config import Config
    from botocore.session import get_session

    config = Config(connect_timeout=1, read_timeout=10, retries={"total_max_attempts": 1})
    return get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=config,
    )


class FaultyS3:
    """The part of S3 that a landing zone uses, with faults that a test sets.

    Parameters
    ----------
    objects : dict of str to bytes
        The bucket's objects by key.
    page : int
        The number of keys on a page of a listing.
    """

    def __init__(self, objects: dict[str, bytes], page: int = 1_000) -> None:
        self.objects, self.page = objects, page
        self.faults: list[str] = []
        self.for_ever = ""
        self.spared = 0
        self.requests = 0
        self.released = threading.Event()

    def fault(self) -> str:
        """Return the fault of the current request; empty for none."""
        self.requests += 1
        if self.spared:
            self.spared -= 1
            return ""
        return self.faults.pop(0) if self.faults else self.for_ever

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve on loopback; yield the endpoint."""
        handler = type("Handler", (_Handler,), {"s3": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.released.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    s3: FaultyS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.s3.fault()
        if fault.isdigit():
            self._answer(int(fault), f"<Error><Code>Fault{fault}</Code><Message>As told.</Message></Error>".encode())
        elif fault == "slow":
            self.s3.released.wait(60)
            self.close_connection = True
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Directly, since the server would end the connection in order.
            os.close(self.connection.detach())
            self.close_connection = True
        else:
            self._serve(cut=fault == "cut")

    def _serve(self, *, cut: bool) -> None:
        address = urlsplit(self.path)
        key = unquote(address.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if not key:
            self._answer(200, self._listing(parse_qs(address.query)), cut=cut)
        elif key not in self.s3.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif self.headers.get("If-Match", _etag(self.s3.objects[key])) != _etag(self.s3.objects[key]):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._answer(200, self.s3.objects[key], cut=cut)

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        after = query.get("continuation-token", [""])[0]
        keys = sorted(key for key in self.s3.objects if key.startswith(query["prefix"][0]) and quote(key) > after)
        some = keys[: self.s3.page]
        entries = "".join(_entry(key, self.s3.objects[key]) for key in some)
        more = f"<NextContinuationToken>{quote(some[-1])}</NextContinuationToken>" if len(keys) > len(some) else ""
        truncated = "true" if more else "false"
        head = f"<EncodingType>url</EncodingType><IsTruncated>{truncated}</IsTruncated>{more}"
        return f"<ListBucketResult>{head}{entries}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _entry(key: str, data: bytes) -> str:
    fields = {"Key": quote(key), "LastModified": "2024-01-01T00:00:00.000Z", "ETag": _etag(data), "Size": len(data)}
    return "<Contents>" + "".join(f"<{name}>{value}</{name}>" for name, value in fields.items()) + "</Contents>"
