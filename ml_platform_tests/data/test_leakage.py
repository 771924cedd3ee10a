"""Features that give the label away, also with missing values, as times and as text."""

from datetime import date, timedelta
from decimal import Decimal
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.data.leakage import MIN_OTHER_ROWS, MIN_ROWS, TEXT_ROWS, find_leaking_features
from ml_platform.model_spec import Task
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()


def labelled(n: int = 400) -> tuple[pd.DataFrame, Any]:
    rows = fakes.visits(n)
    return rows[SPEC.features], (rows["bought"] == "yes").to_numpy().astype("int64")


def scores(features: pd.DataFrame, labels: Any, task: Task = "binary") -> dict[str, float]:
    return {name: leak.score for name, leak in find_leaking_features(features, labels, task).items()}


def test_leaks_honest_features_are_accepted() -> None:
    features, labels = labelled()

    assert find_leaking_features(features, labels) == {}


@pytest.mark.parametrize("sign", [1, -1])
def test_leaks_number_equal_to_label_is_found(sign: int) -> None:
    features, labels = labelled()

    assert scores(features.assign(copy=sign * labels), labels) == {"copy": 1.0}


def test_leaks_category_equal_to_label_is_found() -> None:
    features, labels = labelled()

    assert scores(features.assign(copy=np.where(labels == 1, "y", "n")), labels) == {"copy": 1.0}


def test_leak_score_equals_auc_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    _, labels = labelled()
    almost = pd.DataFrame({"almost": labels.astype(float)})
    almost.loc[[0, 1], "almost"] = 0.5

    assert scores(almost, labels) == pytest.approx({"almost": roc_auc_score(labels, almost["almost"])})


def test_leaks_unique_categories_are_accepted() -> None:
    _, labels = labelled()

    assert find_leaking_features(pd.DataFrame({"id": [f"v{i}" for i in range(len(labels))]}), labels) == {}


def test_leaks_constant_category_rare_class_is_accepted() -> None:
    labels = np.array([1] + [0] * 199)

    assert find_leaking_features(pd.DataFrame({"same": ["x"] * 200}), labels) == {}


@pytest.mark.parametrize("label", [0, 1])
def test_leaks_single_class_has_none(label: int) -> None:
    features = pd.DataFrame({"a": range(40), "gaps": [1.0, None] * 20})

    assert find_leaking_features(features, np.array([label] * 40)) == {}


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_leaks_of_several_classes_are_found(random: np.random.Generator) -> None:
    labels = random.choice(["a", "b", "c"], 600)
    codes = np.searchsorted(["a", "b", "c"], labels)
    features = pd.DataFrame(
        {
            "text": np.char.add("is ", labels),
            "number": codes * -2,
            "spread": codes + random.random(600) * 0.99,
            "noise": random.random(600),
            "other": random.choice(["x", "y"], 600),
            "hint": np.where(random.random(600) < 0.5, codes, 0),
        }
    )

    assert set(find_leaking_features(features, labels, "multiclass")) == {"text", "number", "spread"}


def test_leaks_of_numeric_label_are_found(random: np.random.Generator) -> None:
    labels = random.choice([1.0, 5.0, 9.0], 600)
    features = pd.DataFrame(
        {
            "copy": labels,
            "grown": -np.exp(labels),
            "text": labels.astype("str"),
            "noise": random.random(600),
            "constant": 1,
            "hint": labels + random.normal(0, 2, 600),
            "other": random.choice(["x", "y"], 600),
            "id": [f"v{i}" for i in range(600)],
        }
    )

    assert set(find_leaking_features(features, labels, "regression")) == {"copy", "grown", "text"}


CLASSES = np.array(["a", "b", "c"])
FEW = settings(max_examples=60, deadline=None, database=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
tasks = st.sampled_from(get_args(Task))


def draw_labels(random: np.random.Generator, task: Task, n: int) -> Any:
    """Draw innocent labels: rare or even classes, or numbers with outliers or many zeros."""
    if task == "binary":
        return (random.random(n) < random.choice([0.01, 0.1, 0.5, 0.9])).astype("int64")
    if task == "multiclass":
        return random.choice(CLASSES, n, p=random.dirichlet([0.7] * 3))
    return random.pareto(0.7, n) if random.random() < 0.5 else np.where(random.random(n) < 0.9, 0, random.random(n))


def draw_features(random: np.random.Generator, n: int, missing: float) -> pd.DataFrame:
    """Draw features that know nothing of the label, with a share of missing values."""
    words = random.choice(["red", "blue", "green"], n)
    features = pd.DataFrame(
        {
            "number": random.normal(size=n),
            "count": random.poisson(0.05, n),
            "truth": random.random(n) < 0.1,
            "time": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(random.random(n) * 100, unit="D"),
            "category": words,
            "long tail": (random.pareto(0.5, n) % 1_000).astype("int64").astype("str"),
            "text": [f"{word} {number:x}" for word, number in zip(words, random.integers(0, 2**40, n), strict=True)],
        }
    )
    return features.mask(random.random(features.shape) < missing)


@pytest.mark.fault("D27")
@FEW
@given(seed=seeds, task=tasks, n=st.sampled_from([20, 60, 300, 1_000]), missing=st.sampled_from([0, 0.02, 0.6, 0.95]))
def test_leaks_innocent_features_have_none(seed: int, task: Task, n: int, missing: float) -> None:
    random = np.random.default_rng(seed)

    assert find_leaking_features(draw_features(random, n, missing), draw_labels(random, task, n), task) == {}


@pytest.mark.fault("D27")
@FEW
@given(seed=seeds, task=tasks, missing=st.sampled_from([0.01, 0.02, 0.3, 0.6, 0.8]))
def test_leaks_copy_with_gaps_is_found(seed: int, task: Task, missing: float) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2 if task == "binary" else 3, 600)
    labels = CLASSES[codes] if task == "multiclass" else codes * 2.5 if task == "regression" else codes
    copies = pd.DataFrame({"number": codes * -3.0, "text": np.char.add("is ", codes.astype("str"))})
    copies["time"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(codes, unit="D")
    copies["nullable"] = copies["number"].astype("Int64")
    copies["spread"] = codes + random.random(600) * 0.5

    found = scores(copies.mask(random.random(copies.shape) < missing), labels, task)

    exact = {name: score for name, score in found.items() if name != "spread"}
    assert exact == pytest.approx(dict.fromkeys(["number", "text", "time", "nullable"], 1.0))
    # Bins of few rows mix classes at their borders, and ranks of values that vary between the steps correlate less.
    if task == "binary" or (task == "multiclass" and missing <= 0.02):
        assert 0.99 <= found["spread"] <= 1


@pytest.mark.fault("D27")
@pytest.mark.parametrize("task", get_args(Task))
def test_leaks_missing_for_one_label_is_found(random: np.random.Generator, task: Task) -> None:
    codes = random.integers(0, 2, 400)
    labels = {"binary": codes, "multiclass": CLASSES[codes], "regression": 50 * codes + random.random(400)}[task]
    features = pd.DataFrame({"number": random.random(400), "text": random.choice(["x", "y"], 400)})

    found = find_leaking_features(features.where(np.c_[codes, codes] == 1), labels, task)

    assert {name: leak.clue for name, leak in found.items()} == dict.fromkeys(features, "by its missing values")
    assert scores(features.where(np.c_[codes, codes] == 1), labels, task) == pytest.approx(
        dict.fromkeys(features, 1.0), abs=0.001
    )


@pytest.mark.fault("D27")
@pytest.mark.parametrize("sign", [1, -1])
def test_leaks_gaps_and_values_together_are_found(random: np.random.Generator, sign: int) -> None:
    """The 300 positive rows have high values; of the 100 negative rows 3 have a low value and 97 have none."""
    labels = np.array([1] * 300 + [0] * 100)
    number = np.r_[random.random(300) + 5, [1.0] * 3, [np.nan] * 97]
    features = pd.DataFrame({"number": sign * number, "text": [*"ab" * 150, *"ccc", *[None] * 97]})

    leaks = find_leaking_features(features, labels)

    assert {name: leak.score for name, leak in leaks.items()} == pytest.approx({"number": 1, "text": 0.9925})
    assert {leak.clue for leak in leaks.values()} == {"with missing as a value"}


@pytest.mark.fault("D27")
@pytest.mark.parametrize(("present", "leaks"), [(MIN_ROWS - 1, False), (MIN_ROWS, True)])
def test_leaks_copy_on_few_rows_is_accepted(present: int, leaks: bool) -> None:
    labels = np.arange(400) % 2
    copy = pd.DataFrame({"copy": np.where(np.arange(400) < present, labels, np.nan)})

    assert bool(find_leaking_features(copy, labels)) is leaks


@pytest.mark.parametrize(("positives", "leaks"), [(MIN_OTHER_ROWS - 1, False), (MIN_OTHER_ROWS, True)])
def test_leaks_few_positives_are_accepted(positives: int, leaks: bool) -> None:
    labels = (np.arange(400) < positives).astype("int64")

    assert bool(find_leaking_features(pd.DataFrame({"copy": labels}), labels)) is leaks


@pytest.mark.fault("D27")
@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("{filler}{extra}", "by its length"),
        ("{letter}{number}", "by its first character"),
        ("{number}{letter}", "by its last character"),
        ("p{word}-{number}p", "by its first word"),
        ("p{number}-p{word}p", "by its last word"),
        ("p{word}{number}p", "by its text without numbers"),
        ("p{number}-p{word}-{hex}p", "by its common words"),
        ("p {name} and {word} {name} p", "by its common words"),
        ("{name} {one_sided} {name}", "by its common words"),
        ("costs {amount} EUR in p{number}p", "by its first number"),
    ],
)
@pytest.mark.parametrize("missing", [0, 0.3])
def test_leaks_unique_text_shows_label(random: np.random.Generator, text: str, clue: str, missing: float) -> None:
    labels = random.integers(0, 2, 400)
    values = [
        text.format(
            filler="".join(random.choice(list("pqrs"), 30)),
            extra="p" * label,
            letter="yn"[label],
            word=["won", "met"][label],
            number=random.integers(10**8, 10**9),
            name="".join(random.choice(list("pqrs"), 8)),
            one_sided="met" if label else "".join(random.choice(list("pqrs"), 3)),
            hex=f"{random.integers(2**40, 2**44):x}7",
            amount=label * 100 + random.random() * 50,
        )
        for label in labels
    ]
    column = pd.Series(values).mask(random.random(400) < missing)

    leak = find_leaking_features(pd.DataFrame({"text": column}), labels)["text"]

    assert leak.score == pytest.approx(1)
    assert leak.clue == (f"{clue} on its {column.count()} rows with a value" if missing else clue)


@pytest.mark.fault("D27")
def test_leaks_number_in_text_shows_numeric_label(random: np.random.Generator) -> None:
    labels = random.pareto(1, 400)
    texts = pd.DataFrame({"text": [f"{label:.9f}" for label in labels], "noise": [f"{x}" for x in random.random(400)]})

    leaks = find_leaking_features(texts, labels, "regression")

    assert {name: leak.score for name, leak in leaks.items()} == {"text": pytest.approx(1)}
    assert leaks["text"].clue == "by its first number"


@pytest.mark.fault("D27")
@pytest.mark.parametrize("column", ["time", "date", "duration", "decimal", "truth"])
@pytest.mark.parametrize("missing", [0, 0.3])
def test_leaks_times_and_truth_values_are_found(random: np.random.Generator, column: str, missing: float) -> None:
    labels = random.integers(0, 2, 400)
    days = labels * 400 + random.integers(0, 400, 400)
    features = pd.DataFrame(
        {
            "time": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(days, unit="D"),
            "date": [date(2026, 1, 1) + timedelta(days=int(day)) for day in days],
            "duration": pd.to_timedelta(days, unit="D"),
            "decimal": [Decimal(int(day)) / 8 for day in days],
            "truth": labels == 1,
        }
    )
    features = features.mask(random.random(features.shape) < missing)

    leak = find_leaking_features(features, labels)[column]

    assert leak.score == pytest.approx(1)
    assert leak.clue == (f"on its {features[column].count()} rows with a value" if missing else "")


@pytest.mark.fault("D27")
def test_leaks_text_of_large_dataset_is_found(random: np.random.Generator) -> None:
    n = 2 * TEXT_ROWS
    labels = random.integers(0, 2, n)
    texts = pd.Series(labels.astype("str")) + "-" + pd.Series(random.permutation(n)).astype("str")
    features = pd.DataFrame({"text": texts.mask(random.random(n) < 0.3)}).set_index(np.arange(n) % 7)

    assert scores(features, labels) == {"text": 1.0}


def test_leaks_long_texts_take_bounded_time() -> None:
    """The time of a search for the last word in all of a text grows with the square of its length."""
    texts = pd.DataFrame({"text": [f"{'a' * 100_000}!{number}" for number in range(10, 50)]})

    assert find_leaking_features(texts, np.arange(40) % 2) == {}


@pytest.mark.parametrize("values", [["!", "?.", "-"], ["", " ", "  "], [None, None, None]])
def test_leaks_texts_without_words_are_accepted(values: list[str | None]) -> None:
    texts = [value and value + "." * number for number, value in enumerate(values * 20)]

    assert find_leaking_features(pd.DataFrame({"text": texts}), np.arange(60) // 2 % 2) == {}


@pytest.mark.fault("D27")
def test_leaks_outlier_in_rare_category_is_accepted(random: np.random.Generator) -> None:
    labels = np.r_[random.random(199), 1e9]
    features = pd.DataFrame({"category": [*"ab" * 98, *"cdef"], "gap": [*[1.0] * 199, np.nan]})

    assert find_leaking_features(features, labels, "regression") == {}


def test_leaks_rare_class_in_rare_categories_is_accepted() -> None:
    labels = np.r_[np.zeros(191, int), np.ones(9, int)]
    features = pd.DataFrame({"category": [*["common"] * 170, *[f"c{n}" for n in range(30)]]})

    assert find_leaking_features(features, labels) == {}
