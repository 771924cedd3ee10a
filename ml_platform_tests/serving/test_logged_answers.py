"""What a real server answered stands in the table of predictions, and nothing of who was forgotten while it ran."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from deltalake import DeltaTable

from ml_platform import corrections, prediction_files, workflows
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.serving import living
from ml_platform_tests.serving.living import RECORD, Server, wait_until

SPEC = fakes.unrivalled_spec(logged=("pages", "plan"))
FORGOTTEN, OTHER = 7_654_321, 8


def asked(server: Server, *visitors: int) -> Any:
    records = [{**RECORD, "visitor": visitor, "pages": number} for number, visitor in enumerate(visitors)]
    return server.ask(body=json.dumps({"dataframe_records": records}).encode())


def quoted(platform: Platform, text: str) -> list[str]:
    folder = platform.prediction_files("visits")
    return [file.name for file in folder.glob("*.jsonl*") if text in file.read_text()]


def test_the_table_has_what_a_server_answered_and_nobody_who_was_forgotten(served: Platform) -> None:
    began = datetime.now(UTC)
    with living.serving(served.settings.home) as server:
        server.wait_for(3)
        told = asked(server, OTHER, FORGOTTEN, OTHER)
        folder = served.prediction_files("visits")
        wait_until("the log", lambda: quoted(served, str(FORGOTTEN)))
        assert prediction_files.closed_files(folder) == []

        done = corrections.forget(served, SPEC, str(FORGOTTEN), reason="they asked", actor="ann")

        assert done["figures"]["predictions"] == 1
        assert quoted(served, str(FORGOTTEN)) == []
        again = asked(server, FORGOTTEN, OTHER)
    taken = workflows.take_predictions(served, SPEC)

    rows = DeltaTable(served.predictions("visits")).to_pyarrow_table().to_pylist()
    by_place = {(row["request_id"], row["record"]): row for row in rows}
    first, second = (answer.headers["ml-platform-request-id"] for answer in (told, again))
    assert set(by_place) >= {(first, 0), (first, 2), (second, 1)}
    assert taken.total == len(rows)
    assert not [row for row in rows if row["entity"] == str(FORGOTTEN)]
    for answer, place in ((told, 0), (told, 2), (again, 1)):
        row = by_place[answer.headers["ml-platform-request-id"], place]
        assert (row["version"], row["digest"]) == (3, answer.headers["ml-platform-digest"])
        assert row["score"] == pytest.approx(answer.json["scores"][place], abs=1e-15)
        assert row["prediction"] == str(answer.json["predictions"][place])
        assert json.loads(row["inputs"]) == {"pages": place, "plan": "paid"}
        assert (row["entity"], row["slot"], row["error"]) == (str(OTHER), "stable", None)
        assert began <= row["at"] <= datetime.now(UTC)
        assert row["seconds"] > 0
