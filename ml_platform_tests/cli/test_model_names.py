"""Names of models that commands refuse before they make a path of them."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from ml_platform.errors import ConfigurationError
from ml_platform.platform import Platform
from ml_platform.serving.state import STATE_FILE
from ml_platform.serving.supervisor.version_selection import require_servable_model
from ml_platform.settings import read_settings
from ml_platform_tests.support.command_line import call
from ml_platform_tests.support.rollouts import promoted

NO_NAMES = ["../x", "a/b", "..", ".", "a\\b", "/etc", "", " ", "x" * 41, "a\nb", "\udcff", "näme"]


@pytest.mark.fault("R23")
@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("command", ["serve", "history", "rollback --reason worse", "ledger verify", "rollout status"])
def test_command_refuses_text_that_is_no_name(tmp_path: Path, command: str, name: str) -> None:
    status, output = call(*command.split(), "--", name)
    assert status == 2
    assert "at most 40 letters, digits and underscores" in " ".join(output.replace("│", "").split())
    assert not any(path.is_dir() for path in tmp_path.rglob("*"))


@pytest.mark.fault("R23")
@pytest.mark.parametrize("name", NO_NAMES)
def test_settings_make_no_path_of_it(name: str) -> None:
    settings = read_settings()
    for find in (settings.serving_home, settings.model_home):
        with pytest.raises(ConfigurationError, match="at most 40 letters"):
            find(name)


@pytest.mark.fault("R23")
def test_serve_refuses_name_of_no_model(platform: Platform) -> None:
    promoted(platform)
    with pytest.raises(ConfigurationError, match=r"no model 'chrun'.*Known models: churn, visits\."):
        call("serve", "chrun", "--port", "0", "--admin-port", "0")
    assert not platform.settings.serving_home("chrun").exists()


@pytest.mark.fault("R23")
def test_served_model_is_known_without_the_database(platform: Platform, tmp_path: Path) -> None:
    settings = platform.settings.model_copy(update={"database_url": SecretStr(f"sqlite:///{tmp_path}/none.db")})
    with pytest.raises(ConfigurationError, match="Known models: churn"):
        require_servable_model(Platform(settings), "visits", ["churn"])
    require_servable_model(Platform(settings), "churn", ["churn"])
    settings.serving_home("visits").mkdir(parents=True)
    (settings.serving_home("visits") / STATE_FILE).touch()
    require_servable_model(Platform(settings), "visits", ["churn"])
    assert not (tmp_path / "none.db").exists()
