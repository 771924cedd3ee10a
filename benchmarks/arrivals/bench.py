"""Time and memory of one tick of the arrival sensor, with many files waiting in a folder or in a bucket.

    python benchmarks/arrivals/bench.py [FILES] [folder|manifests|bucket|bucket-manifests]

The bucket is a server in another process on loopback that hands out prepared pages, so that what is measured is ours.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dagster as dg

from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform.platform import Platform
from ml_platform_tests.support import fakes, s3_server

PAGE = 1_000
MANIFEST = json.dumps({"size": 0, "sha256": "0" * 64}).encode()


def pages(files: int, manifests: bool) -> list[bytes]:
    """Return the pages of a bucket's listing as S3 sends them."""
    keys = [f"zone/visits/{n:07}.csv" for n in range(files)]
    keys = [key for name in keys for key in ([name, f"{name}.manifest.json"] if manifests else [name])]
    made = []
    for start in range(0, len(keys), PAGE):
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            '<ETag>"d41d8cd98f00b204e9800998ecf8427e"</ETag><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>'
            for key in keys[start : start + PAGE]
        )
        more = start + PAGE < len(keys)
        token = f"<NextContinuationToken>{start // PAGE + 1}</NextContinuationToken>" if more else ""
        head = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        made.append(f"<ListBucketResult>{head}{entries}</ListBucketResult>".encode())
    return made


def serve(files: int, manifests: bool, tell: Connection) -> None:
    """Be the bucket, in a process of its own; tell the port."""
    prepared = pages(files, manifests)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            body = prepared[int(query.get("continuation-token", ["0"])[0])] if "list-type" in query else MANIFEST
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tell.send(server.server_port)
    server.serve_forever()


def fill(folder: Path, files: int, manifests: bool) -> None:
    for number in range(files):
        os.close(os.open(folder / f"{number:07}.csv", os.O_CREAT | os.O_WRONLY))
        if manifests:
            (folder / f"{number:07}.csv.manifest.json").write_bytes(MANIFEST)


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[Any, str | None]:
    resources = dg.Definitions(resources={"platform": PlatformResource()}, executor=dg.in_process_executor)
    made = dg.Definitions.merge(model_definitions(fakes.visits_spec()), resources).get_repository_def()
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    before, cpu = time.perf_counter(), time.process_time()
    found = made.get_sensor_def("visits_arrivals")(context)
    asked = len(found.dynamic_partitions_requests[0].partition_keys) if isinstance(found, dg.SensorResult) else 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    print(f"tick: {seconds:5.2f} s, {cpu:5.2f} CPU s, asks for {asked} files, peak memory {peak:.0f} MB")
    return found, context.cursor


def main() -> None:
    """Measure ticks with a number of files waiting in one kind of landing zone."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    kind = sys.argv[2] if len(sys.argv) > 2 else "folder"
    manifests, in_bucket = "manifests" in kind, kind.startswith("bucket")
    with tempfile.TemporaryDirectory() as home:
        os.environ["ML_PLATFORM_HOME"] = home
        platform, server = fakes.platform_in(Path(home)), None
        if in_bucket:
            here, there = multiprocessing.Pipe()
            server = multiprocessing.get_context("spawn").Process(target=serve, args=(files, manifests, there))
            server.start()
            os.environ |= s3_server.environment(f"http://127.0.0.1:{here.recv()}")
            os.environ["ML_PLATFORM_LANDING_ZONE"] = "s3://landing/zone"
        else:
            fill(fakes.landing(platform) / "visits", files, manifests)
        print(f"{files:,} files, {kind}")
        Platform().database.close()
        cursor = None
        with dg.DagsterInstance.local_temp(home) as instance:
            for _ in range(3):
                _, cursor = tick(instance, cursor)
        if server is not None:
            server.terminate()


if __name__ == "__main__":
    main()
