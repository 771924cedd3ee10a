"""Pin a version of a model's rows as a training dataset, check it and profile it."""

import logging
from typing import TYPE_CHECKING

from ml_platform.data import dataset_checks, datasets, golden_datasets
from ml_platform.data import profile as data_profile
from ml_platform.data.dataset_checks import DatasetReport
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import DatasetVersion
from ml_platform.storage import atomic_files, delta_table

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")


def pin_dataset(platform: Platform, spec: ModelSpec) -> DatasetReport:
    """Pin the newest version of a model's table and check it.

    Raises
    ------
    DatasetError
        Nothing was published yet.
    """
    dataset, rows = _pin_newest(platform, spec)
    platform.database.record_dataset(dataset)
    log.info("dataset version %s: %s rows, digest %s", dataset.version, f"{dataset.rows:,}", dataset.digest[:12])
    report = dataset_checks.build_dataset_report(dataset, rows, dataset_checks.target(rows, spec), spec)
    for problem in report.problems.values():
        log.info("dataset version %s must not be trained on: %s", dataset.version, problem)
    return report


def _pin_newest(platform: Platform, spec: ModelSpec) -> tuple[DatasetVersion, "pd.DataFrame"]:
    """Pin the newest version; make a new one if it is pinned with the rows that the other value of `rows` selects."""
    table = platform.rows(spec.name)
    dataset, rows = datasets.pin(table, spec)
    pinned = platform.database.newest_dataset(spec.name)
    if pinned and pinned.version == dataset.version and pinned.digest != dataset.digest:
        other = spec.model_copy(update={"rows": "newest" if spec.rows == "all" else "all"})
        if datasets.pin(table, other, dataset.version)[0].digest == pinned.digest:
            delta_table.commit_nothing(table)
            return datasets.pin(table, spec)
    return dataset, rows


def golden_problems(platform: Platform, spec: ModelSpec) -> dict[str, str]:
    """Return the errors of a model's golden datasets, by name."""
    return golden_datasets.problems(platform.settings.golden_dir, spec)


def profile_dataset(platform: Platform, spec: ModelSpec, dataset: DatasetVersion) -> data_profile.Profile:
    """Profile a dataset version and its change since the previously pinned one; write the page with the profile."""
    table, before = platform.rows(spec.name), platform.database.dataset_before(dataset)
    rows = datasets.read_version(table, spec, dataset.version)
    earlier = None if before is None else datasets.read_version(table, spec, before.version)
    profile = data_profile.profile(rows, earlier, spec)
    page = data_profile.draw(profile, dataset, before)
    atomic_files.write(platform.profile_page(dataset), page.encode())
    return profile
