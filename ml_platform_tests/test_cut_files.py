"""A CSV file that was cut in the middle of its last number: what is left of it looks whole."""

import hashlib
import json
from pathlib import Path

import pytest

from ml_platform import workflows
from ml_platform.records import BatchResult, Outcome
from ml_platform.settings import PROJECT_ROOT
from ml_platform.stages import datasets
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()


def publish(platform: Platform) -> list[BatchResult]:
    """Ingest what waits, complete or not."""
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return workflows.publish_batches(platform, SPEC, keys)


def cut_in_a_number() -> tuple[bytes, bytes]:
    """Return a CSV file whose last field is a number, and the same without the number's last digit."""
    rows = fakes.visits(100).assign(pages=123)
    whole = rows[[*rows.columns.drop("pages"), "pages"]].to_csv(index=False).encode()
    assert whole.endswith(b",123\n")
    return whole, whole[: -len(b"3\n")]


@pytest.mark.fault("D6")
def test_a_csv_that_was_cut_in_a_number_is_not_taken_before_it_has_the_size_of_its_manifest(platform: Platform) -> None:
    whole, cut = cut_in_a_number()
    manifest = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    path = fakes.landing(platform) / "visits" / "a.csv"
    path.write_bytes(cut)
    Path(f"{path}.manifest.json").write_text(json.dumps(manifest))

    look = workflows.look_for_arrivals(platform, "visits", at_rest=True)

    assert look.complete == []
    assert look.examples == [f"a.csv: {len(cut):,} of the {len(whole):,} bytes that its manifest names"]
    assert publish(platform) == []


@pytest.mark.fault("D6")
def test_a_csv_that_was_cut_in_a_number_is_quarantined_where_the_manifest_names_other_bytes(platform: Platform) -> None:
    whole, cut = cut_in_a_number()
    manifest = {"size": len(cut), "sha256": hashlib.sha256(whole).hexdigest()}
    path = fakes.landing(platform) / "visits" / "a.csv"
    path.write_bytes(cut)
    Path(f"{path}.manifest.json").write_text(json.dumps(manifest))

    (bad,) = publish(platform)

    assert bad.outcome is Outcome.QUARANTINED
    assert "its manifest names sha256" in bad.reason
    assert not platform.rows("visits").exists()
    assert publish(platform) == []
    fakes.drop(platform, "good.parquet", fakes.visits(100))
    assert [result.outcome for result in publish(platform)] == [Outcome.PUBLISHED]


@pytest.mark.fault("D6")
def test_what_becomes_of_a_csv_that_was_cut_in_a_number_without_a_manifest_is_what_the_readme_says(
    platform: Platform,
) -> None:
    _, cut = cut_in_a_number()
    (fakes.landing(platform) / "visits" / "a.csv").write_bytes(cut)

    (result,) = publish(platform)

    assert result.outcome is Outcome.PUBLISHED
    assert datasets.pin(platform.rows("visits"), SPEC)[1]["pages"].iloc[-1] == 12
    readme = " ".join((PROJECT_ROOT / "README.md").read_text().split())
    assert "a CSV file that was cut in the middle of its last number is published with what is left of it" in readme
