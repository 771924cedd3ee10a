"""Answers of a real server in the table of predictions, without an entity that is forgotten meanwhile."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from deltalake import DeltaTable

from ml_platform.governance import forget
from ml_platform.monitoring.prediction_log import files
from ml_platform.monitoring.prediction_log.collect import take_predictions
from ml_platform.platform import Platform
from ml_platform_tests.support import fakes, prediction_server
from ml_platform_tests.support.prediction_server import RECORD, Server, wait_until

SPEC = fakes.uncompared_spec(logged_features=("pages", "plan"))
FORGOTTEN, OTHER = 7_654_321, 8


def ask(server: Server, *visitors: int) -> Any:
    records = [{**RECORD, "visitor": visitor, "pages": number} for number, visitor in enumerate(visitors)]
    return server.ask(body=json.dumps({"dataframe_records": records}).encode())


def quoted(platform: Platform, text: str) -> list[str]:
    folder = platform.prediction_files("visits")
    return [file.name for file in folder.glob("*.jsonl*") if text in file.read_text()]


def test_prediction_table_has_answers_without_forgotten_entity(served: Platform) -> None:
    began = datetime.now(UTC)
    with prediction_server.serving(served.settings.home) as server:
        server.wait_for(3)
        first_answer = ask(server, OTHER, FORGOTTEN, OTHER)
        folder = served.prediction_files("visits")
        wait_until("the log", lambda: quoted(served, str(FORGOTTEN)))
        assert files.closed_files(folder) == []

        done = forget.forget(served, SPEC, str(FORGOTTEN), reason="they asked", actor="ann")

        assert done["figures"]["predictions"] == 1
        assert quoted(served, str(FORGOTTEN)) == []
        second_answer = ask(server, FORGOTTEN, OTHER)
    taken = take_predictions(served, SPEC)

    rows = DeltaTable(served.predictions("visits")).to_pyarrow_table().to_pylist()
    by_place = {(row["request_id"], row["record"]): row for row in rows}
    first, second = (answer.headers["ml-platform-request-id"] for answer in (first_answer, second_answer))
    assert set(by_place) >= {(first, 0), (first, 2), (second, 1)}
    assert taken.total == len(rows)
    assert not [row for row in rows if row["entity"] == str(FORGOTTEN)]
    for answer, place in ((first_answer, 0), (first_answer, 2), (second_answer, 1)):
        row = by_place[answer.headers["ml-platform-request-id"], place]
        assert (row["version"], row["digest"]) == (3, answer.headers["ml-platform-digest"])
        assert row["score"] == pytest.approx(answer.json["scores"][place], abs=1e-15)
        assert row["prediction"] == str(answer.json["predictions"][place])
        assert json.loads(row["inputs"]) == {"pages": place, "plan": "paid"}
        assert (row["entity"], row["role"], row["error"]) == (str(OTHER), "champion", None)
        assert began <= row["at"] <= datetime.now(UTC)
        assert row["seconds"] > 0
