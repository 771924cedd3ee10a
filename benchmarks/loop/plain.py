"""The main job as a plain script: the same steps on the same files with the same libraries, and no platform.

It reads the exported files, keeps their bytes, validates them with pandera, appends them to a Delta table, reads it
back, splits by customer, trains, evaluates (metrics, latency, size), draws the curves, logs the run and registers the
model in MLflow, loads the model in a fresh process, compares its predictions, and sets the aliases.

Usage: plain.py FOLDER MLFLOW_DATABASE, where FOLDER/landing holds the files.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pandera.pandas as pa
from deltalake import DeltaTable, write_deltalake
from mlflow import MlflowClient
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["state", "area_code", "international_plan", "voice_mail_plan"]
TRUSTED = [
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._classification.f1_score",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
]
# What the fresh process runs: load from the registry, predict the golden rows, print.
FRESH = """
import sys, json, os, pandas as pd
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
import mlflow, mlflow.sklearn
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.sklearn.load_model(sys.argv[2])
print(json.dumps(model.predict_proba(pd.read_parquet(sys.argv[3]))[:, 1].tolist()))
"""


def schema() -> pa.DataFrameSchema:
    number = {"nullable": False}
    columns = {
        "customer": pa.Column(int, pa.Check.ge(1), **number),
        "observed_at": pa.Column(pd.DatetimeTZDtype("us", "UTC"), **number),
        "state": pa.Column(str, pa.Check.str_matches(r"^[A-Z]{2}$")),
        "area_code": pa.Column(str, pa.Check.str_matches(r"^area_code_[0-9]{3}$")),
    }
    for name in ("international_plan", "voice_mail_plan", "churn"):
        columns[name] = pa.Column(str, pa.Check.isin(["yes", "no"]))
    for name in ("account_length", "number_vmail_messages", "number_customer_service_calls"):
        columns[name] = pa.Column(int, [pa.Check.ge(0), pa.Check.le(1_000)])
    for part in ("day", "eve", "night", "intl"):
        columns[f"total_{part}_minutes"] = pa.Column(float, [pa.Check.ge(0), pa.Check.le(1_440)])
        columns[f"total_{part}_calls"] = pa.Column(int, [pa.Check.ge(0), pa.Check.le(1_000)])
        columns[f"total_{part}_charge"] = pa.Column(float, [pa.Check.ge(0), pa.Check.le(1_000)])
    return pa.DataFrameSchema(columns, strict=True)


def publish(folder: Path) -> Path:
    contract, table = schema(), folder / "rows"
    (folder / "raw").mkdir()
    for file in sorted((folder / "landing").glob("*.parquet")):
        data = file.read_bytes()
        (folder / "raw" / f"{hashlib.sha256(data).hexdigest()}.parquet").write_bytes(data)
        rows = contract.validate(pd.read_parquet(file), lazy=True)
        write_deltalake(table, rows, mode="append")
    return table


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    fraction = rows["customer"].map(
        lambda c: int.from_bytes(hashlib.sha256(f"churn\0{c}".encode()).digest()[:8], "big") / 2**64
    )
    return rows[fraction >= 0.2], rows[fraction < 0.2]


def train(rows: pd.DataFrame) -> Pipeline:
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    preprocess = ColumnTransformer([("categories", encode, CATEGORIES)], remainder="passthrough")
    trees = HistGradientBoostingClassifier(random_state=0)
    classify = TunedThresholdClassifierCV(trees, scoring="f1", cv=5, random_state=0)
    model = Pipeline([("preprocess", preprocess), ("classify", classify)])
    return model.fit(features(rows), (rows["churn"] == "yes").astype(int))


def features(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=["customer", "observed_at", "churn"])


def evaluate(model: Pipeline, rows: pd.DataFrame) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    labels = (rows["churn"] == "yes").astype(int).to_numpy()
    scores, positive = model.predict_proba(features(rows))[:, 1], model.predict(features(rows))
    times = []
    for record in features(rows).head(55).to_dict("records"):
        start = time.perf_counter()
        model.predict_proba(pd.DataFrame([record]))
        times.append(time.perf_counter() - start)
    found = {
        "accuracy": metrics.accuracy_score(labels, positive),
        "precision": metrics.precision_score(labels, positive),
        "recall": metrics.recall_score(labels, positive),
        "f1_score": metrics.f1_score(labels, positive),
        "brier_score": metrics.brier_score_loss(labels, scores),
        "auc_roc": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "inference_time_ms": float(np.percentile(times[5:], 95) * 1000),
    }
    return found, labels, scores


def draw(labels: np.ndarray, scores: np.ndarray, path: Path) -> None:
    figure, (roc, calibration) = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    false_positive, true_positive, _ = metrics.roc_curve(labels, scores)
    roc.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="chance")
    roc.plot(false_positive, true_positive, label="model")
    roc.set(title="ROC on the holdout", xlabel="False positive rate", ylabel="True positive rate")
    roc.legend(loc="lower right")
    observed, predicted = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    calibration.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="perfect")
    calibration.plot(predicted, observed, marker="o", label="model")
    calibration.set(title="Calibration", xlabel="Mean score", ylabel="Share positive")
    calibration.legend(loc="upper left")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main(folder: Path, uri: str) -> None:
    table = DeltaTable(publish(folder))
    rows = table.to_pandas().sort_values("customer")
    digest = hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()
    training, holdout = split(rows)
    model = train(training)
    found, labels, scores = evaluate(model, holdout)
    curves = folder / "curves.png"
    draw(labels, scores, curves)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    mlflow.set_experiment("plain")
    with mlflow.start_run():
        mlflow.log_metrics(found)
        mlflow.set_tags({"dataset_version": table.version(), "dataset_digest": digest})
        mlflow.log_artifact(str(curves))
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            serialization_format="skops",
            skops_trusted_types=TRUSTED,
            signature=mlflow.models.infer_signature(features(holdout).head(50), [0]),
            pip_requirements=["scikit-learn", "skops", "pandas", "numpy", "mlflow"],
            registered_model_name="plain",
        )
    assert found["auc_roc"] >= 0.80
    assert found["f1_score"] >= 0.70
    assert found["inference_time_ms"] <= 100
    version = info.registered_model_version
    client.set_registered_model_alias("plain", "challenger", version)
    golden = folder / "golden.parquet"
    features(holdout).head(50).to_parquet(golden)
    command = [sys.executable, "-c", FRESH, uri, f"models:/plain/{version}", str(golden)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == scores[:50].tolist()
    client.set_registered_model_alias("plain", "staging", version)
    client.set_registered_model_alias("plain", "champion", version)
    print(f"plain: version {version}, auc_roc {found['auc_roc']:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    shutil.rmtree(sys.argv[1], ignore_errors=True)
