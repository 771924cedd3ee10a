"""Tests of scoring files in bulk: correct predictions, reports of invalid rows, bounded memory."""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from typer.testing import CliRunner

from ml_platform.cli import app
from ml_platform.errors import (
    ConfigurationError,
    DigestMismatchError,
    EvidenceError,
    ModelError,
    TooLargeError,
    UnreadableFileError,
)
from ml_platform.inference.contract_builder import build_request_contract
from ml_platform.inference.predictor import Answers, Predictor
from ml_platform.platform import Platform
from ml_platform.serving import batch_scoring
from ml_platform.serving.batch_scoring import BulkModel, Scored, score_file
from ml_platform_tests.support import fakes

MAX_BYTES = 2**30
FEATURES = ["pages", "seconds", "plan"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    rows = fakes.visits(300)
    return Predictor(fakes.visits_pipeline().fit(rows[FEATURES], rows["bought"] == "yes"), "ab" * 32)


@pytest.fixture(scope="module")
def model(predictor: Predictor) -> BulkModel:
    rows = fakes.visits(300)
    contract = build_request_contract(fakes.visits_spec(), predictor.pipeline, rows, predictor.scores(rows[FEATURES]))
    ways = predictor.for_records(contract)
    return BulkModel(
        contract=contract,
        version=3,
        digest=predictor.digest,
        predict=ways.predict_records,
        predict_frame=ways.predict_frame,
    )


def score_lines(source: Path, model: BulkModel) -> tuple[Scored, list[dict[str, Any]]]:
    stream = io.BytesIO()
    scored = score_file(source, model, stream, MAX_BYTES)
    return scored, [json.loads(line) for line in stream.getvalue().splitlines()]


def write_gz(rows: pd.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(rows.to_csv(index=False).encode()))


def write_delta(rows: pd.DataFrame, path: Path) -> None:
    for start in range(0, len(rows), 500):
        write_deltalake(path, pa.Table.from_pandas(rows[start : start + 500], preserve_index=False), mode="append")


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".parquet": lambda rows, path: rows.to_parquet(path, index=False),
    ".csv": lambda rows, path: rows.to_csv(path, index=False),
    ".csv.gz": write_gz,
    ".jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True, date_format="iso"),
    "": write_delta,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_format_gives_the_models_own_predictions(
    suffix: str, model: BulkModel, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scoring, "ROWS_AT_ONCE", 40)
    monkeypatch.setattr(batch_scoring, "TYPED_ROWS_AT_ONCE", 40)
    rows = fakes.visits(100, seed=5, first=901)
    source = tmp_path / f"new{suffix}"
    WRITERS[suffix](rows, source)

    scored, lines = score_lines(source, model)

    assert (scored.rows, scored.refused, scored.problems) == (100, 0, [])
    assert scored.ignored == ["seen_at", "bought"]
    assert [line["row"] for line in lines] == list(range(100))
    assert [line["entity"] for line in lines] == list(range(901, 1_001))
    np.testing.assert_allclose([line["score"] for line in lines], predictor.scores(rows[FEATURES]), rtol=1e-12)
    assert [line["prediction"] for line in lines] == predictor.predictions(rows[FEATURES]).tolist()
    assert {(line["model"], line["version"], line["digest"]) for line in lines} == {("visits", 3, "ab" * 32)}


@pytest.mark.parametrize("suffix", batch_scoring.OUTPUTS)
def test_output_has_the_format_of_its_suffix(suffix: str, model: BulkModel, tmp_path: Path) -> None:
    fakes.visits(10).drop(columns="visitor").to_parquet(tmp_path / "new.parquet")
    out = tmp_path / "out" / f"scored{suffix}"

    score_file(tmp_path / "new.parquet", model, out, MAX_BYTES)

    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".jsonl": lambda path: pd.read_json(path, lines=True),
    }
    frame = readers[suffix](out)
    columns = ["row", "entity", "prediction", "score", "anomaly_score", "model", "version", "digest"]
    assert list(frame.columns) == columns
    assert frame["row"].tolist() == list(range(10))
    assert frame["entity"].isna().all()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", batch_scoring.OUTPUTS)
def test_multiclass_output_has_a_list_of_scores(suffix: str, tmp_path: Path) -> None:
    rows = fakes.kinds(fakes.visits(300))
    fitted = Predictor(fakes.visits_pipeline().fit(rows[FEATURES], rows["kind"]), "")
    contract = build_request_contract(fakes.kinds_spec(), fitted.pipeline, rows, fitted.scores(rows[FEATURES]))
    predict = fitted.for_records(contract).predict_records
    rows.to_parquet(tmp_path / "new.parquet")
    out = tmp_path / f"scored{suffix}"

    score_file(
        tmp_path / "new.parquet", BulkModel(contract=contract, version=1, digest="", predict=predict), out, MAX_BYTES
    )

    if suffix == ".parquet":
        scores = pq.read_table(out)["scores"].to_pylist()
    else:
        csv = suffix == ".csv"
        texts = pd.read_csv(out)["scores"] if csv else out.read_text().splitlines()
        scores = [json.loads(text) if csv else json.loads(text)["scores"] for text in texts]
    np.testing.assert_allclose(scores, fitted.scores(rows[FEATURES]), rtol=1e-12)


def test_invalid_rows_are_reported_and_others_scored(
    model: BulkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scoring, "ROWS_AT_ONCE", 16)
    rows = fakes.visits(50).astype({"pages": "object"})
    rows.loc[20, "pages"], rows.loc[21, "plan"], rows.loc[49, "seconds"] = -1, "none such", np.nan
    rows.to_csv(tmp_path / "new.csv", index=False)

    scored, lines = score_lines(tmp_path / "new.csv", model)

    assert (scored.rows, scored.refused) == (47, 3)
    assert scored.problems == [
        "record 20: 'pages' must be at least 0. Got -1 instead",
        "record 21: 'plan' must be one of ['free', 'paid']. Got 'none such' instead",
        "record 49: 'seconds' must not be empty",
    ]
    assert [line["row"] for line in lines] == [row for row in range(50) if row not in {20, 21, 49}]


def test_at_most_ten_problems_are_reported(model: BulkModel, tmp_path: Path) -> None:
    fakes.visits(40).assign(pages=-1).to_parquet(tmp_path / "new.parquet")

    scored, lines = score_lines(tmp_path / "new.parquet", model)

    assert (scored.rows, scored.refused, len(scored.problems), lines) == (0, 40, 10, [])


@pytest.mark.parametrize(
    "text", ["1_000", "1.5", "nan", "٤", "many", " 7", "99999999999999999999", "+7", "0x7", "9" * 5_000]
)
def test_unusual_text_is_not_parsed_as_number(text: str, model: BulkModel, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(f"pages,seconds,plan\n{text},1.5,free\n7,+2,paid\n08,2e1,paid\n")

    scored, lines = score_lines(tmp_path / "new.csv", model)

    assert (scored.refused, [line["row"] for line in lines]) == (1, [1, 2])
    assert "'pages'" in scored.problems[0]


def test_malformed_lines_are_reported(model: BulkModel, tmp_path: Path) -> None:
    good = b'{"pages": 7, "seconds": 2.5, "plan": "paid", "extra": 1}\n'
    (tmp_path / "new.jsonl").write_bytes(good + b'{"pages": NaN}\n[1]\n\xff\n' + good)
    scored, lines = score_lines(tmp_path / "new.jsonl", model)
    assert (scored.refused, [line["row"] for line in lines], scored.ignored) == (3, [0, 4], ["extra"])
    assert scored.problems[0] == "record 1: must be a JSON object in UTF-8"

    (tmp_path / "new.csv").write_text("pages,seconds,plan\n7,2.5\n7,2.5,paid\n")
    scored, lines = score_lines(tmp_path / "new.csv", model)
    assert (scored.problems, [line["row"] for line in lines]) == (
        ["record 0: must have 3 values, one for each column. Got 2 instead"],
        [1],
    )


def test_unreadable_file_leaves_no_output(model: BulkModel, tmp_path: Path) -> None:
    cases = {
        "cut.parquet": b"PAR1",
        "latin.csv": "pages,seconds,plan\n1,2,caf\xe9\n".encode("latin-1"),
        "empty.csv": b"",
        "lacks.csv": b"pages,plan\n1,free\n",
        "twice.csv": b"pages,pages,seconds,plan\n1,1,2,free\n",
        "cut.csv.gz": gzip.compress(b"pages,seconds,plan\n" + b"1,2,free\n" * 999)[:40],
        "notes.txt": b"pages",
        "long.jsonl": b"[" * 2 * batch_scoring.LONGEST_LINE,
    }
    out = tmp_path / "out" / "scored.parquet"
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableFileError, match=name):
            score_file(tmp_path / name, model, out, MAX_BYTES)
    with pytest.raises(UnreadableFileError, match="could not be read as a Delta table"):
        score_file(tmp_path, model, out, MAX_BYTES)
    with pytest.raises(UnreadableFileError, match="none such"):
        score_file(tmp_path / "none such.csv", model, out, MAX_BYTES)
    assert list(out.parent.iterdir()) == []
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"pages,seconds,plan\n" + b"\n" * 10**6))
    with pytest.raises(TooLargeError):
        score_file(tmp_path / "bomb.csv.gz", model, out, 10**5)
    with pytest.raises(ConfigurationError, match=r"must end in one of .* Got 'scored\.xlsx' instead"):
        score_file(tmp_path / "cut.parquet", model, tmp_path / "scored.xlsx", MAX_BYTES)


@pytest.mark.fault("M1")
def test_scores_that_are_not_finite_are_refused(model: BulkModel, tmp_path: Path) -> None:
    fakes.visits(3).to_parquet(tmp_path / "new.parquet")

    def predict_nan_for_second(records: list[Any]) -> Answers:
        scores = [0.5, float("nan"), 0.5]
        return Answers(scores[: len(records)], [1, 1, 1])

    broken = BulkModel(contract=model.contract, version=1, digest="", predict=predict_nan_for_second)
    scored, lines = score_lines(tmp_path / "new.parquet", broken)

    assert (scored.rows, scored.refused, [line["row"] for line in lines]) == (2, 1, [0, 2])
    assert "not finite" in scored.problems[0]


def test_error_of_a_failing_model_quotes_no_data(model: BulkModel, tmp_path: Path) -> None:
    fakes.visits(3).to_parquet(tmp_path / "new.parquet")

    def predict_with_error(records: list[Any]) -> Answers:
        raise ValueError(f"invalid record {records[0]}")

    broken = BulkModel(contract=model.contract, version=1, digest="", predict=predict_with_error)
    with pytest.raises(ModelError, match=r"failed to predict rows 0 to 2, .* \(ValueError\)") as caught:
        score_file(tmp_path / "new.parquet", broken, tmp_path / "out.csv", MAX_BYTES)
    assert "invalid record" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("suffix", WRITERS)
def test_scored_rows_are_written_before_further_reading(
    suffix: str, model: BulkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scoring, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(batch_scoring, "TYPED_ROWS_AT_ONCE", 100)
    WRITERS[suffix](fakes.visits(1_000), tmp_path / f"new{suffix}")
    stream, calls = io.BytesIO(), list[tuple[int, int]]()

    def predict_and_record(records: list[Any]) -> Answers:
        calls.append((len(records), stream.getvalue().count(b"\n")))
        return model.predict(records)

    observed = BulkModel(contract=model.contract, version=1, digest="", predict=predict_and_record)
    score_file(tmp_path / f"new{suffix}", observed, stream, MAX_BYTES)

    assert calls == [(100, 100 * number) for number in range(10)]


class Wide(fakes.Visits):
    """Visits with rules and types of each kind, and missing values."""

    visitor: str  # type: ignore[assignment]
    pages: float = pandera.Field(ge=0, lt=1_000, nullable=True)  # type: ignore[assignment]
    seconds: float = pandera.Field(gt=0)
    plan: str = pandera.Field(isin=["free", "paid"], nullable=True)
    count: int = pandera.Field(ge=-5, notin=[3])
    code: str = pandera.Field(str_matches="^[a-z]{2}$")
    note: str = pandera.Field(nullable=True)
    member: bool


def build_wide_model() -> tuple[BulkModel, list[tuple[str, str]]]:
    """Return a model of `Wide`, and a list to which it adds how it was called."""
    spec = fakes.visits_spec(contract=Wide)
    count = 300
    rows = fakes.visits(count).assign(
        visitor=[f"v{number}" for number in range(count)],
        pages=lambda visits: visits["pages"].astype("float64"),
        count=np.arange(count) % 3,
        code=np.resize(["ab", "cd"], count),
        note="n",
        member=np.arange(count) % 2 == 0,
    )
    encode = ColumnTransformer(
        [("text", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["plan", "code", "note"])],
        remainder="passthrough",
    )
    classify = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    fitted = Pipeline([("encode", encode), ("classify", classify)]).fit(rows[spec.features], rows["bought"] == "yes")
    predictor, calls = Predictor(fitted, "ab" * 32), list[tuple[str, str]]()
    contract = build_request_contract(spec, fitted, rows, predictor.scores(rows[spec.features]))
    ways = predictor.for_records(contract)

    def by_rows(records: list[Any]) -> Answers:
        calls.append(("rows", str(len(records))))
        return ways.predict_records(records)

    def by_columns(frame: pd.DataFrame) -> Any:
        calls.append(("columns", str(len(frame))))
        return ways.predict_frame(frame)

    return BulkModel(contract=contract, version=3, digest="ab" * 32, predict=by_rows, predict_frame=by_columns), calls


WIDE, CALLS = build_wide_model()
GOOD_ROW = {
    "visitor": "v",
    "pages": 2.0,
    "seconds": 1.5,
    "plan": "free",
    "count": 1,
    "code": "ab",
    "note": "n",
    "member": True,
}
CELLS: dict[str, list[Any]] = {
    "visitor": [None, "", "\u2028", "v" * 300],
    "pages": [None, np.nan, 0.0, -0.0, np.nextafter(1_000, 0), 1_000.0, -5e-324, np.inf, -np.inf, 999.0],
    "seconds": [None, np.nan, 0.0, 5e-324, -1.0, np.inf, 1e308],
    "plan": [None, "paid", "gratis", ""],
    "count": [None, -5, -6, 3, 2**53 + 1, 2**63 - 1, -(2**63)],
    "code": [None, "zz", "a", "abc", "Ab", "\u00e9e", ""],
    "note": [None, "", "other", "n" * 1_000],
    "member": [None, False],
}
KINDS = {"pages": pa.float64(), "seconds": pa.float64(), "count": pa.int64(), "member": pa.bool_()}
cells = st.sampled_from([(name, value) for name, values in CELLS.items() for value in values])


def write_wide(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(
        pa.table({name: pa.array([row[name] for row in rows], KINDS.get(name, pa.string())) for name in GOOD_ROW}), path
    )
    return path


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CELLS.items() for value in values])
def test_columns_and_rows_judge_cell_alike(name: str, value: Any, tmp_path: Path) -> None:
    rows = [{**GOOD_ROW, "count": -5}, {**GOOD_ROW, name: value}, {**GOOD_ROW, "count": 5}]
    source = write_wide(rows, tmp_path / "new.parquet")

    assert score_lines(source, WIDE) == score_lines(source, replace(WIDE, predict_frame=None))


TEXTS = {
    "visitor": ["", " ", "\u2028", '"a\nb"'],
    "pages": [
        "",
        "nan",
        "+NaN",
        "-inf",
        "1e400",
        "1e-400",
        ".5",
        "5.",
        "+5",
        "0x1A",
        "1_0",
        " 7",
        "999.9999999999999999",
        "-0.0",
    ],
    "seconds": ["", "nan", "1e999", "0.1", "4.35", "1.7976931348623157e308", "\u0663"],
    "count": [
        "",
        "007",
        "-0",
        "+1",
        "1.0",
        "3",
        "9223372036854775808",
        "-9223372036854775809",
        "1e2",
        "9007199254740993",
    ],
    "member": ["", "true", "True", "TRUE", "1", "0", "False", "yes", "tRue"],
    "plan": ["", "paid", "Paid", "NA", "null"],
    "note": ["", "NaN", "1", "\u00e9"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_columns_and_rows_judge_text_alike(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {**dict(zip(GOOD_ROW, map(str, GOOD_ROW.values()), strict=True))}
    lines = [{**row, "count": "-5"}, {**row, name: text}, {**row, "count": "5"}]
    source = tmp_path / "new.csv"
    source.write_text("\n".join([",".join(GOOD_ROW), *(",".join(line.values()) for line in lines), ""]))
    by_columns = score_lines(source, WIDE)
    monkeypatch.setattr(batch_scoring, "_convert_cells", lambda *_: None)

    assert score_lines(source, WIDE) == by_columns


def test_csv_cells_without_value_cost_few_rows(tmp_path: Path) -> None:
    rows = pd.DataFrame([GOOD_ROW] * 2_000).astype({"pages": "object"})
    rows.loc[[700, 701], "pages"] = ["x", "1e400"]
    rows.to_csv(tmp_path / "new.csv", index=False)
    CALLS.clear()

    scored, lines = score_lines(tmp_path / "new.csv", WIDE)

    assert (scored.rows, scored.refused) == (1_998, 2)
    assert [line["row"] for line in lines] == [row for row in range(2_000) if row not in {700, 701}]
    assert CALLS == [("columns", "500"), ("rows", "498"), ("columns", "1000")]


@settings(deadline=None, max_examples=10)
@given(
    changes=st.dictionaries(st.integers(0, 29), st.lists(cells, min_size=1, max_size=2), max_size=6),
    at_once=st.sampled_from([7, 30]),
    few=st.sampled_from([1, 4, 30]),
)
def test_columns_and_rows_give_same_output(changes: dict[int, list[tuple[str, Any]]], at_once: int, few: int) -> None:
    rows = [{**GOOD_ROW, **dict(changes.get(number, []))} for number in range(30)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch_scoring, "TYPED_ROWS_AT_ONCE", at_once)
        patched.setattr(batch_scoring, "FEW_ROWS", few)
        source = write_wide(rows, Path(folder) / "new.parquet")

        by_columns, lines = score_lines(source, WIDE)
        by_rows, expected = score_lines(source, replace(WIDE, predict_frame=None))
        for suffix in (".parquet", ".csv"):
            for name, model in (("columns", WIDE), ("rows", replace(WIDE, predict_frame=None))):
                score_file(source, model, Path(folder) / f"{name}{suffix}", MAX_BYTES)
        tables = [pq.read_table(Path(folder) / f"{name}.parquet") for name in ("columns", "rows")]
        texts = [(Path(folder) / f"{name}.csv").read_text() for name in ("columns", "rows")]

    assert lines == expected
    assert by_columns == by_rows
    assert tables[0].equals(tables[1])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("bad", [0, 1])
def test_valid_rows_are_predicted_by_columns(bad: int, tmp_path: Path) -> None:
    rows = [{**GOOD_ROW, "seconds": -1.0} if number < bad else GOOD_ROW for number in range(2_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "new.parquet")
    CALLS.clear()

    scored, _ = score_lines(tmp_path / "new.parquet", WIDE)

    assert (scored.rows, scored.refused) == (2_000 - bad, bad)
    assert ([("rows", "499"), ("columns", "500"), ("columns", "1000")] if bad else [("columns", "2000")]) == CALLS


# The command


def run_predict(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", "visits", *map(str, arguments)])


def test_command_scores_by_champion_or_earlier_champion(served: Platform, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ML_PLATFORM_HOME", str(served.settings.home))
    fakes.visits(20).to_parquet(tmp_path / "new.parquet")

    printed = run_predict(tmp_path / "new.parquet")
    written = run_predict(tmp_path / "new.parquet", "--version", 1, "--out", tmp_path / "scored.parquet")

    assert (printed.exit_code, written.exit_code) == (0, 0), printed.output + written.output
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    champion, first = lines[0], pq.read_table(tmp_path / "scored.parquet").to_pylist()[0]
    assert (len(lines), champion["version"], first["version"], first["model"]) == (20, 3, 1, "visits")
    for row in (champion, first):
        registration = served.database.registration("visits", row["version"])
        assert registration is not None
        assert row["digest"] == served.database.candidate(registration.candidate).model_digest
    assert "20 rows scored by version 1 of visits, 0 refused" in written.stderr
    assert "columns that the model does not use were ignored: seen_at, bought" in written.stderr


def test_command_reports_invalid_rows_and_exits_1(served: Platform, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ML_PLATFORM_HOME", str(served.settings.home))
    fakes.visits(20).assign(pages=[*range(8), *[-1] * 12]).to_csv(tmp_path / "new.csv", index=False)

    result = run_predict(tmp_path / "new.csv")

    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 8
    assert "8 rows scored by version 3 of visits, 12 refused" in result.stderr
    assert "record 8: 'pages' must be at least 0. Got -1 instead" in result.stderr
    assert "only the first 10 problems are listed" in result.stderr


@pytest.mark.fault("M3")
def test_version_with_changed_bytes_is_refused(served: Platform) -> None:
    for file in served.settings.home.rglob("model.skops"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(DigestMismatchError, match="cannot be served"):
        batch_scoring.load_model(served, "visits", None)


def test_version_that_never_was_champion_is_refused(served: Platform, platform: Platform) -> None:
    with pytest.raises(EvidenceError, match="never had version 17 as its champion"):
        batch_scoring.load_model(served, "visits", 17)
    with pytest.raises(EvidenceError, match="has no champion yet"):
        batch_scoring.load_model(platform, "visits", None)
