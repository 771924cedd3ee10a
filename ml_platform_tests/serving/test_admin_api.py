"""Tests of the admin port's tokens and records, and of the rollback command, on a real server."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.platform import Platform
from ml_platform.records.canonical import sha256_text
from ml_platform.serving.supervisor.admin_tokens import Scope, local_tokens, read_tokens
from ml_platform_tests.support import prediction_server
from ml_platform_tests.support.prediction_server import Server, wait_until

SCOPES = {"grafana": ["viewer"], "anna": ["operator"], "intern": []}


def write_tokens(folder: Path) -> Path:
    path = folder / "tokens.json"
    path.touch(0o600)
    tokens = {name: {"sha256": sha256_text(f"{name}'s"), "scopes": scopes} for name, scopes in SCOPES.items()}
    path.write_text(json.dumps(tokens))
    return path


@pytest.fixture(scope="module")
def running_server(
    three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path
) -> Iterator[tuple[Platform, Server]]:
    folder = tmp_path_factory.mktemp("admin")
    platform = prediction_server.copied(three_champions, folder / "home", empty_mlflow)
    tokens = {"ML_PLATFORM_ADMIN_TOKENS_FILE": str(write_tokens(folder))}
    with prediction_server.serving(platform.settings.home, token="anna's", **tokens) as server:  # noqa: S106 - a test's
        server.wait_for(3)
        yield platform, server
    platform.database.close()


@pytest.mark.fault("R9")
@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        ("", "/rollback", 401),
        ("wrong", "/rollback", 401),
        ("é", "/rollback", 401),
        ("grafana's", "/rollback", 403),
        ("intern's", "/state", 403),
        ("grafana's", "/nowhere", 404),
    ],
)
def test_admin_call_without_permission_is_refused_and_recorded(
    running_server: tuple[Platform, Server], token: str, path: str, status: int
) -> None:
    _, server = running_server
    body = {"reason": "mine"} if path == "/rollback" else None
    assert server.admin_ask(path, body, token).status == status
    # The last read is the call that reads the log.
    calls = server.admin_ask("/log").json
    call = calls["reads"][-2] if status == 404 else calls["refused"][-1]
    name = token.removesuffix("'s")
    assert (call["path"], call["caller"]) == (path, name if name in SCOPES else None)
    assert (call["allowed"], call["status"]) == ((True, 404) if status == 404 else (False, status))
    assert server.ask().version == 3


@pytest.mark.fault("R9")
def test_admin_call_without_bearer_token_is_refused(running_server: tuple[Platform, Server]) -> None:
    _, server = running_server
    assert prediction_server.ask(server.admin, "/state").status == 401
    assert prediction_server.ask(server.admin, "/state", headers={"authorization": "Basic YTpi"}).status == 401


def test_viewer_token_may_read(running_server: tuple[Platform, Server]) -> None:
    _, server = running_server
    for path in ("/state", "/log", "/metrics"):
        assert server.admin_ask(path, token="grafana's").status == 200  # noqa: S106


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"reason": 3}, 400),
        ({"reason": "why", "force": True}, 400),
        ({"reason": " "}, 422),
        ({"reason": "two\nlines"}, 422),
        ({"reason": "why", "to": 3}, 409),
        ({"reason": "why", "to": 99}, 409),
    ],
)
def test_invalid_rollback_is_refused_with_an_error(
    running_server: tuple[Platform, Server], body: dict[str, object], status: int
) -> None:
    _, server = running_server
    answer = server.admin_ask("/rollback", body)
    assert (answer.status, bool(answer.json["error"])) == (status, True)
    assert not server.admin_ask("/log").json["rollbacks"]


@pytest.mark.fault("R24")
def test_flood_without_token_displaces_no_change(running_server: tuple[Platform, Server]) -> None:
    _, server = running_server
    assert server.admin_ask("/rollback", {"reason": " "}).status == 422
    for _ in range(150):
        assert server.admin_ask("/rollback", {"reason": "mine"}, token="wrong").status == 401  # noqa: S106
    log = server.admin_ask("/log?most=1000").json
    change = log["changes"][-1]
    assert (change["path"], change["caller"], change["status"], change["allowed"]) == ("/rollback", "anna", 422, True)
    omitted = sum(line.get("omitted", 0) for line in log["refused"]) + log["refused_without_line"]
    assert omitted >= 50  # the flood may be spread over two periods


def test_rollback_command_calls_the_server(running_server: tuple[Platform, Server]) -> None:
    """This is the last test of the module, because it changes the champion."""
    platform, server = running_server
    wait_until("a heartbeat", lambda: [beat for beat in platform.database.servers("visits") if beat.number])
    began = time.monotonic()
    process = subprocess.run(
        [str(prediction_server.BIN / "ml-platform"), "rollback", "visits", "--reason", "worse", "--json"],
        env=server.environment | {"ML_PLATFORM_ADMIN_TOKEN": "anna's"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert server.ask().version == 2
    change = server.admin_ask("/log").json["changes"][-1]
    assert (change["path"], change["caller"], change["allowed"], change["status"]) == ("/rollback", "anna", True, 200)
    assert time.monotonic() - began < 30  # with the start of the command; the server measures the swap itself
    entry = server.admin_ask("/log").json["rollbacks"][-1]
    assert (entry["to"], entry["reason"], entry["actor"].endswith("(anna@admin)")) == (2, "worse", True)
    wait_until("the ledger", lambda: prediction_server.list_champions(platform) == [1, 2])
    wait_until("a closed journal", lambda: server.admin_ask("/log").json["rollbacks"][-1]["closed"])
    assert "recorded in the ledger" in server.admin_ask("/log").json["rollbacks"][-1]["closed"]


# Tokens files


def test_tokens_file_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = write_tokens(tmp_path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="0640"):
        read_tokens(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": "b"}', '{"a": {"sha256": "12", "scopes": []}}', '{"a": {"sha256": "%s", "scopes": ["root"]}}'],
)
def test_invalid_tokens_file_is_refused(tmp_path: Path, text: str) -> None:
    path = write_tokens(tmp_path)
    path.write_text(text.replace("%s", "0" * 64))
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        read_tokens(path)


def test_local_token_is_created_once_and_private(tmp_path: Path) -> None:
    first = local_tokens(tmp_path)
    path = tmp_path / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert local_tokens(tmp_path) == first
    holder = first.find_principal(path.read_text())
    assert holder is not None
    assert holder.may(Scope.OPERATOR)
    assert first.find_principal("another") is None
