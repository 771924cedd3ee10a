"""The profile of a dataset version, and its page, which loads nothing."""

from html.parser import HTMLParser

import pandas as pd
import pytest

from ml_platform.data import profile as data_profile
from ml_platform.records.data import DatasetVersion
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
NOW = DatasetVersion(model="visits", version=2, digest="0" * 64, rows=400)
THEN = DatasetVersion(model="visits", version=1, digest="1" * 64, rows=400)


def column(profile: data_profile.Profile, name: str) -> data_profile.ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def test_first_version_has_no_change() -> None:
    profile = data_profile.profile(fakes.visits(), None, SPEC)

    assert [c.name for c in profile.columns] == ["bought", "pages", "seconds", "plan"]
    assert profile.change is None
    assert profile.moved == []
    assert sum(column(profile, "pages").now) == pytest.approx(1)
    assert "The first version" in data_profile.draw(profile, NOW, None)


def test_new_removed_and_changed_entities_are_counted() -> None:
    before = fakes.visits(100)
    rows = pd.concat(
        [before.iloc[10:].assign(seen_at=before["seen_at"] + pd.Timedelta("1D")), fakes.visits(5, first=900)]
    )
    rows["pages"] = [999] * 3 + rows["pages"].tolist()[3:]

    change = data_profile.profile(rows, before, SPEC).change

    assert change == data_profile.Change(came=5, went=10, changed=3, share_changed=18 / 105)


def test_only_columns_that_moved_far_are_named() -> None:
    before = fakes.visits(2_000)
    rows = before.assign(seconds=before["seconds"] + 60)

    profile = data_profile.profile(rows, before, SPEC)

    assert profile.moved == ["seconds"]
    assert column(profile, "pages").psi == 0
    assert "Moved far: seconds" in data_profile.draw(profile, NOW, THEN)


def test_missing_values_and_many_categories_are_drawn() -> None:
    rows = fakes.visits(100).assign(seconds=float("nan"), pages=7, plan=[f"<b>{n}</b>" for n in range(100)])

    profile = data_profile.profile(rows, fakes.visits(100), SPEC)
    page = data_profile.draw(profile, NOW, THEN)

    assert column(profile, "seconds").missing == 1
    assert column(profile, "plan").labels[-1] == "all others"
    assert "<b>" not in page
    assert "nan" not in page
    assert column(profile, "seconds").figures == "no values"


def test_profile_page_loads_nothing() -> None:
    page = data_profile.draw(data_profile.profile(fakes.visits(), fakes.visits(seed=1), SPEC), NOW, THEN)
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Tags().feed(page)

    assert {"svg", "rect", "section"} <= {tag for tag, _ in tags}
    assert {tag for tag, _ in tags} & {"script", "img", "link", "iframe"} == set()
    assert all("src" not in attributes and "href" not in attributes for _, attributes in tags)


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ([-1.7e308, 1.7e308], [0.0, 1.0]),
        ([1.0, 2.0], ["a", "b"]),
        (["a", "b"], [1.0, 2.0]),
        ([1e300, 1e300], [1.0, 2.0]),
    ],
    ids=["largest range", "text before", "numbers before", "constant"],
)
def test_profile_of_extreme_or_changed_columns(now: list[object], then: list[object]) -> None:
    spec = fakes.visits_spec()
    shared = {spec.entity: [1, 2], spec.label: [0, 1]}
    frames = [
        pd.DataFrame({**shared, name: values} | {n: [1.0, 2.0] for n in spec.features if n != name})
        for name, values in ((spec.features[0], now), (spec.features[0], then))
    ]

    profile = data_profile.profile(frames[0], frames[1], spec)

    shares = column(profile, spec.features[0])
    assert sum(shares.now) == pytest.approx(1)
    assert shares.then is not None
    assert shares.psi is not None
