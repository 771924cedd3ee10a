"""The shipped data, landed the way a warehouse export would drop it: several files, in row order.

The set has no customer id and no time. Row order stands in for both: ``customer`` is the row's number and
``observed_at`` is one minute a row from 2024-01-01 UTC (data/README.md).
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
    """Return the whole set as Parquet files by name, a fifth of the rows each, in row order.

    Columns `entity` and `event_time` that the set has are left as they are; row order stands in for those that it has
    not.
    """
    return _in_parts(_observed(_read(data), START, entity, event_time), name)


def shuffled_exports(data: Path = DATA) -> dict[str, bytes]:
    """Return the same customers, observed a year later, with labels dealt out at random: nothing can be learnt."""
    rows = _read(data)
    rows["churn"] = rows["churn"].sample(frac=1, random_state=0).to_numpy()
    return _in_parts(_observed(rows, SHUFFLED_START), "shuffled-2025-01-01")


def next_export(newest: datetime | None, data: Path = DATA) -> dict[str, bytes]:
    """Return one more export: a fifth of the customers, observed again a week after the newest published row.

    The set has no later rows, so these repeat earlier ones under a later time.

    Raises
    ------
    ConfigurationError
        `newest` is None: nothing was published that this one could come after.
    """
    if newest is None:
        raise ConfigurationError("Nothing is published yet that another export could follow. Run this first: make demo")
    start = newest + timedelta(days=DAYS_BETWEEN_EXPORTS)
    rows = _observed(_read(data), start).iloc[start.toordinal() % FILES :: FILES]
    return {f"customers-{start:%Y-%m-%d}.parquet": _parquet(rows)}


def newest_time(table: Path) -> datetime | None:
    """Return the newest time of the published rows; ``None`` where there are none."""
    import pyarrow.compute as pc
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(table)):
        return None
    newest: datetime | None = pc.max(DeltaTable(table).to_pyarrow_table(columns=["observed_at"])["observed_at"]).as_py()
    return newest


def _read(data: Path) -> "pd.DataFrame":
    import pandas as pd

    if not data.is_file():
        raise ConfigurationError(f"The demonstration's data {data} are missing. Restore them: git checkout data/.")
    return pd.read_parquet(data)


def _observed(
    rows: "pd.DataFrame", start: datetime, entity: str = ENTITY, event_time: str = EVENT_TIME
) -> "pd.DataFrame":
    import pandas as pd

    times = pd.date_range(start, periods=len(rows), freq="min", unit="us")
    stand_ins: dict[str, Any] = {entity: range(1, len(rows) + 1), event_time: times}
    return rows.assign(**{name: values for name, values in stand_ins.items() if name not in rows})


def _in_parts(rows: "pd.DataFrame", name: str) -> dict[str, bytes]:
    size = -(-len(rows) // FILES)
    return {f"{name}-{part + 1}.parquet": _parquet(rows.iloc[part * size : (part + 1) * size]) for part in range(FILES)}


def _parquet(rows: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()
