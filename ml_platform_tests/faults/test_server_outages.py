"""A server without database and MLflow starts, serves and rolls back, and records the rollback afterwards."""

import pytest

from ml_platform.platform import Platform
from ml_platform_tests.support import prediction_server
from ml_platform_tests.support.prediction_server import wait_until

pytestmark = pytest.mark.servers


@pytest.mark.fault("V2")
def test_restart_without_stores_serves_and_rolls_back(served: Platform) -> None:
    home = served.settings.home
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        wait_until("a server that is not stale", lambda: not server.facts["stale"])
    served.database.close()
    (home / "mlflow.db").rename(home / "mlflow.gone")
    (home / "platform.db").rename(home / "platform.gone")
    (home / "models").rename(home / "models.gone")
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        answer = server.ask()
        assert (answer.status, answer.version, answer.headers["ml-platform-stale"]) == (200, 3, "true")
        ready = server.ask("/v2/health/ready", None)
        assert (ready.status, ready.json) == (200, {"ready": True, "stale": True})
        assert 'ml_platform_serving_stale{model="visits"} 1.0' in server.ask("/metrics", None).body.decode()
        rollback = server.admin_ask("/rollback", {"reason": "worse"})
        assert (rollback.status, rollback.json["version"], rollback.json["swapped"]) == (200, 2, True)
        assert rollback.json["seconds"] < 1
        assert server.ask().version == 2
        assert not (home / "platform.db").exists()  # a new, empty database would be another ledger
        for name in ("mlflow", "platform"):
            (home / f"{name}.gone").rename(home / f"{name}.db")
        (home / "models.gone").rename(home / "models")
        wait_until("the ledger", lambda: prediction_server.list_champions(served) == [1, 2])
        entry = served.database.champion("visits")
        assert entry is not None
        assert (entry.version, entry.reason, entry.actor) == (2, "worse", "local@admin")
        wait_until("a server that is not stale", lambda: not server.facts["stale"] and not server.facts["override"])
        assert server.ask().version == 2


@pytest.mark.fault("V2")
def test_restart_without_mlflow_serves_stale(served: Platform) -> None:
    (served.settings.home / "mlflow.db").unlink()
    with prediction_server.serving(served.settings.home) as server:
        server.wait_for(3)
        wait_until("the mark", lambda: server.facts["why_stale"] == "MLflow does not answer")
        wait_until("the header", lambda: server.ask().headers.get("ml-platform-stale") == "true")
        assert server.ask().status == 200
