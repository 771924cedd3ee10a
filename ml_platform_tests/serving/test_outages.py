"""A server whose database and MLflow are gone: it starts, serves, rolls back, and makes up for it afterwards."""

import pytest

from ml_platform.workflows import Platform
from ml_platform_tests.serving import living
from ml_platform_tests.serving.living import wait_until


@pytest.mark.fault("V2")
def test_without_mlflow_and_database_a_restart_serves_the_last_verified_copy_and_rolls_back(served: Platform) -> None:
    home = served.settings.home
    with living.serving(home) as server:
        server.wait_for(3)
        wait_until("a server that is not stale", lambda: not server.facts["stale"])
    served.database.close()
    (home / "mlflow.db").rename(home / "mlflow.gone")
    (home / "platform.db").rename(home / "platform.gone")
    (home / "models").rename(home / "models.gone")
    with living.serving(home) as server:
        server.wait_for(3)
        answer = server.ask()
        assert (answer.status, answer.version, answer.headers["ml-platform-stale"]) == (200, 3, "true")
        ready = server.ask("/v2/health/ready", None)
        assert (ready.status, ready.json) == (200, {"ready": True, "stale": True})
        assert 'ml_platform_serving_stale{model="visits"} 1.0' in server.ask("/metrics", None).body.decode()
        done = server.admin_ask("/rollback", {"reason": "worse"})
        assert (done.status, done.json["version"], done.json["swapped"]) == (200, 2, True)
        assert done.json["seconds"] < 1
        assert server.ask().version == 2
        assert not (home / "platform.db").exists()  # an empty one in its place would be another ledger
        for name in ("mlflow", "platform"):
            (home / f"{name}.gone").rename(home / f"{name}.db")
        (home / "models.gone").rename(home / "models")
        wait_until("the ledger", lambda: living.champions_of(served) == [1, 2])
        entry = served.database.champion("visits")
        assert entry is not None
        assert (entry.version, entry.reason, entry.actor) == (2, "worse", "local@admin")
        wait_until("a server that is not stale", lambda: not server.facts["stale"] and not server.facts["override"])
        assert server.ask().version == 2


@pytest.mark.fault("V2")
def test_with_mlflow_alone_gone_a_restart_serves_and_says_that_it_is_stale(served: Platform) -> None:
    (served.settings.home / "mlflow.db").unlink()
    with living.serving(served.settings.home) as server:
        server.wait_for(3)
        wait_until("the mark", lambda: server.facts["why_stale"] == "MLflow does not answer")
        wait_until("the header", lambda: server.ask().headers.get("ml-platform-stale") == "true")
        assert server.ask().status == 200
