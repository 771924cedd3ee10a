"""A real server of two workers on real versions: its answers, and its treatment of invalid requests."""

import contextlib
import gzip
import http.client
import importlib
import json
import os
import re
import signal
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ml_platform_tests.support import fakes, prediction_server
from ml_platform_tests.support.prediction_server import MODEL, ONE, RECORD, Server, wait_until

MEGABYTE = 2**20
BEFORE, CHAMPION = 2, 3
EXAMPLES = 25
# In JSON Schema, any list of texts may name columns, and 1e300 is an integer: the contract rejects both.
EXCLUDED = (positive_data_acceptance,)


@pytest.fixture(scope="module")
def server(three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Server]:
    platform = prediction_server.copied(three_champions, tmp_path_factory.mktemp("server") / "home", empty_mlflow)
    with prediction_server.serving(platform.settings.home, workers=2) as started:
        started.wait_for(CHAMPION)
        yield started
    platform.database.close()


def read_digest(server: Server, version: int) -> str:
    return str(server.facts["versions"][str(version)])


def invocation(**changes: Any) -> bytes:
    return json.dumps({"dataframe_records": [{**RECORD, **changes}]}).encode()


# Answers


def test_answer_names_model_version_digest_and_request(server: Server) -> None:
    answer = server.ask(headers={"ml-platform-request-id": "mine-1"})
    assert answer.status == 200
    assert set(answer.json) == {"predictions", "scores"}
    headers = {name: value for name, value in answer.headers.items() if name.startswith("ml-platform-")}
    assert headers == {
        "ml-platform-model": MODEL,
        "ml-platform-version": str(CHAMPION),
        "ml-platform-digest": read_digest(server, CHAMPION),
        "ml-platform-request-id": "mine-1",
    }


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["pages", "seconds", "plan"], "data": [[40, 3.0, "paid"]]}},
        {"dataframe_records": [RECORD]},
        {"inputs": [RECORD]},
        {"inputs": {"pages": [40], "seconds": [3.0], "plan": ["paid"]}},
    ],
)
def test_mlflow_formats_give_the_same_answer(server: Server, body: dict[str, Any]) -> None:
    answer = server.ask(body=json.dumps(body).encode())
    assert (answer.status, answer.json) == (200, server.ask().json)


def test_litestar_route_and_fast_path_answer_equally(server: Server) -> None:
    """A path with a trailing slash is answered by Litestar's route, without it by the fast path."""
    assert server.ask("/invocations/").json == server.ask().json
    assert server.ask("/invocations/").version == CHAMPION


TENSORS = [
    {"name": "pages", "datatype": "INT64", "shape": [1], "data": [40]},
    {"name": "seconds", "datatype": "FP64", "shape": [1], "data": [3.0]},
    {"name": "plan", "datatype": "BYTES", "shape": [1], "data": ["paid"]},
]


def test_open_inference_protocol_gives_the_same_answer(server: Server) -> None:
    body = json.dumps({"id": "a", "inputs": TENSORS}).encode()
    answers = [server.ask(f"/v2/models/{MODEL}/{version}infer", body) for version in ("", f"versions/{CHAMPION}/")]
    expected = server.ask().json
    for answer in answers:
        assert answer.status == 200
        assert (answer.json["model_name"], answer.json["model_version"], answer.json["id"]) == (
            MODEL,
            str(CHAMPION),
            "a",
        )
        values = {tensor["name"]: tensor["data"] for tensor in answer.json["outputs"]}
        assert values == expected


def test_previous_version_answers_by_its_number(server: Server) -> None:
    body = json.dumps({"inputs": TENSORS}).encode()
    answer = server.ask(f"/v2/models/{MODEL}/versions/{BEFORE}/infer", body)
    assert (answer.status, answer.version, answer.json["model_version"]) == (200, BEFORE, str(BEFORE))
    assert server.ask(f"/v2/models/{MODEL}/versions/9/infer", body).status == 404


def test_health_readiness_and_metadata(server: Server) -> None:
    for path in ("/ping", "/health", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        assert server.ask(path, None).status == 200
    assert server.ask("/v2/health/ready", None).json == {"ready": True, "stale": False}
    metadata = server.ask(f"/v2/models/{MODEL}", None).json
    assert (metadata["name"], metadata["versions"]) == (MODEL, [str(BEFORE), str(CHAMPION)])
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["pages", "seconds", "plan"]
    assert server.ask("/v2/models/other", None).status == 404
    assert server.ask("/v2", None).json["name"] == "ml-platform"
    assert server.ask("/version", None).body


@pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow's own type hints, when it is imported
def test_mlflow_client_calls_the_server(server: Server) -> None:
    client_module = importlib.import_module("mlflow.pyfunc.scoring_server.client")
    client: Any = client_module.ScoringServerClient("127.0.0.1", urlsplit(server.address).port)
    client.ping()
    rows = fakes.visits(5).drop(columns=["bought", "seen_at", "visitor"])
    predictions = client.invoke(rows).get_predictions()
    assert predictions.shape == (5, 1)
    assert set(predictions[0]) <= {0, 1}


def test_openapi_page_describes_routes_and_records(server: Server) -> None:
    document = server.ask("/openapi.json", None).json
    assert {"/invocations", "/v2/models/{name}/infer", "/ping", "/metrics", "/v2/health/ready"} <= set(
        document["paths"]
    )
    record = document["components"]["schemas"]["Record"]
    assert record["properties"]["plan"]["enum"] == ["free", "paid"]
    assert record["properties"]["pages"]["minimum"] == 0
    page = server.ask("/docs", None)
    assert (page.status, b"/invocations" in page.body, b"<script" in page.body) == (200, True, False)


def test_metrics_cover_all_workers(server: Server) -> None:
    def answered() -> float:
        lines = server.ask("/metrics", None).body.decode().splitlines()
        wanted = (
            f'ml_platform_serving_requests_total{{model="{MODEL}",role="champion",status="200",version="{CHAMPION}"}}'
        )
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted)), 0.0)

    before = answered()
    for _ in range(20):  # on separate connections, so that both workers take some
        assert server.ask().status == 200
    assert answered() == before + 20


def read_routes(server: Server) -> dict[tuple[str, str], float]:
    """Return the number of responses by route and status."""
    line = re.compile(r'ml_platform_serving_http_responses_total{model="visits",route="(.*)",status="(.*)"} (.*)')
    found = map(line.fullmatch, server.ask("/metrics", None).body.decode().splitlines())
    return {(match[1], match[2]): float(match[3]) for match in found if match}


def test_refused_requests_are_counted_by_route(server: Server) -> None:
    before = read_routes(server)
    requests = {
        ("none", "404"): ("/a-secret-path", None, "GET"),
        ("/invocations", "405"): ("/invocations", None, "GET"),
        ("/v2/models/{name}/infer", "405"): (f"/v2/models/{MODEL}/infer/", None, "DELETE"),
        ("/v2/models/{name}/infer", "404"): ("/v2/models/a-secret-name/infer", ONE, "POST"),
        ("/v2/models/{name}/infer", "400"): (f"/v2/models/{MODEL}/infer", b"{", "POST"),
        ("/v2/models/{name}", "200"): (f"/v2/models/{MODEL}", None, "HEAD"),
    }
    for (_, status), (path, body, method) in requests.items():
        assert server.ask(path, body, method=method).status == int(status)
    after = read_routes(server)
    assert {key: after[key] - before.get(key, 0) for key in requests} == dict.fromkeys(requests, 1)
    assert b"a-secret" not in server.ask("/metrics", None).body


@pytest.mark.parametrize("path", ["/", "/ping", "/version", "/metrics", "/v2", f"/v2/models/{MODEL}", "/openapi.json"])
def test_head_is_get_without_body(server: Server, path: str) -> None:
    head, get = (server.ask(path, None, method=method) for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers.keys() == get.headers.keys()
    assert server.ask("/invocations", None, method="HEAD").status == 405
    for path, status in (("/state", 200), ("/nowhere", 404)):
        headers = {"authorization": f"Bearer {server.token}"}
        assert prediction_server.ask(server.admin, path, None, headers, method="HEAD").status == status


# Generated requests, valid and invalid


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests_cause_no_server_error(server: Server, mode: GenerationMode) -> None:
    """Schemathesis generates requests from the page: no status is 5xx; status, form and type are named by the page.

    Schemathesis' own pytest integration needs an attribute that pytest no longer has, so hypothesis is called here.
    """
    api = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    statuses = Counter[int]()
    for result in api.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            statuses[case.call_and_validate(timeout=20, excluded_checks=[*EXCLUDED]).status_code] += 1

        with contextlib.suppress(Unsatisfiable):  # a route without parameters
            ask()
    assert statuses
    assert max(statuses) < 500
    assert mode is GenerationMode.NEGATIVE or statuses[200] > 20, statuses


# R1: invalid requests


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"dataframe_records": [{"pages": NaN, "seconds": 1, "plan": "free"}]}',
        b'{"dataframe_records": [{"pages": 1, "seconds": Infinity, "plan": "free"}]}',
        b'{"dataframe_records": [{"pages": 1, "seconds": 1e999, "plan": "free"}]}',
        b'{"dataframe_records": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 5_000_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\x00",
        b'{"dataframe_records": [{"pages": 1' + b"0" * 10_000 + b', "seconds": 1, "plan": "free"}]}',
        b'{"dataframe_records": [{"pages": 1, "seconds": 1, "plan": "\\ud800"}]}',
    ],
)
def test_invalid_requests_are_rejected_and_workers_live(server: Server, body: bytes) -> None:
    pids = server.pids()
    for path in ("/invocations", f"/v2/models/{MODEL}/infer"):
        answer = server.ask(path, body)
        assert answer.status in {400, 422}, answer.body[:200]
        assert answer.json["problems"]
        assert answer.headers["ml-platform-version"] == str(CHAMPION)
    assert (server.ask().status, server.pids()) == (200, pids)


@pytest.mark.fault("R1")
def test_invalid_http_is_rejected_and_workers_live(server: Server) -> None:
    parts = urlsplit(server.address)
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET \xff\xfe HTTP/1.1\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\r\n" * 1_000,
    ):
        with socket.create_connection((parts.hostname, parts.port), timeout=5) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            response = raw.recv(100)
            assert not response or response.startswith(b"HTTP/1.1 4")
    assert server.ask().status == 200


def exchange(server: Server, sent: bytes, *, end: bool = True) -> bytes:
    """Send bytes on a connection; return all received bytes when the server has closed it."""
    parts = urlsplit(server.address)
    received = []
    with socket.create_connection((parts.hostname, parts.port), timeout=15) as raw:
        with contextlib.suppress(OSError):  # the server may have refused and closed the connection meanwhile
            raw.sendall(sent)
            if end:
                raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while chunk := raw.recv(65_536):
                received.append(chunk)
    return b"".join(received)


HEAD = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(ONE)
CLOSE = b"connection: close\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HEAD + LENGTH + CLOSE + b"\r\n" + ONE, [200]),
        (HEAD + LENGTH + b"\r\n" + ONE + HEAD + LENGTH + CLOSE + b"\r\n" + ONE, [200, 200]),
        (HEAD + b"content-length: 1\r\n\r\n{" + HEAD + LENGTH + CLOSE + b"\r\n" + ONE, [400, 200]),
        (HEAD + CLOSE + CHUNKED + b"\r\n%x\r\n" % len(ONE) + ONE + b"\r\n0\r\n\r\n", [200]),
        (HEAD + CLOSE + CHUNKED + b"\r\nzz\r\n", [400]),
        (HEAD + CLOSE + CHUNKED + LENGTH + b"\r\n0\r\n\r\n", [400]),
        (HEAD + LENGTH + b"content-length: 3\r\n\r\n" + ONE, [400]),
        (HEAD + b"content-length: -1\r\n\r\n" + ONE, [400]),
        (HEAD + b"content-length: %s\r\n\r\n" % (b"9" * 30), [400]),
        (HEAD + LENGTH + CLOSE + b"expect: 100-continue\r\n\r\n" + ONE, [100, 200]),
        (
            b"HEAD /ping HTTP/1.1\r\nhost: x\r\n\r\nGET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            [200, 200],
        ),
        (b"GET /ping HTTP/1.0\r\n\r\n", [200]),
    ],
)
def test_raw_requests_have_their_statuses(server: Server, sent: bytes, statuses: list[int]) -> None:
    received = exchange(server, sent, end=False)
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)] == statuses, received


FRAGMENTS = [
    *(HEAD, LENGTH, CLOSE, CHUNKED, b"\r\n", b"\r\n\r\n", ONE, b"GET ", b"POST ", b"/invocations", b" HTTP/1.1\r\n"),
    *(b"/v2/models/visits/infer", b"/v2/models/%ff%00/ready", b"/v2/models/visits/versions/99999999999999999999/ready"),
    *(b"inference-header-content-length: 3\r\n", b"content-encoding: gzip\r\n", b"content-type: text/\xff\r\n"),
    *(
        b"host: \xff\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"0\r\n\r\n",
    ),
    *(b"ml-platform-key: \xff\x80\r\n", b"x-request-id: \x7f\xff\r\n", b"?a=%zz&b=\xff", b"OPTIONS * HTTP/1.1\r\n"),
]


HEADERS = [
    *(b"content-encoding: gzip\r\n", b"content-encoding: Deflate, identity\r\n", b"content-encoding: \xff\r\n"),
    *(
        b"inference-header-content-length: 3\r\n",
        b"inference-header-content-length: \xb2\r\n",
        b"ml-platform-key: \xff\r\n",
    ),
]
PARTS = [
    *(
        ONE,
        ONE[:-1],
        b'{"inputs":',
        b'{"dataframe_records":',
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b'"pages":',
        b'"plan":"free"',
    ),
    *(
        b'"visitor":',
        b"107.0",
        b"1e999",
        b"-0",
        b"NaN",
        b"9" * 400,
        b"9" * 5_000,
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xe9"',
    ),
    *(
        b"\xef\xbb\xbf",
        ONE.decode().encode("utf-16"),
        gzip.compress(ONE),
        zlib.compress(ONE),
        b'"params":{"key":',
        b"null",
    ),
    *(
        json.dumps({"inputs": TENSORS}).encode(),
        b'{"name":"pages","shape":[1],"datatype":"FP64","data":',
        b'"parameters":{',
    ),
    *(b'"binary_data_size":', b'"id":', b'"outputs":[{"name":', b"[" * 3_000, b'{"a":' * 3_000),
]


@pytest.mark.fault("R25")
def test_any_bytes_cause_no_server_error(server: Server) -> None:
    pids = server.pids()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=8).map(b"".join))
    def send(sent: bytes) -> None:
        received = exchange(server, sent)  # fails if the server leaves the connection open
        assert not re.search(rb"HTTP/1\.1 5\d\d", received), received

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(
        st.sampled_from([b"/invocations", b"/v2/models/visits/infer", b"/v2/models/visits/versions/2/infer"]),
        st.lists(st.sampled_from(HEADERS), max_size=2).map(b"".join),
        st.lists(st.sampled_from(PARTS) | st.binary(max_size=4), max_size=8).map(b"".join),
    )
    def send_body(path: bytes, headers: bytes, body: bytes) -> None:
        head = HEAD.replace(b"/invocations", path) + headers + CLOSE + b"content-length: %d\r\n\r\n" % len(body)
        received = exchange(server, head + body, end=False)
        assert re.findall(rb"HTTP/1\.1 (\d)", received) in ([b"2"], [b"4"]), received

    send()
    send_body()
    assert (server.ask().status, server.pids()) == (200, pids)
    assert "Traceback" not in server.log.read_text()
    assert "Invalid HTTP request" not in server.log.read_text()  # clients cannot fill the log


# R2: large requests


def read_peak_memory(pid: int) -> int:
    """Return a process's peak memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.fault("R2")
def test_gigabyte_body_is_rejected_unread(server: Server) -> None:
    parts = urlsplit(server.address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    connection.putrequest("POST", "/invocations")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(2**30))
    connection.endheaders()
    response = connection.getresponse()  # before any byte of the body was sent
    assert response.status == 413
    connection.close()


@pytest.mark.fault("R2")
def test_large_body_without_length_is_rejected(server: Server) -> None:
    peak = max(read_peak_memory(pid) for pid in server.pids())

    def gigabyte() -> Iterator[bytes]:
        for _ in range(1_024):
            yield b" " * MEGABYTE

    parts = urlsplit(server.address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request(
            "POST", "/invocations", gigabyte(), {"content-type": "application/json"}, encode_chunked=True
        )
    except OSError:
        pass  # the server closed the connection in the middle of the body
    else:
        assert connection.getresponse().status == 413
    connection.close()
    assert max(read_peak_memory(pid) for pid in server.pids()) < peak + 100 * MEGABYTE
    assert server.ask().status == 200


@pytest.mark.fault("R2")
def test_gzip_bomb_is_rejected_with_bounded_memory(server: Server) -> None:
    bomb = gzip.compress(b" " * (200 * MEGABYTE), 9)
    peak = max(read_peak_memory(pid) for pid in server.pids())
    answer = server.ask(body=bomb, headers={"content-encoding": "gzip"})
    assert answer.status == 413
    assert max(read_peak_memory(pid) for pid in server.pids()) < peak + 100 * MEGABYTE


def test_compressed_request_is_answered(server: Server) -> None:
    assert server.ask(body=gzip.compress(ONE), headers={"content-encoding": "gzip"}).json == server.ask().json
    assert server.ask(body=gzip.compress(ONE)[:-9], headers={"content-encoding": "gzip"}).status == 400
    assert server.ask(body=ONE, headers={"content-encoding": "gzip"}).status == 400
    unknown = server.ask(body=ONE, headers={"content-encoding": "br"})
    assert (unknown.status, unknown.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert server.ask(body=ONE, headers={"content-type": "text/csv"}).status == 415


# R3: violations of the contract


@pytest.mark.fault("R3")
def test_missing_column_and_unknown_category_are_named(server: Server) -> None:
    body = json.dumps({"dataframe_records": [RECORD, {"pages": -3, "plan": "gold"}]}).encode()
    answer = server.ask(body=body)
    assert answer.status == 422
    problems = {(one["record"], one["field"]): (one["rule"], one["value"]) for one in answer.json["problems"]}
    assert problems == {
        (1, "pages"): ("must be at least 0", -3),
        (1, "plan"): ("must be one of ['free', 'paid']", "gold"),
        (1, "seconds"): ("is required", None),
    }


# R4: slow clients


@pytest.mark.fault("R4")
def test_slow_clients_and_idle_sockets_delay_no_request(server: Server) -> None:
    parts = urlsplit(server.address)
    held = []
    for number in range(500):
        slow = socket.create_connection((parts.hostname, parts.port), timeout=20)
        if number % 2:
            slow.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-le")
        held.append(slow)
    began = time.monotonic()
    assert all(server.ask(seconds=5).status == 200 for _ in range(20))
    assert time.monotonic() - began < 5
    for slow in held:
        slow.close()


@pytest.mark.fault("R4")
def test_endless_headers_are_rejected(server: Server) -> None:
    parts = urlsplit(server.address)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\n" + b"x-a: " + b"y" * 200_000)
        assert b" 431 " in raw.recv(4_096)


# R7: a worker that is killed


@pytest.mark.fault("R7")
def test_killed_worker_restarts_while_others_answer(server: Server) -> None:
    before = server.pids()
    os.kill(before[0], signal.SIGKILL)
    answers = [server.ask().status for _ in range(30)]

    def is_replaced() -> bool:
        # The new worker must not take requests before it has loaded its versions.
        answers.extend(server.ask().status for _ in range(20))
        pids = server.pids()
        facts = server.facts
        return len(pids) == 2 and before[0] not in pids and facts["workers"] == 2 and facts["revision"] > 0

    wait_until("a new worker", is_replaced)
    assert set(answers) == {200}
    assert "ServingWorkerDied" in server.log.read_text()
    metrics = server.ask("/metrics", None).body.decode()
    assert f'ml_platform_serving_worker_restarts_total{{model="{MODEL}"}} 1.0' in metrics


# R9: the admin port


@pytest.mark.fault("R9")
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
def test_admin_call_with_unknown_token_is_recorded(server: Server, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    for path, body in (("/state", None), ("/rollback", b'{"reason": "mine"}'), ("/nowhere", None)):
        assert prediction_server.ask(server.admin, path, body, headers).status == 401
    last = server.admin_ask("/log").json["refused"][-3:]
    assert [(call["path"], call["allowed"], call["status"], call["caller"]) for call in last] == [
        (path, False, 401, None) for path in ("/state", "/rollback", "/nowhere")
    ]
    assert server.ask().version == CHAMPION
