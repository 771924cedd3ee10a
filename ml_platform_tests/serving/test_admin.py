"""The admin port's tokens, its records, and the rollback of the command line, on a real server."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.records import sha256_text
from ml_platform.serving.tokens import Scope, local_tokens, read_tokens
from ml_platform.workflows import Platform
from ml_platform_tests.serving import living
from ml_platform_tests.serving.living import Server, wait_until

SCOPES = {"grafana": ["viewer"], "anna": ["operator"], "nobody": []}


def tokens_file(folder: Path) -> Path:
    path = folder / "tokens.json"
    path.touch(0o600)
    said = {name: {"sha256": sha256_text(f"{name}'s"), "scopes": scopes} for name, scopes in SCOPES.items()}
    path.write_text(json.dumps(said))
    return path


@pytest.fixture(scope="module")
def served_here(
    three_champions: Path, tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path
) -> Iterator[tuple[Platform, Server]]:
    folder = tmp_path_factory.mktemp("admin")
    platform = living.copied(three_champions, folder / "home", empty_mlflow)
    tokens = {"ML_PLATFORM_ADMIN_TOKENS_FILE": str(tokens_file(folder))}
    with living.serving(platform.settings.home, token="anna's", **tokens) as server:  # noqa: S106 - a test's
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
        ("nobody's", "/state", 403),
        ("grafana's", "/nowhere", 404),
    ],
)
def test_a_call_that_is_not_allowed_is_refused_and_recorded(
    served_here: tuple[Platform, Server], token: str, path: str, status: int
) -> None:
    _, server = served_here
    body = {"reason": "mine"} if path == "/rollback" else None
    assert server.admin_ask(path, body, token).status == status
    call = server.admin_ask("/log").json["calls"][-2]
    known = token.removesuffix("'s")
    assert (call["path"], call["caller"]) == (path, known if known in SCOPES else None)
    assert (call["allowed"], call["status"]) == ((True, None) if status == 404 else (False, status))
    assert server.ask().version == 3


@pytest.mark.fault("R9")
def test_without_any_header_a_call_is_refused(served_here: tuple[Platform, Server]) -> None:
    _, server = served_here
    assert living.ask(server.admin, "/state").status == 401
    assert living.ask(server.admin, "/state", headers={"authorization": "Basic YTpi"}).status == 401


def test_a_viewer_may_look(served_here: tuple[Platform, Server]) -> None:
    _, server = served_here
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
def test_a_rollback_that_cannot_be_is_refused_with_the_reason(
    served_here: tuple[Platform, Server], body: dict[str, object], status: int
) -> None:
    _, server = served_here
    answer = server.admin_ask("/rollback", body)
    assert (answer.status, bool(answer.json["error"])) == (status, True)
    assert not server.admin_ask("/log").json["rollbacks"]


def test_the_command_line_rolls_back_through_the_server(served_here: tuple[Platform, Server]) -> None:
    """The last test of the module: the champion is another one afterwards."""
    platform, server = served_here
    wait_until("the beat", lambda: platform.database.servers("visits", living.LONG_AGO))
    began = time.monotonic()
    done = subprocess.run(
        [str(living.BIN / "ml-platform"), "rollback", "visits", "--reason", "worse", "--json"],
        env=server.environment | {"ML_PLATFORM_ADMIN_TOKEN": "anna's"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert server.ask().version == 2
    assert time.monotonic() - began < 30  # the command itself; what it promises is measured by the server
    entry = server.admin_ask("/log").json["rollbacks"][-1]
    assert (entry["to"], entry["reason"], entry["actor"].endswith("(anna@admin)")) == (2, "worse", True)
    wait_until("the ledger", lambda: living.champions_of(platform) == [1, 2])
    wait_until("a closed journal", lambda: server.admin_ask("/log").json["rollbacks"][-1]["closed"])
    assert "the ledger has it" in server.admin_ask("/log").json["rollbacks"][-1]["closed"]


# Files of tokens


def test_a_tokens_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="0640"):
        read_tokens(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": "b"}', '{"a": {"sha256": "12", "scopes": []}}', '{"a": {"sha256": "%s", "scopes": ["root"]}}'],
)
def test_a_tokens_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tokens_file(tmp_path)
    path.write_text(text.replace("%s", "0" * 64))
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        read_tokens(path)


def test_the_local_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = local_tokens(tmp_path)
    path = tmp_path / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert local_tokens(tmp_path) == first
    holder = first.holder(path.read_text())
    assert holder is not None
    assert holder.may(Scope.OPERATOR)
    assert first.holder("another") is None
