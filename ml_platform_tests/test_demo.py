import io

import pandas as pd

from ml_platform import demo
from ml_platform.defs.models.churn import churn
from ml_platform.stages import validation


def rows(files: dict[str, bytes]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(io.BytesIO(data)) for data in files.values()], ignore_index=True)


def test_the_exports_hold_the_shipped_rows_in_their_order() -> None:
    shipped = pd.read_parquet(demo.DATA)

    exported = rows(demo.exports())

    pd.testing.assert_frame_equal(exported[shipped.columns.tolist()], shipped)
    assert exported["customer"].tolist() == list(range(1, len(shipped) + 1))
    assert exported["observed_at"].is_monotonic_increasing


def test_the_exports_keep_the_contract() -> None:
    import pyarrow as pa

    for files in (demo.exports(), demo.shuffled_exports(), demo.next_export(demo.START)):
        report = validation.validate(pa.Table.from_pandas(rows(files), preserve_index=False), churn)
        assert report.findings == []


def test_shuffling_keeps_the_rows_and_moves_the_labels() -> None:
    true, shuffled = rows(demo.exports()), rows(demo.shuffled_exports())

    assert shuffled["churn"].value_counts().to_dict() == true["churn"].value_counts().to_dict()
    assert (shuffled["churn"] != true["churn"]).mean() > 0.2
    assert (shuffled["observed_at"] > true["observed_at"].max()).all()
    same = [name for name in true if name not in {"churn", "observed_at"}]
    pd.testing.assert_frame_equal(shuffled[same], true[same])


def test_the_next_export_is_newer_than_the_first_ones() -> None:
    first, later = rows(demo.exports()), rows(demo.next_export(demo.START))

    assert later["observed_at"].min() > first["observed_at"].max()
    assert set(later["customer"]) < set(first["customer"])
