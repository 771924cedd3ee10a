"""`ml-platform rollback`: its effect on servers and ledger, and its output, with and without the database."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ml_platform.errors import AdminError, ConfigurationError, ConflictError, DatabaseUnavailableError, EvidenceError
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.traffic import Mode, ServerHeartbeat
from ml_platform.release import admin_client
from ml_platform.release.fast_rollback import RollbackResult, run_fast_rollback
from ml_platform.release.rollback import roll_back
from ml_platform.release.rollout.policy import next_plan
from ml_platform_tests.support import fakes
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.rollouts import SPEC, beats, promoted, read_plan

pytestmark = pytest.mark.slow

TOKEN = "a secret of this host"  # noqa: S105 - of a test


class AdminPort:
    """A server's admin port that records rollback requests and answers as a server does.

    Parameters
    ----------
    token : str
        The accepted token.
    before : int or None
        The previous champion, the default target of a rollback; ``None`` refuses requests with status 409.
    meanwhile : callable or None
        Called before each answer.
    """

    def __init__(self, token: str = TOKEN, before: int | None = 1, meanwhile: Callable[[], Any] | None = None) -> None:
        self.token, self.before, self.meanwhile = token, before, meanwhile
        self.requests, self.tokens = list[dict[str, Any]](), list[str]()

    def answer(self, authorization: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.tokens.append(authorization)
        if authorization != f"Bearer {self.token}":
            return 401, {"error": "the token is not known here"}
        self.requests.append(request)
        if self.before is None:
            return 409, {"error": "no champion stands before"}
        if self.meanwhile:
            self.meanwhile()
        return 200, {"version": request["to"] or self.before, "journal": "j1", "swapped": True}

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        port = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                port.tokens.append(self.headers["Authorization"])
                self.send_error(404)

            def do_POST(self) -> None:
                if self.path != "/rollback":
                    self.send_response(302)
                    self.send_header("Location", "/rollback")
                    self.end_headers()
                    return
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, output = port.answer(self.headers["Authorization"], request)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(output).encode())

            def log_message(self, *_: Any) -> None:
                pass

        with fakes.on_loopback(Handler) as address:
            yield address


@contextlib.contextmanager
def local_server(platform: Platform, port: AdminPort) -> Iterator[str]:
    """Run a server on this host, with its address and token in its folder."""
    folder = platform.settings.home / "serving" / "visits"
    folder.mkdir(parents=True, exist_ok=True)
    with port.running() as address:
        (folder / admin_client.ADDRESS_FILE).write_text(f"{address}\n")
        (folder / admin_client.TOKEN_FILE).write_text(f"{port.token}\n")
        yield address


def run_rollback(platform: Platform, to: int | None = None) -> RollbackResult:
    return run_fast_rollback(
        platform, "visits", load_spec=lambda _: SPEC, to=to, reason="it is worse", actor="ada@desk"
    )


def champion(platform: Platform) -> LedgerEntry:
    entry = platform.database.champion("visits")
    assert entry is not None
    return entry


def without_database(platform: Platform) -> Path:
    """Delete a platform's database file; return its path."""
    path = Path(str(platform.database.url.database))
    platform.database.close()
    del platform.__dict__["database"]
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return path


def test_local_server_swaps_before_the_ledger_entry(platform: Platform) -> None:
    promoted(platform, 2)
    port = AdminPort()
    with local_server(platform, port):
        done = run_rollback(platform)

    assert port.requests == [{"to": None, "reason": "it is worse", "actor": "ada@desk"}]
    assert done.entry == champion(platform)
    assert (done.version, done.problem, done.entry.action) == (1, "", "rollback")
    assert [swap.swapped for swap in done.swaps] == [True]
    assert (read_plan(platform).mode, read_plan(platform).stable) == (Mode.ALL, 1)
    # MLflow takes seconds to import: the sensor moves its alias.
    assert platform.registry.alias("visits", "champion") == 2


def test_outdated_server_is_swapped_to_the_ledgers_target(platform: Platform) -> None:
    promoted(platform)
    promote_and_finish(platform, 2)
    port = AdminPort()  # its champion is version 2, its previous champion version 1
    with local_server(platform, port):
        done = run_rollback(platform)

    assert [request["to"] for request in port.requests] == [None, 2]
    assert done.entry == champion(platform)
    assert (done.version, [swap.version for swap in done.swaps]) == (2, [2])


def promote_and_finish(platform: Platform, times: int) -> None:
    """Promote `times` versions, each after the previous rollout has finished."""
    for _ in range(times):
        promoted(platform)
        plan = read_plan(platform)
        arrived = next_plan(replace(plan, step=9), SPEC.rollout, since=plan.since, actor="test", reason="holds")
        platform.database.append_traffic_plan(arrived)


def test_servers_of_other_hosts_are_swapped_too(platform: Platform) -> None:
    promoted(platform, 2)
    ours, theirs = AdminPort("shared"), AdminPort("shared")
    settings = platform.settings.model_copy(update={"admin_token": SecretStr("shared")})
    with local_server(platform, ours) as one, theirs.running() as other:
        for name, address in (("a", one), ("b", other)):
            platform.database.beat(ServerHeartbeat(model="visits", server=name, admin_address=address, says={}))
        done = run_rollback(Platform(settings))

    assert [len(port.requests) for port in (ours, theirs)] == [1, 1]
    assert [swap.address for swap in done.swaps] == [one, other]


def test_local_token_is_not_sent_to_other_hosts(platform: Platform) -> None:
    promoted(platform, 2)
    stranger = AdminPort()
    with local_server(platform, AdminPort()), stranger.running() as other:
        platform.database.beat(ServerHeartbeat(model="visits", server="b", admin_address=other, says={}))
        done = run_rollback(platform)

    assert [token.strip() for token in stranger.tokens] == ["Bearer"]
    assert done.swaps[1].problem == f"{other}/rollback answers 401: the token is not known here"
    assert champion(platform).version == 1


@pytest.mark.parametrize("to", [None, 1])
def test_rollback_recorded_first_by_server_is_not_repeated(platform: Platform, to: int | None) -> None:
    promoted(platform)
    promote_and_finish(platform, 2)

    def journal() -> None:
        roll_back(
            platform, "visits", load_spec=lambda _: SPEC, to=to, reason="it is worse", actor="ada@desk", show=False
        )

    before = to or 2
    with local_server(platform, AdminPort(before=before, meanwhile=journal)):
        done = run_rollback(platform, to)

    assert done.entry == champion(platform)
    assert done.version == before
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"] * 3 + ["rollback"]


def test_rollback_recorded_concurrently_by_server_is_not_repeated(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform, 2)
    ours = roll_back

    def beaten(*arguments: Any, **request: Any) -> LedgerEntry:
        ours(*arguments, **request)
        return ours(*arguments, **request)

    monkeypatch.setattr("ml_platform.release.fast_rollback.roll_back", beaten)
    with local_server(platform, AdminPort()):
        done = run_rollback(platform)

    assert done.entry == champion(platform)
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"] * 2 + ["rollback"]


def test_without_database_servers_swap_and_problem_is_reported(platform: Platform) -> None:
    promoted(platform, 2)
    path = without_database(platform)
    port = AdminPort()
    with local_server(platform, port):
        done = run_rollback(platform)

    assert port.requests == [{"to": None, "reason": "it is worse", "actor": "ada@desk"}]
    assert (done.version, done.entry) == (1, None)
    assert "is gone. Restore the database from a backup;" in done.problem
    assert not path.exists()  # an empty one would look like a deployment without a champion


@pytest.mark.parametrize("port", [AdminPort("another"), AdminPort(before=None)], ids=["401", "409"])
def test_without_database_and_swap_rollback_is_refused(platform: Platform, port: AdminPort) -> None:
    promoted(platform, 2)
    without_database(platform)
    with local_server(platform, port):
        if port.token == "another":  # noqa: S105 - of a test
            (platform.settings.home / "serving" / "visits" / admin_client.TOKEN_FILE).write_text("not it")
        with pytest.raises(DatabaseUnavailableError, match="is gone"):
            run_rollback(platform)


def test_unresponsive_database_does_not_delay_the_rollback(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, local_server(platform, AdminPort()) as address:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/platform"
        settings = platform.settings.model_copy(update={"database_url": SecretStr(url)})
        start = time.monotonic()
        done = run_rollback(Platform(settings))
        seconds = time.monotonic() - start

    assert done.swaps == [admin_client.Swap(address=address, version=1, journal="j1", swapped=True)]
    assert (done.entry, done.problem) == (None, "The platform's database does not answer.")
    assert seconds < 4


def test_missing_server_does_not_prevent_the_ledger_entry(platform: Platform) -> None:
    promoted(platform, 2)
    with local_server(platform, AdminPort()):
        pass

    done = run_rollback(platform)

    assert "gave no answer" in done.swaps[0].problem
    assert done.entry == champion(platform)
    assert platform.registry.alias("visits", "champion") == 1  # no server waits, so MLflow is updated at once


def test_rollback_without_earlier_champion_is_refused(platform: Platform) -> None:
    promoted(platform)
    with (
        local_server(platform, AdminPort(before=None)),
        pytest.raises(EvidenceError, match="has no champion before version 1"),
    ):
        run_rollback(platform)


def test_rollback_to_champion_or_blank_reason_is_refused(platform: Platform) -> None:
    promoted(platform, 2)
    with pytest.raises(ConflictError, match="is champion already"):
        run_rollback(platform, 2)
    port = AdminPort()
    with local_server(platform, port), pytest.raises(ConfigurationError, match="must say why"):
        run_fast_rollback(platform, "visits", load_spec=lambda _: SPEC, to=None, reason=" ", actor="ada@desk")
    assert port.requests == []


def test_post_refuses_redirections_and_other_schemes() -> None:
    port = AdminPort()

    with pytest.raises(AdminError, match="must start with http"):
        admin_client.post("file:///etc/passwd", TOKEN, {})
    with port.running() as address, pytest.raises(AdminError, match="answers 302"):
        admin_client.post(f"{address}/elsewhere", TOKEN, {"to": 1})

    assert port.tokens == []


# The command


def test_rollback_command_lists_swapped_servers(platform: Platform) -> None:
    promoted(platform, 2)
    with local_server(platform, AdminPort()) as address:
        status, output = call("rollback", "visits", "--reason", "it is [worse]")

    assert (status, output) == (
        0,
        f"visits: version 1 is champion again, instead of 2\n1 servers swapped: {address}\n",
    )


def test_rollback_command_without_database_succeeds_with_problem(platform: Platform) -> None:
    promoted(platform, 2)
    without_database(platform)
    with local_server(platform, AdminPort()):
        status, output = call("rollback", "visits", "--reason", "worse", "--json")

    shown = json.loads(output[: output.rindex("}") + 1])
    assert status == 0
    assert (shown["version"], shown["servers"][0]["journal"]) == (1, "j1")
    assert "is gone" in shown["ledger"]


def test_the_command_imports_nothing_that_takes_seconds(platform: Platform) -> None:
    promoted(platform, 2)
    with local_server(platform, AdminPort()):
        code = (
            "import sys; from ml_platform.release import admin_client; from ml_platform.cli import app\n"
            "ask = admin_client.swap_all\n"
            "def swap_all(*said, **asked):\n"
            "    print('asked', [name for name in ('sqlalchemy', 'ml_platform.platform') if name in sys.modules])\n"
            "    return ask(*said, **asked)\n"
            "admin_client.swap_all = swap_all; sys.argv[1:] = ['rollback', 'visits', '--reason', 'worse']\n"
            "try: app()\nexcept SystemExit as end: assert not end.code\n"
            "heavy = {'pandas', 'polars', 'numpy', 'mlflow', 'sklearn', 'scipy', 'dagster', 'pyarrow', 'skops'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    first, *_, output, heavy = done.stdout.splitlines()
    assert (first, output) == ("asked []", "visits: version 1 is champion again, instead of 2")
    assert heavy == "[]"


def test_traffic_shows_versions_figures_and_servers(platform: Platform) -> None:
    assert call("rollout", "status", "visits") == (0, "visits never had a champion.\n")
    promoted(platform, 2)
    beats(platform, refused={"2": "its copy is gone"})

    status, output = call("rollout", "status", "visits")
    shown = json.loads(call("rollout", "status", "visits", "--json")[1])

    assert status == 0
    assert "traffic  canary, step 1: 10% to version 2, the rest to version 1" in output
    assert "serves plan 2; refuses version 2: its copy is gone" in output
    assert "hold: " in output
    assert (shown["mode"], shown["successor"], shown["next"]) == ("canary", 2, "hold")
    assert [plan["plan"] for plan in shown["plans"]] == [2, 1]
