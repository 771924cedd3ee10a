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
    read_token_service,
    require_dagster_home,
)


def test_settings_paths_default_to_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_settings_home_defaults_to_var_in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_PLATFORM_HOME")

    assert read_settings().home == PROJECT_ROOT / "var"


def test_settings_read_every_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", str(tmp_path / "dropped"))
    monkeypatch.setenv("ML_PLATFORM_DATABASE_URL", "postgresql://host/platform")
    monkeypatch.setenv("ML_PLATFORM_CODE_REVISION", "v1")
    monkeypatch.setenv("ML_PLATFORM_MAX_FILE_BYTES", "1000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    settings = read_settings()

    assert settings.landing == str(tmp_path / "dropped")
    assert settings.database == "postgresql://host/platform"
    assert settings.code_revision == "v1"
    assert settings.max_file_bytes == 1000
    assert settings.tracking_uri == "http://mlflow:5000"
    assert not settings.tracking_is_local


@pytest.mark.parametrize("variable", ["ML_PLATFORM_DATABASE_URL", "MLFLOW_TRACKING_URI"])
def test_settings_empty_address_means_default(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    default = read_settings()
    monkeypatch.setenv(variable, "")

    settings = read_settings()

    assert (settings.database, settings.tracking_uri) == (default.database, default.tracking_uri)


@pytest.mark.parametrize("variable", ["ML_PLATFORM_HOME", "ML_PLATFORM_LANDING_ZONE"])
def test_settings_relative_path_error_names_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "some/folder")

    with pytest.raises(ConfigurationError, match=rf"{variable}.*absolute path.*'some/folder'"):
        read_settings()


@pytest.mark.parametrize("address", ["s3://bucket", "s3://my-bucket/", "s3://my.bucket/some/folder"])
def test_settings_landing_zone_accepts_bucket(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)

    assert read_settings().landing == address


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://bucket//x", "s3://bucket/../x", "http://x/y", "s3://B_"])
def test_settings_invalid_landing_zone_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", address)

    with pytest.raises(ConfigurationError, match=r"ML_PLATFORM_LANDING_ZONE.*absolute path or s3://bucket/prefix"):
        read_settings()


@pytest.mark.parametrize("variable", ["ML_PLATFORM_HOMES", "ML_PLATFORM_MLFLOW_TRACKING_URI", "ML_PLATFORM_"])
def test_settings_unknown_variable_error_lists_known_ones(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/somewhere")

    with pytest.raises(ConfigurationError, match=rf"{variable} is not known.*'ML_PLATFORM_HOME'"):
        read_settings()


def test_settings_hide_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_DATABASE_URL", "postgresql://me:hunter2@host/platform")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow")

    settings = read_settings()

    assert "hunter2" in settings.database
    assert "hunter2" in settings.tracking_uri
    assert "hunter2" not in f"{settings!r} {settings!s} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        settings.home = tmp_path / "elsewhere"  # type: ignore[misc]


def test_settings_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="landing_zoo"):
        Settings(landing_zoo=tmp_path)  # type: ignore[call-arg]


def test_dagster_home_with_dagster_yaml_is_returned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    assert require_dagster_home() == tmp_path


@pytest.mark.parametrize(
    ("value", "problem"), [("", "is not set"), ("some/folder", "absolute path"), ("/", "no dagster.yaml")]
)
def test_dagster_home_unusable_value_is_refused(monkeypatch: pytest.MonkeyPatch, value: str, problem: str) -> None:
    monkeypatch.setenv("DAGSTER_HOME", value)

    with pytest.raises(ConfigurationError, match=rf"DAGSTER_HOME.*{problem}.*export DAGSTER_HOME="):
        require_dagster_home()


def test_dagster_home_unset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    with pytest.raises(ConfigurationError, match="is not set"):
        require_dagster_home()


def test_settings_max_file_bytes_zero_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_MAX_FILE_BYTES", "0")

    with pytest.raises(ConfigurationError, match=r"ML_PLATFORM_MAX_FILE_BYTES.*greater than or equal to 1"):
        read_settings()


def test_github_run_is_read_from_runner_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_GITHUB_ENVIRONMENT", "production")
    assert read_github_run(read_settings()) is None
    for name, value in {"ACTIONS": "true", "ACTOR": "ada", "RUN_ID": "17"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)

    run = read_github_run(read_settings())

    assert run == GithubRun(actor="ada", triggering_actor="ada", run_id="17", environment="production", reviewer="")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert read_github_run(read_settings()) is None


def test_token_service_needs_address_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token_service() is None
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "https://pipelines.example.org/token")
    assert read_token_service() is None
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "s3cret")

    service = read_token_service()

    assert service is not None
    assert service.secret.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(service)


@pytest.mark.parametrize("issuer", ["http://token.example.org", "http://127.0.0.1.example.org", "token.example.org"])
def test_settings_issuer_without_tls_is_refused(issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_GITHUB_ISSUER", issuer)

    with pytest.raises(ConfigurationError, match=r"ML_PLATFORM_GITHUB_ISSUER.*must start with https://"):
        read_settings()


@pytest.mark.parametrize("name", ["PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "UI_PORT_80_TCP_ADDR"])
def test_settings_ignore_kubernetes_service_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_settings()
    monkeypatch.setenv(f"ML_PLATFORM_{name}", "tcp://10.0.0.1:8080")

    assert read_settings() == before


@pytest.mark.parametrize("name", ["ML_PLATFORM_HOMES", "ml_platform_databse_url", "ML_PLATFORM_PORTS"])
def test_settings_unknown_variable_is_refused_in_any_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")

    with pytest.raises(ConfigurationError, match=f"{name} is not known"):
        read_settings()


@pytest.mark.parametrize("days", ["1e9", "inf", "0"])
def test_settings_retention_out_of_range_is_refused(days: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_PREDICTION_RETENTION_DAYS", days)

    with pytest.raises(ConfigurationError, match="ML_PLATFORM_PREDICTION_RETENTION_DAYS"):
        read_settings()


@pytest.mark.fault("X2")
@pytest.mark.parametrize(
    "variable", ["ML_PLATFORM_DATABASE_URL", "MLFLOW_TRACKING_URI", "ML_PLATFORM_ALERTMANAGER_URL"]
)
@pytest.mark.parametrize(
    "address", ["http://u:s3cret@host:bad", "http://u:s3c/ret@host", "u:s3cret@host", "http://:80"]
)
def test_malformed_address_is_an_error_without_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    monkeypatch.setenv(variable, address)

    with pytest.raises(ConfigurationError, match=rf"{variable}: Value error, must ") as refused:
        read_settings()

    assert "s3c" not in str(refused.value)


@pytest.mark.fault("X2")
def test_landing_zone_with_password_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PLATFORM_LANDING_ZONE", "s3://key:s3cret@bucket/prefix")

    with pytest.raises(ConfigurationError, match=r"Got 's3://\*\*\*@bucket/prefix' instead"):
        read_settings()


@pytest.mark.fault("X3")
@pytest.mark.parametrize("name", ["a%41", "[a]", "a|b", "a^b", "a\\b", "a\tb"])
def test_home_that_deltalake_cannot_open_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ML_PLATFORM_HOME", f"/x/{name}")

    with pytest.raises(ConfigurationError, match="deltalake cannot open tables there"):
        read_settings()


@pytest.mark.fault("X3")
@pytest.mark.parametrize("name", ["50% off?", "a%41"])
def test_dagster_home_with_unusable_path_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(folder))

    with pytest.raises(ConfigurationError, match="Rename the folder"):
        require_dagster_home()
