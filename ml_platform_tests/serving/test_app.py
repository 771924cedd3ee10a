"""Tests of the public port's application in this process: errors that nothing handles, and their counts."""

import asyncio
from typing import Any

import pytest

from ml_platform.serving.counters import Counts
from ml_platform.serving.http.app import PublicApp
from ml_platform.serving.worker.request_handler import Reply, RequestHandler

# Litestar is about to change how path parameters are declared.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated inferred style:DeprecationWarning")
TEXT = "a customer's value"


class FailingHandler(RequestHandler):
    """A handler with a fault."""

    async def answer(self, *_: Any, **__: Any) -> Reply:
        raise RuntimeError(TEXT)


async def fail_to_collect() -> bytes:
    raise RuntimeError(TEXT)


async def call(app: PublicApp, method: str, path: str) -> list[Any]:
    """Return the messages that the application sends."""
    sent = list[Any]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": [], "root_path": "", "scheme": "http", "http_version": "1.1"}, receive, send)
    return sent


def test_unhandled_errors_are_counted_by_route() -> None:
    handler = FailingHandler(Counts(), None)
    app = PublicApp(handler, "visits", fail_to_collect)

    for path in ("/invocations", "/v2/models/visits/infer"):
        with pytest.raises(RuntimeError):  # uvicorn answers with 500
            asyncio.run(call(app, "POST", path))
    start, body = asyncio.run(call(app, "GET", "/metrics"))
    assert (start["status"], TEXT.encode() in body["body"]) == (500, False)
    assert handler.counts.routes == {"/invocations 500": 1, "/v2/models/{name}/infer 500": 1, "/metrics 500": 1}


@pytest.mark.parametrize("number", range(3))
def test_unknown_paths_share_one_count(number: int) -> None:
    handler = RequestHandler(Counts(), None)
    app = PublicApp(handler, "visits", fail_to_collect)

    for place in range(20):
        asyncio.run(call(app, ("GET", "POST", "DELETE")[number], f"/unknown/{place}/\xff"))
    assert handler.counts.routes == {"none 404": 20}
