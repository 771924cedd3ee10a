"""One engine in one process: a Parquet file to the rows that break its rules. Prints what `Answer` holds as JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

PLANS, STATES = ["free", "paid", "trial"], r"^[A-Z]{2}$"
# What the engines call the eight rules.
RULES = ("at least 1", "0 or more", "0 to 99", "there", "a plan", "a state", "1 or less", "low to high", "once")


class Answer(NamedTuple):
    """Result of one engine, and its time in seconds after its imports.

    Parameters
    ----------
    broken : dict
        By rule: how many rows break it, and the sum of their numbers.
    seconds, cpu : float
        Until every failing row was named, by the clock and of all threads together.
    keyed : float
        Until every failing row had the values of its key columns too; 0 where the engine was not asked for them.
    """

    broken: dict[str, tuple[int, int]]
    seconds: float
    cpu: float
    keyed: float = 0


class Watch:
    """Starts when it is made: the imports are done."""

    def __init__(self) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds since the start, by the clock and of all threads together."""
        return time.perf_counter() - self.start, time.process_time() - self.cpu_start


def summed(numbers: Iterable[int]) -> tuple[int, int]:
    there = [int(number) for number in numbers]
    return len(there), sum(there)


def platform(path: Path) -> Answer:
    """Ask the platform, and read the keys of the failing rows."""
    import polars as pl

    from ml_platform.data.validation import validate

    spec = orders_spec()
    watch = Watch()
    report = validate.validate_file(path, spec, named=sys.maxsize)
    seconds, cpu = watch.read()
    # Findings carry a row's place in the file. Its key columns are read for those who want them.
    assert report.bad is not None
    keys = pl.scan_parquet(path).select("number", "at").with_row_index("row")
    bad = pl.Series(report.bad.nonzero()[0], dtype=pl.UInt32)
    named = keys.filter(pl.col("row").is_in(bad.implode())).collect(engine="streaming")
    keyed, _ = watch.read()
    number = dict(zip(named["row"], named["number"], strict=True))
    names = {
        ("number", "greater_than_or_equal_to(1)"): "at least 1",
        ("low", "greater_than_or_equal_to(0)"): "0 or more",
        ("items", "in_range(0, 99)"): "0 to 99",
        ("discount", "not_nullable"): "there",
        ("plan", f"isin({PLANS})"): "a plan",
        ("state", f"str_matches('{STATES}')"): "a state",
        ("score", "less_than_or_equal_to(1)"): "1 or less",
        ("high, low", "ordered"): "low to high",
        ("number, at", "multiple_fields_uniqueness"): "once",
    }
    found: dict[str, list[int]] = {rule: [] for rule in names.values()}
    for one in report.broken:
        # Of an entity's rows at one time the platform keeps the first: a rule of its own beside the schema's.
        if one.name != "one row a time":
            found[names[", ".join(one.columns), one.name]] += [number[row] for row in one.rows]
    return Answer({rule: summed(numbers) for rule, numbers in found.items()}, seconds, cpu, keyed)


def orders_spec() -> Any:
    """Return the contract with the eight rules, as an author writes it."""
    from typing import Annotated

    import pandas as pd
    import pandera.pandas as pa

    from ml_platform.model_spec import ModelSpec

    class Orders(pa.DataFrameModel):
        number: int = pa.Field(ge=1)
        at: Annotated[pd.DatetimeTZDtype, "us", "UTC"]
        low: float = pa.Field(ge=0)
        high: float = pa.Field()
        items: int = pa.Field(in_range={"min_value": 0, "max_value": 99})
        discount: float = pa.Field()
        weight: float = pa.Field(nullable=True)
        visits: int
        plan: str = pa.Field(nullable=True, isin=PLANS)
        state: str = pa.Field(nullable=True, str_matches=STATES)
        score: float = pa.Field(nullable=True, le=1)
        stars: int

        @pa.dataframe_check
        def ordered(cls, frame: pd.DataFrame) -> Any:  # noqa: N805
            return frame["low"] <= frame["high"]

        class Config:
            strict = True
            unique = ["number", "at"]  # noqa: RUF012

    return ModelSpec(
        name="orders",
        description="What is measured.",
        contract=Orders,
        pipeline=lambda: None,
        entity="number",
        event_time="at",
        label="stars",
        positive=1,
    )


def polars(path: Path) -> Answer:
    """Ask a streaming scan that is written by hand."""
    import polars as pl

    watch = Watch()
    column = pl.col
    broken = {
        "at least 1": column("number") < 1,
        "0 or more": column("low") < 0,
        "0 to 99": ~column("items").is_between(0, 99),
        "there": column("discount").is_null() | column("discount").is_nan(),
        "a plan": ~column("plan").is_in(PLANS),
        "a state": ~column("state").str.contains(STATES),
        "1 or less": column("score") > 1,
        "low to high": column("low") > column("high"),
    }
    names = list(broken)
    rows = pl.scan_parquet(path).with_row_index("row")
    marked = rows.with_columns(rule.fill_null(value=False).alias(name) for name, rule in broken.items())
    values = ["number", "at", "low", "high", "items", "discount", "plan", "state", "score"]
    bad = marked.filter(pl.any_horizontal(names)).select("row", *values, *names)
    keys = rows.group_by("number", "at").len().filter(pl.col("len") > 1)
    named, twice = pl.collect_all([bad, keys], engine="streaming")
    repeated = (
        rows.select("row", "number", "at")
        .join(twice.lazy(), on=["number", "at"], how="semi")
        .collect(engine="streaming")
    )
    seconds, cpu = watch.read()
    found = {name: summed(named.filter(pl.col(name))["number"]) for name in names}
    return Answer({**found, "once": summed(repeated["number"])}, seconds, cpu, seconds)


def great_expectations_by_place(path: Path) -> Answer:
    watch, frame, results = expect(path, {"result_format": "COMPLETE"})
    seconds, cpu = watch.read()
    numbers = frame["number"]
    return Answer({rule: summed(numbers.iloc[places]) for rule, places in results.items()}, seconds, cpu)


def great_expectations_by_key(path: Path) -> Answer:
    named = {"result_format": "COMPLETE", "unexpected_index_column_names": ["number", "at"]}
    watch, _, results = expect(path, named)
    seconds, cpu = watch.read()
    return Answer(
        {rule: summed(row["number"] for row in rows) for rule, rows in results.items()}, seconds, cpu, seconds
    )


def expect(path: Path, result_format: dict[str, Any]) -> tuple[Watch, Any, dict[str, list[Any]]]:
    """Return the watch, the rows, and by rule how each failing row is named."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    watch = Watch()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    expected = {
        "once": gxe.ExpectCompoundColumnsToBeUnique(column_list=["number", "at"]),
        "at least 1": gxe.ExpectColumnValuesToBeBetween(column="number", min_value=1),
        "0 or more": gxe.ExpectColumnValuesToBeBetween(column="low", min_value=0),
        "0 to 99": gxe.ExpectColumnValuesToBeBetween(column="items", min_value=0, max_value=99),
        "there": gxe.ExpectColumnValuesToNotBeNull(column="discount"),
        "a plan": gxe.ExpectColumnValuesToBeInSet(column="plan", value_set=PLANS),
        "a state": gxe.ExpectColumnValuesToMatchRegex(column="state", regex=STATES),
        "1 or less": gxe.ExpectColumnValuesToBeBetween(column="score", max_value=1),
        "low to high": gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="high", column_B="low", or_equal=True),
    }
    for rule, expectation in expected.items():
        expectation.meta = {"rule": rule}
    suite = context.suites.add(gx.ExpectationSuite(name="orders", expectations=list(expected.values())))
    asset = context.data_sources.add_pandas("orders").add_dataframe_asset("orders")
    definition = gx.ValidationDefinition(
        name="all", data=asset.add_batch_definition_whole_dataframe("all"), suite=suite
    )
    frame = pd.read_parquet(path)
    validation = context.validation_definitions.add(definition)
    validated = validation.run(batch_parameters={"dataframe": frame}, result_format=result_format)
    assert not any(one.exception_info.get("raised_exception") for one in validated.results)
    named = {one.expectation_config.meta["rule"]: one.result.get("unexpected_index_list") for one in validated.results}
    return watch, frame, {rule: rows or [] for rule, rows in named.items()}


ENGINES: dict[str, Callable[[Path], Answer]] = {
    engine.__name__: engine for engine in (platform, polars, great_expectations_by_place, great_expectations_by_key)
}

if __name__ == "__main__":
    answer = ENGINES[sys.argv[1]](Path(sys.argv[2]))
    assert set(answer.broken) == set(RULES)
    print(json.dumps(answer._asdict()))
