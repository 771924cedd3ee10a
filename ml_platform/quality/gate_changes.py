"""What a change takes away from a model's gates or loosens, and the file in which it must say so.

Beside checks and gates that is all that lets a worse model through while every gate looks the same: how the holdout is
made and what counts as right, golden datasets, the contract, how much is asked of rows, who approves, and what sends a
new champion back. What may be meant either way, such as another split, is told as changed.

``.github/gate-changes.toml`` stands beside the workflows, in the difference that a reviewer reads and where owners of
code can be asked::

    [[change]]
    check = "churn/trained_model:f1_score"
    reason = "Retention counts money now, and nobody reads F1."

An entry counts for the change that adds it, and for no later one. What is no check has a name after the model's:
``churn:split``, ``churn:golden/holiday``, ``churn:contract/total_day_minutes`` (``contract/rows`` for whole rows),
``churn:rollout/most_slower``, ``churn:approval``.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_platform.errors import ConfigurationError
from ml_platform.quality.contract_changes import weaker_places
from ml_platform.quality.documents import GateChange, bounded

FILE = ".github/gate-changes.toml"
LEAST_REASON = 10
Found = tuple[str, Any, str, str]
# A greater number lets fewer rows or versions through, or a smaller one. Whatever is not named is told when it changes.
STRICTER_ABOVE = {
    "least_rows",
    "least_share_of_a_class",
    "least_rows_a_batch",
    "rollout/hold_minutes",
    "rollout/least_requests",
}
STRICTER_BELOW = {
    "quarantine_tolerance",
    "most_rows_a_batch",
    "rollout/most_error_share",
    "rollout/most_slower",
    "rollout/most_score_shift",
    "rollout/deadline_ms",
}
AT_ONCE = "blue_green"


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
    # Of a model that is gone every check is told: nothing else is left of it.
    found += [(f"{model}:{name}", *rest) for name, *rest in (_around(before, after) if after else ())]
    return [
        GateChange(check=check, kind=kind, before=bounded(was), after=bounded(is_now), declared=reasons.get(check, ""))
        for check, kind, was, is_now in found
    ]


def _by_name(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name_of(check): check for check in checks}


def _removed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Found]:
    left = _by_name(after.get("checks", []))
    for name, check in _by_name(before["checks"]).items():
        if name not in left:
            if not _asked_by_another(check, before, after):
                yield name, "removed", check["description"], ""
        elif check["blocking"] and not left[name]["blocking"]:
            yield name, "loosened", "it blocks", "it only reports"
        elif check["code"] != left[name]["code"]:
            yield name, "changed", f"code {check['code']}", f"code {left[name]['code']}"


def _asked_by_another(check: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a gate of another name asks as much: on the bound instead of the point, or of more slices."""
    is_gate = check["asset"][-1] == "trained_model"
    gates = [gate for gate in before["gates"] if is_gate and gate["name"] == check["name"]]
    others = after.get("gates", [])
    return any(was["metric"] == now["metric"] and _asks_as_much(was, now) for was in gates for now in others)


def _loosened(model: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Found]:
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


def _around(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Found]:
    """Yield what changed of all that stands around the gates and decides with them."""
    yield from _settings(before["settings"], after["settings"])
    yield from _settings({"baseline": before["baseline"]}, {"baseline": after["baseline"]})
    yield from _approvers(before["approvers"], after["approvers"])
    yield from _rollout(before["rollout"], after["rollout"])
    yield from _golden(before["golden"], after["golden"])
    for place, kind, was, now in weaker_places(before["contract"], after["contract"]):
        yield f"contract/{place or 'rows'}", kind, was, now


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Found]:
    for name, was in before.items():
        now = after.get(name)
        # An earlier platform may not have known it; a later one that knows it no longer was changed.
        if was is None or was == now:
            continue
        if now is None or name not in STRICTER_ABOVE | STRICTER_BELOW:
            yield name, "changed", f"{was}", f"{now}"
        elif (now < was) == (name in STRICTER_ABOVE):
            yield name, "loosened", f"{was:,}", f"{now:,}"


def _approvers(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Found]:
    if not before or not after:
        return
    was, now = (
        f"{', '.join(who['authenticated_by'])}, for {who['expires_after_hours']:g} h" for who in (before, after)
    )
    ways = set(after["authenticated_by"]) <= set(before["authenticated_by"])
    if not ways or after["expires_after_hours"] > before["expires_after_hours"]:
        yield "approval", "loosened", was, now


def _rollout(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Found]:
    # What moves all traffic at once holds nothing back: everything else is stricter.
    if not before or before["kind"] == AT_ONCE:
        return
    was, now = ({f"rollout/{name}": value for name, value in (said or {}).items()} for said in (before, after))
    if set(was["rollout/steps"]) <= set(now.get("rollout/steps", [])):
        del was["rollout/steps"]
    yield from _settings(was, now)


def _golden(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Found]:
    for name, digest in before.items():
        if name not in after:
            yield f"golden/{name}", "removed", f"sha256 {digest[:12]}", ""
        elif after[name] != digest:
            yield f"golden/{name}", "changed", f"sha256 {digest[:12]}", f"sha256 {after[name][:12]}"


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
