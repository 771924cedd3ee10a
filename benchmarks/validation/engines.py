"""One engine in one process: a Parquet file to the rows that break its rules. Prints its seconds and findings."""

import json
import sys
import time
from pathlib import Path
from typing import Any

PLANS, STATES = ["free", "paid", "trial"], r"^[A-Z]{2}$"


STARTED = [0.0]


def begin() -> None:
    """The imports are done: the clock starts."""
    STARTED[0] = time.perf_counter()


def platform(path: Path) -> dict[str, int]:
    from typing import Annotated

    import pandas as pd
    import pandera.pandas as pa
    import polars as pl
    import pyarrow.parquet as pq

    from ml_platform.contracts import compile_contract
    from ml_platform.pages import verify_pages
    from ml_platform.scans import Batch

    begin()

    class Orders(pa.DataFrameModel):
        number: int = pa.Field(ge=1)
        at: Annotated[pd.DatetimeTZDtype, "us", "UTC"] = pa.Field(nullable=True)
        low: float = pa.Field(nullable=True, ge=0)
        high: float = pa.Field(nullable=True)
        items: int = pa.Field(nullable=True, in_range={"min_value": 0, "max_value": 99})
        discount: float = pa.Field()
        weight: float = pa.Field(nullable=True)
        visits: int = pa.Field(nullable=True)
        plan: str = pa.Field(nullable=True, isin=PLANS)
        state: str = pa.Field(nullable=True, str_matches=STATES)
        score: float = pa.Field(nullable=True, le=1)
        stars: int = pa.Field(nullable=True)

        class Config:
            strict = True
            unique = ["number", "at"]  # noqa: RUF012

    # A rule between two columns: the wrapper that a class gives to such a check is not what is measured here.
    schema = Orders.to_schema()
    schema.columns["low"].nullable = schema.columns["high"].nullable = False
    schema.checks = [pa.Check(lambda frame: frame["low"] <= frame["high"], name="ordered")]
    metadata = pq.read_metadata(path)
    verify_pages(path)
    types = metadata.schema.to_arrow_schema().remove_metadata()
    batch = Batch(pl.scan_parquet(path), metadata.num_rows, types, metadata.num_rows)
    contract = compile_contract(schema, types.names)
    assert not contract.left_over
    return {f"{', '.join(one.columns)} {one.name}": len(one.examples) for one in batch.hold(contract)}


def polars(path: Path) -> dict[str, int]:
    import polars as pl

    begin()
    column = pl.col
    broken = {
        "number ge": column("number") < 1,
        "low ge": column("low") < 0,
        "items range": ~column("items").is_between(0, 99),
        "discount there": column("discount").is_null() | column("discount").is_nan(),
        "plan isin": ~column("plan").is_in(PLANS),
        "state matches": ~column("state").str.contains(STATES),
        "score le": column("score") > 1,
        "low high": column("low") > column("high"),
    }
    names = list(broken)
    rows = pl.scan_parquet(path).with_row_index("row")
    marked = rows.with_columns(rule.fill_null(value=False).alias(name) for name, rule in broken.items())
    values = ["number", "low", "high", "items", "discount", "plan", "state", "score"]
    bad = marked.filter(pl.any_horizontal(names)).select("row", *values, *names)
    keys = rows.group_by("number", "at").len().filter(pl.col("len") > 1)
    named, twice = pl.collect_all([bad, keys], engine="streaming")
    repeated = (
        rows.select("row", "number", "at")
        .join(twice.lazy(), on=["number", "at"], how="semi")
        .collect(engine="streaming")
    )
    return {**named.select(pl.col(names).sum()).row(0, named=True), "number unique": repeated.height}


def great_expectations(path: Path) -> dict[str, int]:
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    begin()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("orders").add_dataframe_asset("orders")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": pd.read_parquet(path)})
    suite = gx.ExpectationSuite(
        name="orders",
        expectations=[
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["number", "at"]),
            gxe.ExpectColumnValuesToBeBetween(column="number", min_value=1),
            gxe.ExpectColumnValuesToBeBetween(column="low", min_value=0),
            gxe.ExpectColumnValuesToBeBetween(column="items", min_value=0, max_value=99),
            gxe.ExpectColumnValuesToNotBeNull(column="discount"),
            gxe.ExpectColumnValuesToBeInSet(column="plan", value_set=PLANS),
            gxe.ExpectColumnValuesToMatchRegex(column="state", regex=STATES),
            gxe.ExpectColumnValuesToBeBetween(column="score", max_value=1),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="high", column_B="low", or_equal=True),
        ],
    )
    result = batch.validate(suite, result_format={"result_format": "COMPLETE"})
    return {f"{number} {one.expectation_config.type}": _named(one) for number, one in enumerate(result.results)}


def _named(one: Any) -> int:
    return len(one.result.get("unexpected_index_list") or [])


if __name__ == "__main__":
    counts = globals()[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"seconds": time.perf_counter() - STARTED[0], "findings": sum(counts.values())}))
