"""Find removed and loosened gates of a model, and read the file in which a change must declare them.

Besides checks and gates, this covers every setting that can let a worse model pass unchanged gates: the holdout and the
label, golden datasets, the contract, requirements on rows, approvers, and the rollout's conditions. A setting that is
neither stricter nor looser, such as another split, is reported as changed.

``.github/gate-changes.toml`` is next to the workflows, so that reviewers and code owners see it in the diff::

    [[change]]
    check = "churn/trained_model:f1_score"
    reason = "Retention now uses the money saved instead of F1."

An entry counts only for the change that adds it. Settings are named after the model: ``churn:split``,
``churn:golden/holiday``, ``churn:contract/total_day_minutes`` (``contract/rows`` for whole rows),
``churn:rollout/max_slowdown``, ``churn:approval``.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_platform.ci.result_schema import GateChange, bounded
from ml_platform.ci.schema_changes import find_weakened_rules
from ml_platform.errors import ConfigurationError

FILE = ".github/gate-changes.toml"
MIN_REASON = 10
Finding = tuple[str, Any, str, str]  # check, kind, before, after
# Settings that are stricter when greater, and settings that are stricter when smaller. Any other setting may change
# either way and is reported as changed.
STRICTER_ABOVE = {
    "min_rows",
    "min_class_share",
    "min_batch_rows",
    "rollout/hold_minutes",
    "rollout/min_requests",
}
STRICTER_BELOW = {
    "quarantine_tolerance",
    "max_batch_rows",
    "rollout/max_error_increase",
    "rollout/max_slowdown",
    "rollout/max_score_shift",
    "rollout/deadline_ms",
}
AT_ONCE = "blue_green"


def read_declared_reasons(head: Path, base: Path) -> dict[str, str]:
    """Return the reasons by check that one checkout declares and the other does not.

    Raises
    ------
    ConfigurationError
        The file is malformed, or a reason is too short.
    """
    before = _entries(base / FILE, strict=False)
    return {check: reason for check, reason in _entries(head / FILE, strict=True) if (check, reason) not in before}


def _entries(file: Path, *, strict: bool) -> list[tuple[str, str]]:
    if not file.is_file():
        return []
    try:
        changes = tomllib.loads(file.read_text()).get("change", [])
        entries = [(str(entry["check"]), str(entry["reason"]).strip()) for entry in changes]
    except (KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if not strict:
            return []
        raise ConfigurationError(
            f"{FILE} must contain [[change]] entries with check and reason. Got: {error}."
        ) from error
    short = [check for check, reason in entries if len(reason) < MIN_REASON]
    if short and strict:
        raise ConfigurationError(
            f"A reason in {FILE} must have at least {MIN_REASON} characters. Got fewer for {short[0]!r}."
        )
    return entries


def format_check_name(check: Mapping[str, Any]) -> str:
    """Return a check's full name, such as ``churn/trained_model:auc_roc``."""
    return f"{'/'.join(check['asset'])}:{check['name']}"


def find_gate_changes(
    model: str, before: Mapping[str, Any], after: Mapping[str, Any], reasons: Mapping[str, str]
) -> list[GateChange]:
    """Return the removed, loosened and changed gates of a model.

    Parameters
    ----------
    model : str
    before, after : mapping
        Declarations of the base and of the working tree, see `inspect_model`; `after` is empty for a deleted model.
    reasons : mapping of str to str
        Declared reasons by check.
    """
    findings = [*_removed_checks(before, after), *_loosened(model, before, after)]
    # A deleted model has no settings left to compare.
    findings += [(f"{model}:{name}", *rest) for name, *rest in (_changed_settings(before, after) if after else ())]
    return [
        GateChange(check=check, kind=kind, before=bounded(was), after=bounded(is_now), declared=reasons.get(check, ""))
        for check, kind, was, is_now in findings
    ]


def _by_name(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {format_check_name(check): check for check in checks}


def _removed_checks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Finding]:
    left, gates = _by_name(after.get("checks", [])), after.get("gates", [])
    # Gates that another name replaces: on the bound instead of the value, or on more slices.
    replaced = {
        was["name"]
        for was in before["gates"]
        if any(was["metric"] == now["metric"] and _is_as_strict(was, now) for now in gates)
    }
    for name, check in _by_name(before["checks"]).items():
        if name not in left:
            if check["asset"][-1] != "trained_model" or check["name"] not in replaced:
                yield name, "removed", check["description"], ""
        elif check["blocking"] and not left[name]["blocking"]:
            yield name, "loosened", "blocks", "only reports"
        elif check["code"] != left[name]["code"]:
            yield name, "changed", f"code {check['code']}", f"code {left[name]['code']}"


def _loosened(model: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Finding]:
    left = {gate["name"]: gate for gate in after.get("gates", [])}
    for was in before["gates"]:
        now = left.get(was["name"])
        if now and not _is_as_strict(was, now):
            yield f"{model}/trained_model:{was['name']}", "loosened", _words(was), _words(now)
    was, now = before["comparison"], after.get("comparison")
    if was and now and was["name"] == now["name"]:
        gain = was["min_gain"] is None or (now["min_gain"] is not None and now["min_gain"] >= was["min_gain"])
        more = now["confidence"] >= was["confidence"] and now["min_rows"] >= was["min_rows"]
        if not (now["metric"] == was["metric"] and now["margin"] <= was["margin"] and gain and more):
            yield f"{model}/trained_model:{was['name']}", "loosened", _words(was), _words(now)
    if before["approval"] == "manual" and after.get("approval") == "automatic":
        yield f"{model}:approval", "loosened", "manual", "automatic"


def _changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield loosened and changed settings that decide together with the gates."""
    yield from _settings(before["settings"], after["settings"])
    yield from _settings({"baseline": before["baseline"]}, {"baseline": after["baseline"]})
    approvers = [side["approvers"] for side in (before, after)]
    if all(approvers):
        ways, hours = ([each[name] for each in approvers] for name in ("authenticated_by", "expires_after_hours"))
        if not set(ways[1]) <= set(ways[0]) or hours[1] > hours[0]:
            was, now = (f"{', '.join(way)}, for {hour:g} h" for way, hour in zip(ways, hours, strict=True))
            yield "approval", "loosened", was, now
    yield from _rollout(before["rollout"], after["rollout"])
    for name, digest in before["golden"].items():
        if name not in after["golden"]:
            yield f"golden/{name}", "removed", f"sha256 {digest[:12]}", ""
        elif after["golden"][name] != digest:
            yield f"golden/{name}", "changed", f"sha256 {digest[:12]}", f"sha256 {after['golden'][name][:12]}"
    for place, kind, was, now in find_weakened_rules(before["contract"], after["contract"]):
        yield f"contract/{place or 'rows'}", kind, was, now


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Finding]:
    for name, was in before.items():
        now = after.get(name)
        # None before: an earlier platform did not have the setting. None after: a later one dropped it.
        if was is None or was == now:
            continue
        if now is None or name not in STRICTER_ABOVE | STRICTER_BELOW:
            yield name, "changed", f"{was}", f"{now}"
        elif (now < was) == (name in STRICTER_ABOVE):
            yield name, "loosened", f"{was:,}", f"{now:,}"


def _rollout(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Iterator[Finding]:
    # Any other kind is stricter than moving all traffic at once.
    if not before or before["kind"] == AT_ONCE:
        return
    was, now = ({f"rollout/{name}": value for name, value in (side or {}).items()} for side in (before, after))
    if set(was["rollout/steps"]) <= set(now.get("rollout/steps", [])):
        del was["rollout/steps"]
    yield from _settings(was, now)


def _words(gate: Mapping[str, Any]) -> str:
    confidence = f", {gate['confidence']:.0%} confidence" if "confidence" in gate else ""
    places = ", ".join(place for place in gate.get("places", []) if place)
    return f"{gate['condition']}{f' ({places})' if places else ''}{confidence}, at least {gate['min_rows']} rows"


def _is_as_strict(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return True if every candidate that passes the new gate would have passed the old one."""
    if (was["at_least"] is None) != (now["at_least"] is None) or was["dataset"] != now["dataset"]:
        return False
    up = was["at_least"] is not None
    bound = now["at_least"] >= was["at_least"] if up else now["at_most"] <= was["at_most"]
    on = now["on"] == was["on"] or now["on"] == "confidence_bound"
    return bool(bound and on and now["min_rows"] >= was["min_rows"] and set(now["places"]) >= set(was["places"]))
