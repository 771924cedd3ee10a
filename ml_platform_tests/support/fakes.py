"""Small real objects: a model that trains in milliseconds, rows to learn from, a platform in a folder, records.

Nothing here replaces code under test: the schema is a pandera schema, the pipeline a scikit-learn pipeline, the
registry MLflow on SQLite, and verdicts come from the gates.
"""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import sqlalchemy as sa

from ml_platform.database import PlatformDatabase
from ml_platform.evaluation import gates
from ml_platform.inference.parity import Parity
from ml_platform.model_spec import Comparison, Gate, ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import now, sha256_text
from ml_platform.records.ledger import Registration
from ml_platform.records.verdict import Candidate, Evaluation, Lineage, Measurement, Reference, Verdict
from ml_platform.settings import Settings
from ml_platform.storage.mlflow_registry import VERDICT_FILE
from ml_platform.storage.model_files import MODEL_FILE


class _Seen(pa.DataFrameModel):
    """Columns of a web shop's visitors that all models share."""

    visitor: int = pa.Field(ge=1)
    seen_at: Annotated[pd.DatetimeTZDtype, "us", "UTC"]
    pages: int = pa.Field(ge=0, le=1_000)
    seconds: float = pa.Field(ge=0)
    plan: str = pa.Field(isin=["free", "paid"])


class Visits(_Seen):
    """A web shop's visitors; the label is a purchase."""

    bought: str = pa.Field(isin=["yes", "no"])

    class Config:
        strict = True


class VisitsWithTrials(Visits):
    """The contract of ``Visits`` with a third plan."""

    plan: str = pa.Field(isin=["free", "paid", "trial"])


class KindsOfVisits(_Seen):
    """A web shop's visitors; the label is one of three kinds."""

    kind: str = pa.Field(isin=["few", "some", "many"])

    class Config:
        strict = True


class SpendingVisits(_Seen):
    """A web shop's visitors; the label is an amount of money."""

    spent: float

    class Config:
        strict = True


def visits(n: int = 400, *, seed: int = 0, first: int = 1, day: int = 1, signal: float = 3.0) -> pd.DataFrame:
    """Return visitors `first` to `first + n - 1`, seen on a day of January 2024.

    With `signal` 0 the label depends on nothing.
    """
    random = np.random.default_rng(seed)
    pages = random.integers(0, 50, n)
    paid = random.random(n) < 0.5
    odds = signal * ((pages - 25) / 12 + np.where(paid, 0.7, -0.7))
    bought = random.random(n) < 1 / (1 + np.exp(-odds))
    start = pd.Timestamp(f"2024-01-{day:02}", tz="UTC")
    return pd.DataFrame(
        {
            "visitor": np.arange(first, first + n),
            "seen_at": pd.date_range(start, periods=n, freq="s", unit="us"),
            "pages": pages,
            "seconds": random.random(n) * 100,
            "plan": np.where(paid, "paid", "free"),
            "bought": np.where(bought, "yes", "no"),
        }
    ).astype({"plan": "str", "bought": "str"})


def visits_pipeline() -> Any:
    """Return logistic regression on scaled numbers and one-hot categories."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = [
        ("numbers", StandardScaler(), ["pages", "seconds"]),
        ("categories", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
    ]
    return Pipeline([("preprocess", ColumnTransformer(columns)), ("classify", LogisticRegression())])


def visits_spec(**changes: Any) -> ModelSpec:
    """Return the model ``visits``, with some of its declarations changed.

    No gate asks for time, which would cost each test a process of two seconds.
    """
    declared: dict[str, Any] = {
        "name": "visits",
        "description": "Who is about to buy.",
        "contract": Visits,
        "pipeline": visits_pipeline,
        "entity": "visitor",
        "event_time": "seen_at",
        "label": "bought",
        "positive": "yes",
        "min_rows": 50,
        "approval": "automatic",
        "gates": (
            Gate(metric="auc_roc", at_least=0.8),
            Gate(metric="f1_score", at_least=0.7),
            Gate(metric="model_size_mb", at_most=10),
        ),
    }
    return ModelSpec(**{**declared, **changes})


def kinds_spec(**changes: Any) -> ModelSpec:
    """Return the model of three kinds of visitors, with some of its declarations changed."""
    declared: dict[str, Any] = {
        "contract": KindsOfVisits,
        "pipeline": visits_pipeline,
        "label": "kind",
        "task": "multiclass",
        "positive": None,
        "gates": (Gate(metric="accuracy", at_least=0.6), Gate(metric="f1_macro", at_least=0.5, on="confidence_bound")),
        "comparison": Comparison(metric="accuracy", margin=0.05),
    }
    return visits_spec(**{**declared, **changes})


def kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return visits with their kind, which depends on the pages and, for one in ten, on nothing."""
    noise = np.random.default_rng(0).random(len(rows)) < 0.1
    kind = pd.cut(rows["pages"].where(~noise, rows["seconds"] / 2), [-1, 15, 32, 100], labels=["few", "many", "some"])
    return rows.drop(columns="bought").assign(kind=kind.astype("str"))


def spending_pipeline() -> Any:
    """Return linear regression on scaled numbers and one-hot categories."""
    from sklearn.linear_model import LinearRegression

    return visits_pipeline().set_params(classify=LinearRegression())


def spending_spec(**changes: Any) -> ModelSpec:
    """Return the model of a visitor's spending, with some of its declarations changed."""
    declared: dict[str, Any] = {
        "contract": SpendingVisits,
        "pipeline": spending_pipeline,
        "label": "spent",
        "task": "regression",
        "positive": None,
        "gates": (
            Gate(metric="r2", at_least=0.5),
            Gate(metric="mean_absolute_error", at_most=20, on="confidence_bound"),
        ),
        "comparison": Comparison(metric="mean_absolute_error", margin=1.0),
    }
    return visits_spec(**{**declared, **changes})


def spending(rows: pd.DataFrame) -> pd.DataFrame:
    """Return visits with their spending, which depends on the pages and on luck."""
    luck = np.random.default_rng(0).normal(0, 10, len(rows))
    return rows.drop(columns="bought").assign(spent=rows["pages"] * 2.0 + luck)


def platform_in(folder: Path) -> Platform:
    """Return a platform with its state in a folder, independent of the environment."""
    settings = Settings(home=folder)
    (folder / "landing" / "visits").mkdir(parents=True, exist_ok=True)
    return Platform(settings.model_copy(update={"mlflow_tracking_uri": None, "database_url": None}))


def landing(platform: Platform) -> Path:
    """Return the folder that is a platform's landing zone."""
    return Path(platform.settings.landing)


def parquet_bytes(rows: pd.DataFrame) -> bytes:
    """Return rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def drop(platform: Platform, name: str, rows: pd.DataFrame, model: str = "visits") -> Path:
    """Write rows into the landing zone, in the format of the name's ending."""
    path = landing(platform) / model / name
    writers: dict[str, Any] = {".parquet": rows.to_parquet, ".csv": rows.to_csv}
    writers[path.suffix](path, index=False)
    return path


def evaluation(spec: ModelSpec, **metrics: float | None) -> Evaluation:
    """Return an evaluation exactly on the bounds of a model's gates, where they still pass.

    Given metrics replace those; None omits one. The first model's reference is the baseline.
    """
    on_the_bounds = {gate.metric: gate.bound for gate in spec.gates}
    found = {name: value for name, value in {**on_the_bounds, **metrics}.items() if value is not None}
    return Evaluation(
        measurements=[Measurement(metric=name, value=value, low=value, high=value) for name, value in found.items()],
        reference=beaten(spec),
    )


def beaten(spec: ModelSpec, **changes: Any) -> Reference | None:
    """Return the baseline of a model, clearly beaten on 200 rows, with some of its fields changed."""
    if spec.comparison is None:
        return None
    made = Reference(
        kind="baseline",
        name=spec.stated_baseline,
        metric=spec.comparison.metric,
        rows=200,
        difference=0.4,
        low=0.3,
        high=0.5,
        p_better=0.0,
    )
    return replace(made, **changes)


@contextmanager
def on_loopback(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve with a handler on a free port of loopback; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Alertmanager:
    """A part of Alertmanager: a server on loopback that stores posted alerts.

    Parameters
    ----------
    status : int
        The status of its answers.
    """

    def __init__(self, status: int = 200) -> None:
        self.status, self.taken = status, list[dict[str, Any]]()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; yield the address."""
        taken, status = self.taken, self.status

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/api/v2/alerts":
                    taken.extend(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        with on_loopback(Handler) as address:
            yield address


def candidate(identifier: str = "20240101-000000-00000001", **changes: Any) -> Candidate:
    """Return a candidate of the model ``visits`` whose digests are those of its name."""
    lineage = Lineage(
        dataset_version=3,
        dataset_digest=sha256_text("dataset"),
        code_revision="0" * 40,
        lock_digest=sha256_text("lock"),
        reason="schedule",
    )
    made = Candidate(
        id=identifier,
        model="visits",
        model_digest=sha256_text(identifier),
        lineage=lineage,
        trained_at=now(),
        requested_at=now(),
    )
    return replace(made, **changes)


def uncompared_spec(**changes: Any) -> ModelSpec:
    """Return the model ``visits`` without a comparison, so that promotions need no reference."""
    return visits_spec(comparison=None, **changes)


def verdict(of: Candidate, **metrics: float | None) -> Verdict:
    """Return the verdict on a candidate: every gate passes, except on the given metrics."""
    return verdict_by(visits_spec(), of, **metrics)


def verdict_by(spec: ModelSpec, of: Candidate, **metrics: float | None) -> Verdict:
    """Return the verdict on a candidate by the gates of a model; see `verdict`."""
    return gates.judge(of, evaluation(spec, **metrics), spec)


def parity(**changes: Any) -> Parity:
    """Return a parity check that passed, with some of its fields changed."""
    return replace(Parity(passed=True, why=None, compiler=sha256_text("compiler"), model_digest="0" * 64), **changes)


def registration(of: Candidate, version: int) -> Registration:
    """Return the candidate's registration under a version number."""
    return Registration(model=of.model, version=version, candidate=of.id)


def behind_the_triggers(database: PlatformDatabase, *statements: str) -> None:
    """Change the ledger without its triggers, as the owner of the database could."""
    sqlite = database.engine.dialect.name == "sqlite"
    names = ("ledger_no_update", "ledger_no_delete", "ledger_no_replace")
    with database.engine.begin() as connection:
        for name in names if sqlite else ():
            connection.execute(sa.text(f"DROP TRIGGER IF EXISTS {name}"))
        if not sqlite:
            connection.execute(sa.text("ALTER TABLE ledger DISABLE TRIGGER USER"))
        for statement in statements:
            connection.execute(sa.text(statement))


def store_verdict(platform: Platform, verdict: Verdict) -> None:
    """Store a verdict as the platform does: in the log of heads, the database and MLflow's run of its candidate."""
    platform.ledger_anchor.append_verdict(verdict)
    platform.database.record_verdict(verdict)
    of = platform.database.candidate(verdict.candidate)
    with TemporaryDirectory() as folder:
        (Path(folder) / VERDICT_FILE).write_text(verdict.document)
        run_id = platform.registry.record_run(of, verdict, Path(folder))
    platform.database.link_mlflow_run(of.id, run_id)


def staged_version(platform: Platform, **changes: Any) -> Registration:
    """Return a staged version: its bytes are stored and in MLflow, and its verdict passes.

    The verdict is by the gates of `uncompared_spec`. Its bytes are not a model; a promotion reads only their digest.
    """
    from mlflow import MlflowClient

    number = len(list((platform.settings.home / "models" / "visits" / "candidates").glob("*"))) + 1
    identifier = f"candidate-{number}"
    made = candidate(identifier, **changes)
    folder = platform.candidate_folder(made)
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_text(identifier)  # candidate() has its sha256
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    if not client.search_registered_models("name = 'visits'"):
        client.create_registered_model("visits")
    shown = shutil.copytree(folder, platform.settings.artifacts / identifier)
    version = int(client.create_model_version("visits", shown.as_uri()).version)
    platform.database.record_candidate(made)
    store_verdict(platform, verdict_by(uncompared_spec(), made))
    platform.database.record_registration(registration(made, version))
    platform.database.mark_staged(registration(made, version))
    return registration(made, version)


def copied_platform(origin: Path, home: Path) -> Platform:
    """Return a platform that starts as a copy of another one's home, which must be closed."""
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    shutil.copytree(origin, home)
    _artifact_repos_cache.clear()  # by run: the runs of all copies have the same ids
    opened = platform_in(home)
    # MLflow's database must name the copied files, not the originals.
    engine = sa.create_engine(opened.settings.tracking_uri)
    paths = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    moved = {"origin": str(origin), "home": str(home)}
    with engine.begin() as connection:
        for table, column in paths:
            statement = f"UPDATE {table} SET {column} = replace({column}, :origin, :home)"  # noqa: S608 - names from above
            connection.execute(sa.text(statement), moved)
    engine.dispose()
    return opened
