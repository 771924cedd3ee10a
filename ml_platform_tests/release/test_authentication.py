import getpass
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import ApprovalRefusedError
from ml_platform.records.canonical import sha256_text
from ml_platform.release.authentication import github_person, os_user, token_holder
from ml_platform.settings import Settings, read_settings
from ml_platform_tests.support.github_issuer import GithubIssuer


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"ada": sha256_text("ada's secret"), "bob": sha256_text("bob's secret")}))
    path.chmod(0o600)
    return path


def test_os_user_ignores_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pwd.getpwuid(os.getuid()).pw_name
    for variable in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(variable, "mallory")

    person = os_user()

    assert getpass.getuser() == "mallory"
    assert person.name.partition("@")[0] == person.identity["user"] == real
    assert person.identity["uid"] == str(os.getuid())
    assert person.authenticated_by == "os_user"


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)

    assert os_user().name.startswith("uid-3999999999@")


def test_a_token_names_its_holder(tokens: Path) -> None:
    person = token_holder("ada", "ada's secret", tokens)

    assert (person.name, person.authenticated_by, person.identity) == ("ada@token", "token", {"name": "ada"})


@pytest.mark.parametrize(
    ("name", "token"),
    [("ada", "bob's secret"), ("ada", ""), ("carl", "ada's secret"), ("", ""), ("ada", "0" * 64), ("", "ada's secret")],
)
def test_wrong_token_and_unknown_name_give_same_error(tokens: Path, name: str, token: str) -> None:
    with pytest.raises(ApprovalRefusedError, match=f"The token is not that of '{name}'") as refused:
        token_holder(name, token, tokens)

    assert not token or token not in str(refused.value)


def test_the_digest_of_a_token_is_no_token(tokens: Path) -> None:
    with pytest.raises(ApprovalRefusedError, match="not that of 'ada'"):
        token_holder("ada", sha256_text("ada's secret"), tokens)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o610, 0o666])
def test_token_file_accessible_to_others_is_refused(tokens: Path, mode: int) -> None:
    tokens.chmod(mode)

    with pytest.raises(ApprovalRefusedError, match=f"Got mode {mode:04o} instead"):
        token_holder("ada", "ada's secret", tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must be one JSON object"),
        ('{"ada": "plain secret"}', "64 hex digits"),
        ('{"ada": 7}', "64 hex digits"),
    ],
)
def test_malformed_token_file_is_refused(tokens: Path, text: str, message: str) -> None:
    tokens.write_text(text)

    with pytest.raises(ApprovalRefusedError, match=message):
        token_holder("ada", "plain secret", tokens)


def test_without_a_file_there_are_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ApprovalRefusedError, match="ML_PLATFORM_APPROVAL_TOKENS_FILE"):
        token_holder("ada", "x", None)
    with pytest.raises(ApprovalRefusedError, match="cannot be read"):
        token_holder("ada", "x", tmp_path / "none")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The settings of a job in the protected environment, and its variables."""
    with GithubIssuer("ES256").running() as issuer:
        for name, value in {**issuer.environment(), "ML_PLATFORM_GITHUB_REVIEWER": "carl"}.items():
            monkeypatch.setenv(name, value)
        yield read_settings()


def test_github_person_is_reviewer_of_proven_job(job: Settings) -> None:
    person = github_person(job, "ml-platform:churn:7:d")

    assert (person.name, person.authenticated_by) == ("carl@github", "github_environment")
    assert person.identity["aud"] == "ml-platform:churn:7:d"
    assert (person.identity["repository"], person.identity["environment"]) == ("ada/churn", "production")
    assert (person.identity["run_id"], person.identity["reviewer"]) == ("17", "carl")


@pytest.mark.fault("A1")
def test_github_variables_without_token_approve_nothing(job: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")

    with pytest.raises(ApprovalRefusedError, match="cannot ask GitHub for a token"):
        github_person(job, "ml-platform:churn:7:d")


@pytest.mark.parametrize("field", ["github_environment", "github_repository", "github_reviewer"])
def test_job_without_a_setting_approves_nothing(job: Settings, field: str) -> None:
    with pytest.raises(ApprovalRefusedError, match="not a job of a protected GitHub environment"):
        github_person(job.model_copy(update={field: ""}), "ml-platform:churn:7:d")


def test_process_outside_github_approves_nothing(job: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")

    with pytest.raises(ApprovalRefusedError, match="not a job of a protected GitHub environment"):
        github_person(job, "ml-platform:churn:7:d")
