"""Gates that a change takes away or loosens, and the file in which it must say so.

``.github/gate-changes.toml`` stands beside the workflows, in the difference that a reviewer reads and where owners of
code can be asked::

    [[change]]
    check = "churn/trained_model:f1_score"
    reason = "Retention counts money now, and nobody reads F1."

An entry counts for the change that adds it, and for no later one.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_platform.errors import ConfigurationError
from ml_platform.quality.documents import GateChange, bounded

FILE = ".github/gate-changes.toml"
LEAST_REASON = 10


def declared(head: Path, base: Path) -> dict[str, str]:
    """Return the reasons by check that the code in one folder gives and that in the other does not.

    Raises
    ------
    ConfigurationError
        The file is no such file, or gives no reason.
    """
    before = _entries(base / FILE, strict=False)
    return {check: reason for check, reason in _entries(head / FILE, strict=True) if (check, reason) not in before}


def _entries(file: Path, *, strict: bool) -> list[tuple[str, str]]:
    if not file.is_file():
        return []
    try:
        found = tomllib.loads(file.read_text()).get("change", [])
        entries = [(str(entry["check"]), str(entry["reason"]).strip()) for entry in found]
    except (KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if not strict:
            return []
        raise ConfigurationError(f"{FILE} must hold [[change]] entries with check and reason. Got: {error}.") from error
    short = [check for check, reason in entries if len(reason) < LEAST_REASON]
    if short and strict:
        raise ConfigurationError(
            f"{FILE} must give a reason of {LEAST_REASON} characters or more. Got fewer for {short[0]!r}."
        )
    return entries


def name_of(check: Mapping[str, Any]) -> str:
    """Return a check as people write it: ``churn/trained_model:auc_roc``."""
    return f"{'/'.join(check['asset'])}:{check['name']}"


def changes_of(
    model: str, before: Mapping[str, Any], after: Mapping[str, Any], reasons: Mapping[str, str]
) -> list[GateChange]:
    """Return what a change takes away from a model's gates or loosens.

    Parameters
    ----------
    model : str
    before, after : mapping
        What `look` says that the base and the working tree declare; an empty `after` is a model that is gone.
    reasons : mapping of str to str
        The reasons that were declared, by check.
    """
    found = [*_removed(before, after), *_loosened(model, before, after)]
    return [
        GateChange(check=check, kind=kind, before=bounded(was), after=bounded(is_now), declared=reasons.get(check, ""))
        for check, kind, was, is_now in found
    ]


def _by_name(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name_of(check): check for check in checks}


def _removed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    left = _by_name(after.get("checks", []))
    for name, check in _by_name(before["checks"]).items():
        if name not in left:
            yield name, "removed", check["description"], ""
        elif check["blocking"] and not left[name]["blocking"]:
            yield name, "loosened", "it blocks", "it only reports"


def _loosened(model: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    left = {gate["name"]: gate for gate in after.get("gates", [])}
    for was in before["gates"]:
        now = left.get(was["name"])
        if now and not _asks_as_much(was, now):
            yield f"{model}/trained_model:{was['name']}", "loosened", _words(was), _words(now)
    was, now = before["comparison"], after.get("comparison")
    if was and now and was["name"] == now["name"] and not _compares_as_much(was, now):
        yield f"{model}/trained_model:{was['name']}", "loosened", _words(was), _words(now)
    if before["approval"] == "manual" and after.get("approval") == "automatic":
        yield f"{model}:approval", "loosened", "a person approves", "nobody has to"


def _words(asked: Mapping[str, Any]) -> str:
    confidence = f", {asked['confidence']:.0%} sure" if "confidence" in asked else ""
    places = ", ".join(place for place in asked.get("places", []) if place)
    return f"{asked['condition']}{f' ({places})' if places else ''}{confidence}, at least {asked['least_rows']} rows"


def _asks_as_much(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether every candidate that the new gate lets pass would have passed the old one."""
    if (was["at_least"] is None) != (now["at_least"] is None) or was["dataset"] != now["dataset"]:
        return False
    up = was["at_least"] is not None
    bound = now["at_least"] >= was["at_least"] if up else now["at_most"] <= was["at_most"]
    on = now["on"] == was["on"] or now["on"] == "bound"
    return bool(bound and on and now["least_rows"] >= was["least_rows"] and set(now["places"]) >= set(was["places"]))


def _compares_as_much(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    gain = was["minimum_gain"] is None or (
        now["minimum_gain"] is not None and now["minimum_gain"] >= was["minimum_gain"]
    )
    more = now["confidence"] >= was["confidence"] and now["least_rows"] >= was["least_rows"]
    return bool(now["metric"] == was["metric"] and now["margin"] <= was["margin"] and gain and more)
