"""One code lives on one data in a deployment thrown away: what the records and the stored verdict say afterwards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml_platform.demo import exports
from ml_platform.errors import TrialError
from ml_platform.quality.documents import (
    CheckDone,
    CheckState,
    Corner,
    CurveDone,
    FigureDone,
    GateDone,
    RivalDone,
    bounded,
)
from ml_platform.quality.gate_changes import name_of
from ml_platform.quality.lives import Code, Home
from ml_platform.quality.records import failures, opened, record_of, runs_of

Age = Literal["old", "new"]


@dataclass(kw_only=True)
class Life:
    """What came of one code on one data.

    `checks` are those that were asked for, as the run left them. `failed` says why its run did not succeed; a person's
    approval that is missing does not count. `champion` is None where no version became champion.
    """

    home: Home
    corner: Corner
    checks: list[CheckDone] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    champion: int | None = None
    folder: Path | None = None


def files_of(code: Code, model: str, declares: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the rows that a checkout keeps of a model as the files that are landed.

    Raises
    ------
    TrialError
        There are none, or they cannot be read.
    """
    path = data_file(code, model)
    try:
        return exports(path, entity=declares["entity"], event_time=declares["event_time"], name=model)
    except (OSError, ValueError) as error:
        raise TrialError(f"The rows of {model!r} in data/{path.name} cannot be read: {bounded(str(error))}") from error


def data_file(code: Code, model: str) -> Path:
    """Return where a checkout keeps the rows of a model."""
    return code.folder / "data" / f"{model}.parquet"


def ingest(home: Home, code: Code, model: str, files: dict[str, bytes], checks: Iterable[Mapping[str, Any]]) -> Life:
    """Land files and publish them; the checks are read from the runs that did it."""
    status = home.ingest(code, model, files)
    life = Life(home=home, corner=Corner(code="new", data="new"))
    with opened(home.folder) as instance:
        runs = runs_of(instance)
        life.checks = [_done(record_of(instance, c["asset"], c["name"], runs), c) for c in checks]
    if status != 0:
        bad = [check.said or check.check for check in life.checks if check.state is CheckState.FAILED]
        life.failed = [f"{code.words} does not take the rows of {model}: {'; '.join(bad) or home.last_words()}"]
    return life


def live(home: Home, code: Code, model: str, at: tuple[Age, Age], checks: Iterable[Mapping[str, Any]] = ()) -> Life:
    """Materialise a model's group and say what came of it.

    Parameters
    ----------
    home : Home
        The rows are published in it.
    code : Code
    model : str
    at : (str, str)
        Which code and which data these are.
    checks : iterable of mapping
        Those that must have a record in this very run.
    """
    before = _runs(home)
    status = home.materialise(code, model)
    runs = [run for run in _runs(home) if run not in before]
    life = Life(home=home, corner=Corner(code=at[0], data=at[1]))
    with opened(home.folder) as instance:
        life.checks = [_done(record_of(instance, c["asset"], c["name"], runs), c) for c in checks]
        life.failed = [bounded(why) for run in runs for why in failures(instance, run)]
    if len(runs) != 1:
        words = home.last_words()
        life.failed.append(f"{code.words}: Dagster made {len(runs)} runs instead of one, status {status}: {words}")
        life.corner = Corner(code=at[0], data=at[1], why=bounded(life.failed[-1]))
        return life
    said = home.ask(code, "judged", model, runs[0])
    try:
        _remember(life, said)
    except (KeyError, TypeError, ValueError) as error:  # of other code, which may say other things
        raise TrialError(f"The verdict that {code.words} left cannot be read: {bounded(repr(error))}") from error
    return life


def _runs(home: Home) -> list[str]:
    with opened(home.folder) as instance:
        return runs_of(instance)


def _done(found: Any, check: Mapping[str, Any]) -> CheckDone:
    return CheckDone(check=name_of(check), state=found.state, said=bounded(found.said))


def _remember(life: Life, said: Mapping[str, Any]) -> None:
    """Take over what the fresh process says of the run's verdict."""
    verdict, curves = said["verdict"], said["curves"] or {"rows": 0, "of": []}
    life.champion = said["champion"] if said["is_champion"] else None
    life.folder = Path(said["folder"]) if said["folder"] else None
    where = {"code": life.corner.code, "data": life.corner.data}
    if verdict is None:
        life.corner = Corner(**where, why=bounded("; ".join(life.failed) or "its run left no verdict"))
        return
    findings = verdict["findings"]
    life.corner = Corner(
        **where,
        verdict_digest=said["verdict_digest"],
        model_digest=verdict["model_digest"],
        dataset_digest=verdict["dataset_digest"],
        champion=findings["champion"],
        gates=[GateDone(**_of(GateDone, gate)) for gate in verdict["results"]],
        figures=[FigureDone(**_of(FigureDone, figure)) for figure in findings["figures"]],
        rival=RivalDone(**_of(RivalDone, findings["rival"])) if findings["rival"] else None,
        curves=[CurveDone(**_of(CurveDone, curve)) for curve in curves["of"]],
        curve_rows=curves["rows"],
    )


def _of(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a document has, its texts bounded: other code may say more."""
    known = {name: fields[name] for name in kind.model_fields if name in fields}
    return {name: bounded(value) if isinstance(value, str) else value for name, value in known.items()}
