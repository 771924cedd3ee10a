"""The included data as a warehouse would export them: several files, in row order.

The data have neither customer ids nor times. Row order replaces both: ``customer`` is the row's number, and
``observed_at`` starts at 2024-01-01 UTC with one minute between rows (data/README.md).
"""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform.errors import ConfigurationError
from ml_platform.settings import PROJECT_ROOT

if TYPE_CHECKING:
    import pandas as pd

DATA = PROJECT_ROOT / "data" / "churn.parquet"
START = datetime(2024, 1, 1, tzinfo=UTC)
SHUFFLED_START = datetime(2025, 1, 1, tzinfo=UTC)
ENTITY, EVENT_TIME = "customer", "observed_at"
FILES = 5
DAYS_BETWEEN_EXPORTS = 7


def exports(
    data: Path = DATA, *, entity: str = ENTITY, event_time: str = EVENT_TIME, name: str = "customers-2024-01-01"
) -> dict[str, bytes]:
    """Return all rows as Parquet files by name, a fifth of the rows each, in row order.

    Row order replaces the columns `entity` and `event_time` if the data lack them.
    """
    return _split(_observed(_read(data), START, entity, event_time), name)


def shuffled_exports(data: Path = DATA) -> dict[str, bytes]:
    """Return the same customers, observed a year later, with shuffled labels: there is nothing to learn."""
    rows = _read(data)
    rows["churn"] = rows["churn"].sample(frac=1, random_state=0).to_numpy()
    return _split(_observed(rows, SHUFFLED_START), "shuffled-2025-01-01")


def next_export(newest: datetime | None, data: Path = DATA) -> dict[str, bytes]:
    """Return another export: a fifth of the customers, observed again a week after the newest published row.

    The data have no later rows, so these repeat earlier ones with a later time.

    Parameters
    ----------
    newest : datetime or None
        Time of the newest published row, None if there is none.

    Raises
    ------
    ConfigurationError
        `newest` is None, so there is no export to follow.
    """
    if newest is None:
        raise ConfigurationError("Nothing is published yet, so there is no next export. Run this first: make demo")
    start = newest + timedelta(days=DAYS_BETWEEN_EXPORTS)
    rows = _observed(_read(data), start).iloc[start.toordinal() % FILES :: FILES]
    return {f"customers-{start:%Y-%m-%d}.parquet": _parquet(rows)}


def newest_time(table: Path) -> datetime | None:
    """Return the newest time of the published rows; ``None`` if there are none."""
    import pyarrow.compute as pc
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(table)):
        return None
    newest: datetime | None = pc.max(DeltaTable(table).to_pyarrow_table(columns=["observed_at"])["observed_at"]).as_py()
    return newest


def _read(data: Path) -> "pd.DataFrame":
    import pandas as pd

    if not data.is_file():
        raise ConfigurationError(f"The demo's data file {data} is missing. Restore it: git checkout data/.")
    return pd.read_parquet(data)


def _observed(
    rows: "pd.DataFrame", start: datetime, entity: str = ENTITY, event_time: str = EVENT_TIME
) -> "pd.DataFrame":
    import pandas as pd

    times = pd.date_range(start, periods=len(rows), freq="min", unit="us")
    columns: dict[str, Any] = {entity: range(1, len(rows) + 1), event_time: times}
    return rows.assign(**{name: values for name, values in columns.items() if name not in rows})


def _split(rows: "pd.DataFrame", name: str) -> dict[str, bytes]:
    size = -(-len(rows) // FILES)
    return {f"{name}-{part + 1}.parquet": _parquet(rows.iloc[part * size : (part + 1) * size]) for part in range(FILES)}


def _parquet(rows: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()
