"""The way back: what `ml-platform rollback` tells servers, the ledger and people, with the database and without it."""

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

from ml_platform import admin, workflows
from ml_platform.errors import AdminError, ConfigurationError, ConflictError, DatabaseUnavailableError, EvidenceError
from ml_platform.records import LedgerEntry
from ml_platform.stages.rollout import next_plan
from ml_platform.traffic import Mode, ServerBeat
from ml_platform.workflows import Platform, Return
from ml_platform_tests import fakes
from ml_platform_tests.test_cli import call
from ml_platform_tests.test_rollout import SPEC, beats, plan_of, promoted

TOKEN = "a secret of this host"  # noqa: S105 - of a test


class AdminPort:
    """As much of a server's admin port as takes a rollback: it keeps what is asked, and answers as a server does.

    Parameters
    ----------
    token : str
        What it lets pass.
    before : int or None
        The champion before, to which it goes back where no version is named; it refuses with 409 where that is None.
    meanwhile : callable or None
        What the server's host does before it answers.
    """

    def __init__(self, token: str = TOKEN, before: int | None = 1, meanwhile: Callable[[], Any] | None = None) -> None:
        self.token, self.before, self.meanwhile = token, before, meanwhile
        self.asked, self.tokens = list[dict[str, Any]](), list[str]()

    def answer(self, authorization: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.tokens.append(authorization)
        if authorization != f"Bearer {self.token}":
            return 401, {"error": "the token is not known here"}
        self.asked.append(asked)
        if self.before is None:
            return 409, {"error": "no champion stands before"}
        if self.meanwhile:
            self.meanwhile()
        return 200, {"version": asked["to"] or self.before, "journal": "j1", "swapped": True}

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
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, said = port.answer(self.headers["Authorization"], asked)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_: Any) -> None:
                pass

        with fakes.on_loopback(Handler) as address:
            yield address


@contextlib.contextmanager
def here(platform: Platform, port: AdminPort) -> Iterator[str]:
    """Let this host have a server, which left its address and its token."""
    folder = platform.settings.home / "serving" / "visits"
    folder.mkdir(parents=True, exist_ok=True)
    with port.running() as address:
        (folder / admin.ADDRESS_FILE).write_text(f"{address}\n")
        (folder / admin.TOKEN_FILE).write_text(f"{port.token}\n")
        yield address


def back(platform: Platform, to: int | None = None) -> Return:
    return workflows.go_back(platform, "visits", lambda: SPEC, to=to, reason="it is worse", actor="ada@desk")


def champion(platform: Platform) -> LedgerEntry:
    found = platform.database.champion("visits")
    assert found is not None
    return found


def without_database(platform: Platform) -> Path:
    """Remove the database behind a platform's back; return its path."""
    path = Path(str(platform.database.url.database))
    platform.database.close()
    del platform.__dict__["database"]
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return path


def test_the_server_of_this_host_swaps_first_and_the_ledger_follows(platform: Platform) -> None:
    promoted(platform, 2)
    port = AdminPort()
    with here(platform, port):
        done = back(platform)

    assert port.asked == [{"to": None, "reason": "it is worse", "actor": "ada@desk"}]
    assert done.entry == champion(platform)
    assert (done.version, done.problem, done.entry.action) == (1, "", "rollback")
    assert [swap.swapped for swap in done.swaps] == [True]
    assert (plan_of(platform).mode, plan_of(platform).stable) == (Mode.ALL, 1)
    # MLflow takes seconds to import: its alias is left to the sensor.
    assert platform.registry.alias("visits", "champion") == 2


def test_a_server_that_is_behind_is_told_where_the_ledger_goes(platform: Platform) -> None:
    promoted(platform)
    promoted_and_arrived(platform, 2)
    port = AdminPort()  # it knows of version 2 as champion, and goes back to version 1
    with here(platform, port):
        done = back(platform)

    assert [asked["to"] for asked in port.asked] == [None, 2]
    assert done.entry == champion(platform)
    assert (done.version, [swap.version for swap in done.swaps]) == (2, [2])


def promoted_and_arrived(platform: Platform, times: int) -> None:
    """Promote so many versions, each after the rollout of the one before has arrived."""
    for _ in range(times):
        promoted(platform)
        plan = plan_of(platform)
        arrived = next_plan(replace(plan, step=9), SPEC.rollout, since=plan.since, actor="test", reason="holds")
        platform.database.append_traffic_plan(arrived)


def test_servers_of_other_hosts_are_found_in_the_database_and_told_the_same(platform: Platform) -> None:
    promoted(platform, 2)
    ours, theirs = AdminPort("shared"), AdminPort("shared")
    settings = platform.settings.model_copy(update={"admin_token": SecretStr("shared")})
    with here(platform, ours) as one, theirs.running() as other:
        for name, address in (("a", one), ("b", other)):
            platform.database.beat(ServerBeat(model="visits", server=name, admin_address=address, says={}))
        done = back(Platform(settings))

    assert [len(port.asked) for port in (ours, theirs)] == [1, 1]
    assert [swap.address for swap in done.swaps] == [one, other]


def test_this_hosts_token_is_told_to_nobody_else(platform: Platform) -> None:
    promoted(platform, 2)
    stranger = AdminPort()
    with here(platform, AdminPort()), stranger.running() as other:
        platform.database.beat(ServerBeat(model="visits", server="b", admin_address=other, says={}))
        done = back(platform)

    assert [token.strip() for token in stranger.tokens] == ["Bearer"]
    assert done.swaps[1].problem == f"{other}/rollback answers 401: the token is not known here"
    assert champion(platform).version == 1


@pytest.mark.parametrize("to", [None, 1])
def test_a_rollback_that_the_server_wrote_first_is_not_made_twice(platform: Platform, to: int | None) -> None:
    promoted(platform)
    promoted_and_arrived(platform, 2)

    def journal() -> None:
        workflows.roll_back(platform, "visits", lambda: SPEC, to=to, reason="it is worse", actor="ada@desk", show=False)

    before = to or 2
    with here(platform, AdminPort(before=before, meanwhile=journal)):
        done = back(platform, to)

    assert done.entry == champion(platform)
    assert done.version == before
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"] * 3 + ["rollback"]


def test_a_rollback_that_the_server_writes_at_this_moment_is_not_made_twice(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(platform, 2)
    ours = workflows.roll_back

    def beaten(*arguments: Any, **asked: Any) -> LedgerEntry:
        ours(*arguments, **asked)
        return ours(*arguments, **asked)

    monkeypatch.setattr("ml_platform.workflows.back.roll_back", beaten)
    with here(platform, AdminPort()):
        done = back(platform)

    assert done.entry == champion(platform)
    assert [entry.action for entry in platform.database.history("visits")] == ["promotion"] * 2 + ["rollback"]


def test_without_the_database_the_servers_swap_and_the_ledger_follows(platform: Platform) -> None:
    promoted(platform, 2)
    path = without_database(platform)
    port = AdminPort()
    with here(platform, port):
        done = back(platform)

    assert port.asked == [{"to": None, "reason": "it is worse", "actor": "ada@desk"}]
    assert (done.version, done.entry) == (1, None)
    assert "is gone. Restore it from a backup." in done.problem
    assert not path.exists()  # an empty one would be taken for a deployment without a champion


@pytest.mark.parametrize("port", [AdminPort("another"), AdminPort(before=None)], ids=["401", "409"])
def test_without_the_database_and_a_server_that_swaps_nothing_is_done(platform: Platform, port: AdminPort) -> None:
    promoted(platform, 2)
    without_database(platform)
    with here(platform, port):
        if port.token == "another":  # noqa: S105 - of a test
            (platform.settings.home / "serving" / "visits" / admin.TOKEN_FILE).write_text("not it")
        with pytest.raises(DatabaseUnavailableError, match="is gone"):
            back(platform)


def test_a_database_that_does_not_answer_keeps_nobody_waiting(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, here(platform, AdminPort()) as address:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/platform"
        settings = platform.settings.model_copy(update={"database_url": SecretStr(url)})
        start = time.monotonic()
        done = back(Platform(settings))
        seconds = time.monotonic() - start

    assert done.swaps == [admin.Swap(address=address, version=1, journal="j1", swapped=True)]
    assert (done.entry, done.problem) == (None, "The platform's database does not answer.")
    assert seconds < 4


def test_a_server_that_is_gone_keeps_the_ledger_from_nothing(platform: Platform) -> None:
    promoted(platform, 2)
    with here(platform, AdminPort()):
        pass

    done = back(platform)

    assert "gave no answer" in done.swaps[0].problem
    assert done.entry == champion(platform)
    assert platform.registry.alias("visits", "champion") == 1  # nobody's traffic waits: MLflow is told at once


def test_where_nothing_stands_before_the_ledger_says_so(platform: Platform) -> None:
    promoted(platform)
    with here(platform, AdminPort(before=None)), pytest.raises(EvidenceError, match="stands before version 1"):
        back(platform)


def test_the_champion_itself_and_a_blank_reason_are_refused(platform: Platform) -> None:
    promoted(platform, 2)
    with pytest.raises(ConflictError, match="is champion already"):
        back(platform, 2)
    port = AdminPort()
    with here(platform, port), pytest.raises(ConfigurationError, match="must say why"):
        workflows.go_back(platform, "visits", lambda: SPEC, to=None, reason=" ", actor="ada@desk")
    assert port.asked == []


def test_a_token_follows_no_redirection_and_no_other_scheme() -> None:
    port = AdminPort()

    with pytest.raises(AdminError, match="must start with http"):
        admin.post("file:///etc/passwd", TOKEN, {})
    with port.running() as address, pytest.raises(AdminError, match="answers 302"):
        admin.post(f"{address}/elsewhere", TOKEN, {"to": 1})

    assert port.tokens == []


# The command


def test_the_command_says_who_swapped(platform: Platform) -> None:
    promoted(platform, 2)
    with here(platform, AdminPort()) as address:
        status, said = call("rollback", "visits", "--reason", "it is [worse]")

    assert (status, said) == (
        0,
        f"visits: version 1 is champion again, instead of 2\n1 servers swapped: {address}\n",
    )


def test_the_command_without_the_database_ends_with_success_and_says_what_follows(platform: Platform) -> None:
    promoted(platform, 2)
    without_database(platform)
    with here(platform, AdminPort()):
        status, said = call("rollback", "visits", "--reason", "worse", "--json")

    shown = json.loads(said[: said.rindex("}") + 1])
    assert status == 0
    assert (shown["version"], shown["servers"][0]["journal"]) == (1, "j1")
    assert "is gone" in shown["ledger"]


def test_the_command_imports_nothing_that_takes_seconds(platform: Platform) -> None:
    promoted(platform, 2)
    with here(platform, AdminPort()):
        code = (
            "import sys; from ml_platform import admin; from ml_platform.cli import app; ask = admin.swap_all\n"
            "def swap_all(*said, **asked):\n"
            "    print('asked', [name for name in ('sqlalchemy', 'ml_platform.workflows') if name in sys.modules])\n"
            "    return ask(*said, **asked)\n"
            "admin.swap_all = swap_all; sys.argv[1:] = ['rollback', 'visits', '--reason', 'worse']\n"
            "try: app()\nexcept SystemExit as end: assert not end.code\n"
            "heavy = {'pandas', 'polars', 'numpy', 'mlflow', 'sklearn', 'scipy', 'dagster', 'pyarrow', 'skops'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    first, *_, said, heavy = done.stdout.splitlines()
    assert (first, said) == ("asked []", "visits: version 1 is champion again, instead of 2")
    assert heavy == "[]"


def test_traffic_shows_versions_figures_and_servers(platform: Platform) -> None:
    assert call("traffic", "visits") == (0, "visits never had a champion.\n")
    promoted(platform, 2)
    beats(platform, refused={"2": "its copy is gone"})

    status, said = call("traffic", "visits")
    shown = json.loads(call("traffic", "visits", "--json")[1])

    assert status == 0
    assert "traffic  canary, step 1: 10% to version 2, the rest to version 1" in said
    assert "obeys plan 2; refuses version 2: its copy is gone" in said
    assert "hold: " in said
    assert (shown["mode"], shown["successor"], shown["next"]) == ("canary", 2, "hold")
    assert [plan["plan"] for plan in shown["plans"]] == [2, 1]
