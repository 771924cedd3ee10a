"""A CSV file truncated in the middle of its last number looks complete."""

import hashlib
import json
from pathlib import Path

import pytest

from ml_platform.data import datasets
from ml_platform.data.landing import scan_landing_zone
from ml_platform.platform import Platform
from ml_platform.records.data import Outcome
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import fakes
from ml_platform_tests.support.steps import publish

SPEC = fakes.visits_spec()


def truncate_in_number() -> tuple[bytes, bytes]:
    """Return a CSV file that ends with a number, and the file without the number's last digit."""
    rows = fakes.visits(100).assign(pages=123)
    whole = rows[[*rows.columns.drop("pages"), "pages"]].to_csv(index=False).encode()
    assert whole.endswith(b",123\n")
    return whole, whole[: -len(b"3\n")]


@pytest.mark.fault("D6")
def test_truncated_csv_below_manifest_size_waits(platform: Platform) -> None:
    whole, cut = truncate_in_number()
    manifest = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    path = fakes.landing(platform) / "visits" / "a.csv"
    path.write_bytes(cut)
    Path(f"{path}.manifest.json").write_text(json.dumps(manifest))

    scan = scan_landing_zone(platform, "visits", at_rest=True)

    assert scan.complete == []
    assert scan.examples == [f"a.csv: it has {len(cut):,} bytes, its manifest expects {len(whole):,}"]
    assert publish(platform) == []


@pytest.mark.fault("D6")
def test_truncated_csv_with_other_digest_is_quarantined(platform: Platform) -> None:
    whole, cut = truncate_in_number()
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
def test_truncated_csv_without_manifest_matches_the_documentation(
    platform: Platform,
) -> None:
    _, cut = truncate_in_number()
    (fakes.landing(platform) / "visits" / "a.csv").write_bytes(cut)

    (result,) = publish(platform)

    assert result.outcome is Outcome.PUBLISHED
    assert datasets.pin(platform.rows("visits"), SPEC)[1]["pages"].iloc[-1] == 12
    page = " ".join((PROJECT_ROOT / "docs" / "how-to" / "data.md").read_text().split())
    assert "a CSV file that was cut in the middle of its last number is published with what is left of it" in page
