from ml_platform import workflows
from ml_platform.records import Outcome
from ml_platform.workflows import Platform
from ml_platform_tests import fakes


def publish(platform: Platform) -> list[Outcome]:
    spec = fakes.visits_spec()
    keys = [arrival.key for arrival in workflows.waiting_arrivals(platform, "visits")]
    workflows.keep_raw_batches(platform, "visits", keys)
    return [result.outcome for result in workflows.publish_batches(platform, spec, keys)]


def test_a_good_file_goes_all_the_way_to_champion(platform: Platform) -> None:
    spec = fakes.visits_spec()
    fakes.drop(platform, "monday.parquet", fakes.visits(600))

    assert publish(platform) == [Outcome.PUBLISHED]
    report = workflows.pin_dataset(platform, spec)
    candidate = workflows.train_candidate(platform, spec, reason="schedule")
    judgement = workflows.judge_candidate(platform, spec, candidate)
    candidate = platform.database.candidate(candidate.id)
    registration = workflows.register_candidate(platform, spec, candidate)
    _, problem = workflows.stage_version(platform, candidate)
    entry = workflows.promote_version(platform, spec, candidate, reason="schedule", actor="test")

    assert report.dataset.rows == 600
    assert judgement.verdict.passed
    assert problem is None
    assert registration.version == entry.version == 1
    assert platform.registry.alias("visits", "champion") == 1
    assert platform.database.champion("visits") == entry
