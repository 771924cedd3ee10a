"""A server's prediction log, written by the servers' own class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_platform.monitoring.prediction_log.writer import LoggedVersion, Prediction, PredictionLog, TrafficRole

FEATURES = ("pages", "seconds", "plan")
AT = 1_700_000_000.0


@dataclass(frozen=True)
class Logs:
    """The part of a request contract that the log uses."""

    model: str = "visits"
    logged: tuple[str, ...] = ("pages", "plan")

    def values(self, record: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return a record's values of some features by name."""
        return {name: value for name, value in zip(FEATURES, record, strict=True) if name in names}

    def anomaly(self, record: Any) -> float:
        """Return 1 for a record of more than a hundred pages."""
        return float(record[0] > 100)


VERSION = LoggedVersion(contract=Logs(), version=3, digest="ab" * 32)


def prediction(entity: Any = 7, **fields: Any) -> Prediction:
    """Return a prediction for a visitor, with some of its fields changed."""
    given = {
        "of": VERSION,
        "role": TrafficRole.CHAMPION,
        "at": AT,
        "seconds": 0.0125,
        "request_id": f"request-{entity}",
        "record": (41, 2.5, "paid"),
        "entity": entity,
        "score": 0.75,
        "prediction": 1,
    }
    return Prediction(**{**given, **fields})


def write(folder: Path, entries: Iterable[Prediction], worker: str = "host-0") -> None:
    """Log predictions and close the file."""
    log = PredictionLog(folder, worker)
    for entry in entries:
        assert log.write(entry)
    assert log.close()
