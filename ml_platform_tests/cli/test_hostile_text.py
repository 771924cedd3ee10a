"""Text from outside, through every command: files, records and arguments that try to change a terminal."""

import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from ml_platform.cli import app, main
from ml_platform.cli.console import SafeConsole
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.release.promote import promote_version
from ml_platform_tests.support import fakes, rollouts
from ml_platform_tests.support.steps import publish

pytestmark = pytest.mark.fault("X1")

MARKUP = "[red]x[/red]"
HOSTILE = f"{MARKUP}[/bold]\x1b[31m\x1b]8;;http://a.example\x07\u202e\u200b\x9b\x7f\r\nforged: line ü\udcff"
# A value in UTF-8, as files and databases hold it.
STORED = HOSTILE.replace("\udcff", "")
SHOWN = "[red]x[/red][/bold]\\x1b[31m\\x1b]8;;http://a.example\\x07\\u202e"
# Names of parameters whose value must be valid for a command to get far. All others are hostile.
VALID = {"model": "visits", "version": "1"}


def list_commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the command of each leaf of the command line."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(list_commands(typer.main.get_command(app)))
WITH_JSON = [path for path, command in COMMANDS.items() if any("--json" in p.opts for p in command.params)]


def build_arguments(command: Any, values: dict[str, str]) -> list[str]:
    """Return arguments for all parameters of a command: the given values, else hostile ones of its type."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            continue
        is_number = parameter.type_descriptor.annotation in {int, float}
        value = values.get(parameter.name, "1" if is_number else HOSTILE)
        if parameter.opts[0].startswith("--"):
            options += [parameter.opts[0], value]
        else:
            arguments.append(value)
    return [*options, *arguments]


def is_safe(text: str) -> bool:
    """Return True if a terminal shows a text as it is."""
    return all(letter == "\n" or letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text)


@pytest.fixture
def deployment(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A champion, a candidate, quarantined rows, servers and files, all with hostile text."""
    spec = fakes.uncompared_spec()
    monkeypatch.setattr("ml_platform.models.discovery.names", lambda: ["churn", "visits"])
    monkeypatch.setattr("ml_platform.models.discovery.load", lambda _: spec)
    rows = fakes.visits(20)
    fakes.drop(platform, "bad.csv", rows.assign(plan=[MARKUP, STORED] * 10))
    publish(platform, spec)
    promote_with_hostile_text(platform, spec)
    rollouts.beats(platform, STORED, refused={"1": STORED})
    (fakes.landing(platform) / "visits" / f"{STORED.replace('/', '')}.csv").touch()
    return platform


def promote_with_hostile_text(platform: Platform, spec: ModelSpec) -> LedgerEntry:
    lineage = replace(fakes.candidate().lineage, reason=STORED)
    version = fakes.staged_version(platform, actor=STORED, lineage=lineage)
    candidate = platform.database.candidate(version.candidate)
    return promote_version(platform, spec, candidate, reason=STORED, actor=STORED)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ml-platform", *arguments])
    handlers = list(logging.getLogger("ml_platform").handlers)
    with pytest.raises(SystemExit) as ended:
        main()
    logging.getLogger("ml_platform").handlers[:] = handlers
    text = capsys.readouterr()
    return int(ended.value.code or 0), text.out, text.err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_command_prints_no_control_character(
    path: tuple[str, ...], deployment: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[path]
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", deployment.settings.landing)

    for values in (VALID, {}):
        status, out, err = run(monkeypatch, capsys, *path, *build_arguments(command, values))

        assert status in {0, 1, 2}
        assert "Traceback" not in err
        for text in (out, err):
            assert is_safe(text), ascii(text)
            assert "\nforged" not in text


@pytest.mark.usefixtures("deployment")
def test_commands_show_hostile_text_literally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, word in (
        (("status",), SHOWN),
        (("history", "visits"), MARKUP),
        (("explain", "champion", "visits"), SHOWN),
        (("quarantine", "show", "visits"), MARKUP),
        (("rollout", "status", "visits"), MARKUP),
        (("ingest", "visits"), "[red]x[red]"),
    ):
        _, out, err = run(monkeypatch, capsys, *path)

        assert word in out + err, path


@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize("path", WITH_JSON, ids=" ".join)
def test_json_output_with_hostile_text_is_valid(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = build_arguments(COMMANDS[path], VALID)

    _, out, _ = run(monkeypatch, capsys, *path, "--json", *arguments)

    if out:
        json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert out.isascii()


@pytest.mark.usefixtures("deployment")
def test_ascii_terminal_shows_other_letters_as_escapes() -> None:
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = [Path(sys.executable).parent / "ml-platform"]

    for arguments in (["status"], ["history", "visits"]):
        done = subprocess.run(
            [*program, *arguments], capture_output=True, env={**os.environ, **environment}, timeout=120
        )

        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert b"\\xfc" in done.stdout


def test_json_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    SafeConsole().print_json(data={"value": float("nan"), "text": "\x7f\x9b\u202e", "number": 0.1})

    out = capsys.readouterr().out
    assert json.loads(out) == {"value": None, "text": "\x7f\x9b\u202e", "number": 0.1}
    assert out.isascii()
    assert "\x7f" not in out
