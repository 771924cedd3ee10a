"""Run one version of the code on one version of the data in a temporary deployment, and read the records it leaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_platform.ci.dagster_records import failures, list_run_ids, open_instance, read_check_record
from ml_platform.ci.gate_changes import format_check_name
from ml_platform.ci.result_schema import (
    CheckState,
    CodeDataRun,
    ReportedCheck,
    ReportedCurve,
    ReportedGate,
    ReportedMeasurement,
    ReportedReference,
    bounded,
)
from ml_platform.ci.sandbox import Checkout, Sandbox
from ml_platform.devtools.demo_data import exports
from ml_platform.errors import ChangeComparisonError

Age = Literal["old", "new"]


@dataclass(kw_only=True)
class SandboxRun:
    """Result of one code on one data.

    Parameters
    ----------
    home : Sandbox
    corner : CodeDataRun
    checks : list of ReportedCheck
        Records of the expected checks.
    failed : list of str
        Reasons why the run failed; a missing approval is none.
    champion : int or None
        None if no version became champion.
    folder : Path or None
        The candidate's folder.
    """

    home: Sandbox
    corner: CodeDataRun
    checks: list[ReportedCheck] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    champion: int | None = None
    folder: Path | None = None


def export_files(code: Checkout, model: str, declares: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a checkout's rows of a model, as files to land.

    Raises
    ------
    ChangeComparisonError
        The file is missing or cannot be read.
    """
    path = data_file(code, model)
    try:
        return exports(path, entity=declares["entity"], event_time=declares["event_time"], name=model)
    except (OSError, ValueError) as error:
        raise ChangeComparisonError(
            f"The rows of {model!r} in data/{path.name} cannot be read: {bounded(str(error))}"
        ) from error


def data_file(code: Checkout, model: str) -> Path:
    """Return the path of a model's rows in a checkout."""
    return code.folder / "data" / f"{model}.parquet"


def ingest(
    home: Sandbox, code: Checkout, model: str, files: dict[str, bytes], checks: Iterable[Mapping[str, Any]]
) -> SandboxRun:
    """Land and publish files; read the records of the checks from the runs that did it."""
    status = home.ingest(code, model, files)
    run = SandboxRun(home=home, corner=CodeDataRun(code="new", data="new"))
    with open_instance(home.folder) as instance:
        run.checks = _read_checks(instance, checks, list_run_ids(instance))
    if status != 0:
        bad = [check.said or check.check for check in run.checks if check.state is CheckState.FAILED]
        run.failed = [f"{code.words} refuses the rows of {model}: {'; '.join(bad) or home.exit_reason()}"]
    return run


def run_in_sandbox(
    home: Sandbox, code: Checkout, model: str, at: tuple[Age, Age], checks: Iterable[Mapping[str, Any]] = ()
) -> SandboxRun:
    """Materialise a model's group; return its checks, verdict and champion.

    Parameters
    ----------
    home : Sandbox
        A deployment with published rows.
    code : Checkout
    model : str
    at : (str, str)
        Age of the code and of the data.
    checks : iterable of mapping
        Checks that must have a record in this run.

    Raises
    ------
    ChangeComparisonError
        The verdict cannot be read.
    """
    with open_instance(home.folder) as instance:
        before = list_run_ids(instance)
    status = home.materialise(code, model)
    run = SandboxRun(home=home, corner=CodeDataRun(code=at[0], data=at[1]))
    with open_instance(home.folder) as instance:
        run_ids = [run_id for run_id in list_run_ids(instance) if run_id not in before]
        run.checks = _read_checks(instance, checks, run_ids)
        run.failed = [bounded(why) for run_id in run_ids for why in failures(instance, run_id)]
    if len(run_ids) != 1:
        reason = home.exit_reason()
        run.failed.append(
            f"{code.words}: expected one Dagster run, got {len(run_ids)}, with exit status {status}: {reason}"
        )
        run.corner = CodeDataRun(code=at[0], data=at[1], why=bounded(run.failed[-1]))
        return run
    document = home.inspect(code, "judged", model, run_ids[0])
    try:
        _store_verdict(run, document)
    except (KeyError, TypeError, ValueError) as error:  # other code may write other fields
        raise ChangeComparisonError(f"The verdict of {code.words} cannot be read: {bounded(repr(error))}") from error
    return run


def _read_checks(instance: Any, checks: Iterable[Mapping[str, Any]], run_ids: list[str]) -> list[ReportedCheck]:
    records = [(check, read_check_record(instance, check["asset"], check["name"], run_ids)) for check in checks]
    return [ReportedCheck(check=format_check_name(c), state=r.state, said=bounded(r.said)) for c, r in records]


def _store_verdict(run: SandboxRun, document: Mapping[str, Any]) -> None:
    """Store in a run the verdict that `inspect_model` read."""
    verdict, curves = document["verdict"], document["curves"] or {"rows": 0, "of": []}
    run.champion = document["champion"] if document["is_champion"] else None
    run.folder = Path(document["folder"]) if document["folder"] else None
    where = {"code": run.corner.code, "data": run.corner.data}
    if verdict is None:
        run.corner = CodeDataRun(**where, why=bounded("; ".join(run.failed) or "its run stored no verdict"))
        return
    evaluation = verdict["evaluation"]
    run.corner = CodeDataRun(
        **where,
        verdict_digest=document["verdict_digest"],
        model_digest=verdict["model_digest"],
        dataset_digest=verdict["dataset_digest"],
        champion=evaluation["champion"],
        gates=[ReportedGate(**_select_known_fields(ReportedGate, gate)) for gate in verdict["results"]],
        measurements=[
            ReportedMeasurement(**_select_known_fields(ReportedMeasurement, measurement))
            for measurement in evaluation["measurements"]
        ],
        reference=ReportedReference(**_select_known_fields(ReportedReference, evaluation["reference"]))
        if evaluation["reference"]
        else None,
        curves=[ReportedCurve(**_select_known_fields(ReportedCurve, curve)) for curve in curves["of"]],
        curve_rows=curves["rows"],
    )


def _select_known_fields(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document's known fields with bounded texts: other code may write more fields."""
    known = {name: fields[name] for name in kind.model_fields if name in fields}
    return {name: bounded(value) if isinstance(value, str) else value for name, value in known.items()}
