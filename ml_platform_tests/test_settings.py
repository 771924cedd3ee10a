from pathlib import Path

import pytest
from pydantic import ValidationError

from ml_platform.errors import ConfigurationError
from ml_platform.settings import (
    PROJECT_ROOT,
    GithubRun,
    Settings,
    read_github_run,
    read_settings,
    require_dagster_home,
)


def test_everything_stands_under_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ML_PLATFORM_HOME", str(tmp_path))

    settings = read_settings()

    assert settings.home == tmp_path
    assert settings.landing == str(tmp_path / "landing")
    assert settings.artifacts.is_relative_to(tmp_path)
    assert settings.model_home("visits").is_relative_to(tmp_path)
    assert settings.model_home("visits") != settings.model_home("others")
    assert settings.database == f"sqlite:///{tmp_path / 'platform.db'}"
    assert settings.tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert settings.tracking_is_local


def test_without_environment_the_home_is_the_repositorys_var(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_PLATFORM_HOME")

    assert read_settings().home == PROJECT_ROOT / "var"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", str(tmp_path / "dropped"))
    monkeypatch.setenv("ML_PLATFORM_DATABASE_URL", "postgresql://host/platform")
    monkeypatch.setenv("ML_PLATFORM_CODE_REVISION", "v1")
    monkeypatch.setenv("ML_PLATFORM_MOST_BYTES", "1000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    settings = read_settings()

    assert settings.landing == str(tmp_path / "dropped")
    assert settings.database == "postgresql://host/platform"
    assert settings.code_revision == "v1"
    assert settings.most_bytes == 1000
    assert settings.tracking_uri == "http://mlflow:5000"
    assert not settings.tracking_is_local


@pytest.mark.parametrize("variable", ["ML_PLATFORM_DATABASE_URL", "MLFLOW_TRACKING_URI"])
def test_an_empty_address_means_the_default(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    default = read_settings()
    monkeypatch.setenv(variable, "")

    settings = read_settings()

    assert (settings.database, settings.tracking_uri) == (default.database, default.tracking_uri)


@pytest.mark.parametrize("variable", ["ML_PLATFORM_HOME", "ML_PLATFORM_LANDING_ZONE"])
def test_a_relative_path_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "some/where")

    with pytest.raises(ConfigurationError, match=rf"{variable}.*absolute path.*'some/where'"):
        read_settings()


@pytest.mark.parametrize("address", ["s3://bucket", "s3://my-bucket/", "s3://my.bucket/some/where"])
def test_the_landing_zone_can_be_in_a_bucket(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)

    assert read_settings().landing == address


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://bucket//x", "s3://bucket/../x", "http://x/y", "s3://B_"])
def test_an_address_that_is_no_landing_zone_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)

    with pytest.raises(ConfigurationError, match=r"ML_PLATFORM_LANDING_ZONE.*absolute path or s3://bucket/prefix"):
        read_settings()


@pytest.mark.parametrize("variable", ["ML_PLATFORM_HOMES", "ML_PLATFORM_MLFLOW_TRACKING_URI", "ML_PLATFORM_"])
def test_a_variable_that_does_not_exist_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/somewhere")

    with pytest.raises(ConfigurationError, match=rf"{variable} is not known. Known are .*'ML_PLATFORM_HOME'"):
        read_settings()


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_DATABASE_URL", "postgresql://me:hunter2@host/platform")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow")

    settings = read_settings()

    assert "hunter2" in settings.database
    assert "hunter2" in settings.tracking_uri
    assert "hunter2" not in f"{settings!r} {settings!s} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_cannot_be_changed_once_read(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        settings.home = tmp_path / "elsewhere"  # type: ignore[misc]


def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="landing_zoo"):
        Settings(landing_zoo=tmp_path)  # type: ignore[call-arg]


def test_dagster_home_is_the_folder_of_dagster_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    assert require_dagster_home() == tmp_path


@pytest.mark.parametrize(
    ("value", "problem"), [("", "is not set"), ("some/where", "absolute path"), ("/", "no dagster.yaml")]
)
def test_a_dagster_home_that_would_forget_runs_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, problem: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", value)

    with pytest.raises(ConfigurationError, match=rf"DAGSTER_HOME.*{problem}.*export DAGSTER_HOME="):
        require_dagster_home()


def test_a_dagster_home_that_nobody_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    with pytest.raises(ConfigurationError, match="is not set"):
        require_dagster_home()


def test_a_deployment_that_takes_no_byte_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_MOST_BYTES", "0")

    with pytest.raises(ConfigurationError, match=r"ML_PLATFORM_MOST_BYTES.*greater than or equal to 1"):
        read_settings()


def test_a_job_on_github_is_known_by_what_its_runner_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_GITHUB_ENVIRONMENT", "production")
    assert read_github_run(read_settings()) is None
    for name, value in {"ACTIONS": "true", "ACTOR": "ada", "RUN_ID": "17"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)

    run = read_github_run(read_settings())

    assert run == GithubRun(actor="ada", triggering_actor="ada", run_id="17", environment="production", reviewer="")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert read_github_run(read_settings()) is None
