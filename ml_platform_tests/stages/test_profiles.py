"""A dataset version described, and drawn on a page that loads nothing."""

from html.parser import HTMLParser

import pandas as pd
import pytest

from ml_platform.records import DatasetVersion
from ml_platform.stages import profiles
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
NOW = DatasetVersion(model="visits", version=2, digest="0" * 64, rows=400)
THEN = DatasetVersion(model="visits", version=1, digest="1" * 64, rows=400)


def column(profile: profiles.Profile, name: str) -> profiles.ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def test_the_first_version_has_nothing_to_differ_from() -> None:
    profile = profiles.profile(fakes.visits(), None, SPEC)

    assert [c.name for c in profile.columns] == ["bought", "pages", "seconds", "plan"]
    assert profile.change is None
    assert profile.moved == []
    assert sum(column(profile, "pages").now) == pytest.approx(1)
    assert "The first version" in profiles.draw(profile, NOW, None)


def test_who_came_went_and_changed_is_counted() -> None:
    before = fakes.visits(100)
    rows = pd.concat(
        [before.iloc[10:].assign(seen_at=before["seen_at"] + pd.Timedelta("1D")), fakes.visits(5, first=900)]
    )
    rows["pages"] = [999] * 3 + rows["pages"].tolist()[3:]

    change = profiles.profile(rows, before, SPEC).change

    assert change == profiles.Change(came=5, went=10, changed=3, share_changed=18 / 105)


def test_a_column_that_moved_far_is_named_and_no_other() -> None:
    before = fakes.visits(2_000)
    rows = before.assign(seconds=before["seconds"] + 60)

    profile = profiles.profile(rows, before, SPEC)

    assert profile.moved == ["seconds"]
    assert column(profile, "pages").psi == 0
    assert "Moved far: seconds" in profiles.draw(profile, NOW, THEN)


def test_missing_values_constants_and_many_categories_are_drawn() -> None:
    rows = fakes.visits(100).assign(seconds=float("nan"), pages=7, plan=[f"<b>{n}</b>" for n in range(100)])

    profile = profiles.profile(rows, fakes.visits(100), SPEC)
    page = profiles.draw(profile, NOW, THEN)

    assert column(profile, "seconds").missing == 1
    assert column(profile, "plan").labels[-1] == "all others"
    assert "<b>" not in page
    assert "nan" not in page
    assert column(profile, "seconds").figures == "no values"


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = profiles.draw(profiles.profile(fakes.visits(), fakes.visits(seed=1), SPEC), NOW, THEN)
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Tags().feed(page)

    assert {"svg", "rect", "section"} <= {tag for tag, _ in tags}
    assert {tag for tag, _ in tags} & {"script", "img", "link", "iframe"} == set()
    assert all("src" not in attributes and "href" not in attributes for _, attributes in tags)
