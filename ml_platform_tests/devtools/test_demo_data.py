import io

import pandas as pd

from ml_platform.data.validation import validate
from ml_platform.devtools import demo_data
from ml_platform.models.churn import churn


def rows(files: dict[str, bytes]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(io.BytesIO(data)) for data in files.values()], ignore_index=True)


def test_exports_keep_rows_and_order() -> None:
    shipped = pd.read_parquet(demo_data.DATA)

    exported = rows(demo_data.exports())

    pd.testing.assert_frame_equal(exported[shipped.columns.tolist()], shipped)
    assert exported["customer"].tolist() == list(range(1, len(shipped) + 1))
    assert exported["observed_at"].is_monotonic_increasing


def test_exports_satisfy_the_contract() -> None:
    import pyarrow as pa

    for files in (demo_data.exports(), demo_data.shuffled_exports(), demo_data.next_export(demo_data.START)):
        report = validate.validate(pa.Table.from_pandas(rows(files), preserve_index=False), churn)
        assert report.violations == []


def test_shuffled_exports_keep_rows_but_move_labels() -> None:
    true, shuffled = rows(demo_data.exports()), rows(demo_data.shuffled_exports())

    assert shuffled["churn"].value_counts().to_dict() == true["churn"].value_counts().to_dict()
    assert (shuffled["churn"] != true["churn"]).mean() > 0.2
    assert (shuffled["observed_at"] > true["observed_at"].max()).all()
    same = [name for name in true if name not in {"churn", "observed_at"}]
    pd.testing.assert_frame_equal(shuffled[same], true[same])


def test_next_export_is_newer_than_first() -> None:
    first, later = rows(demo_data.exports()), rows(demo_data.next_export(demo_data.START))

    assert later["observed_at"].min() > first["observed_at"].max()
    assert set(later["customer"]) < set(first["customer"])
