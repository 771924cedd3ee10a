import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_platform.errors import ApprovalRefusedError, RemoteServiceError
from ml_platform.records.ledger import approval_audience
from ml_platform.release.github_token import prove_job, verify_token
from ml_platform.settings import Settings
from ml_platform_tests.support.github_issuer import ENVIRONMENT, REPOSITORY, GithubIssuer

AUDIENCE = approval_audience("churn", 7, "d" * 64)

pytestmark = pytest.mark.fault("A1")


@pytest.fixture(scope="module", params=["RS256", "ES256"])
def issuer(request: pytest.FixtureRequest) -> Iterator[GithubIssuer]:
    with GithubIssuer(request.param).running() as running:
        yield running


@pytest.fixture(scope="module")
def rsa_issuer() -> Iterator[GithubIssuer]:
    with GithubIssuer().running() as running:
        yield running


def deployment(issuer: GithubIssuer, **changes: str) -> Settings:
    made = {"github_issuer": issuer.address, "github_environment": ENVIRONMENT, "github_repository": REPOSITORY}
    return Settings().model_copy(update={**made, **changes})


def verify(issuer: GithubIssuer, token: str, **changes: str) -> dict[str, str]:
    return verify_token(token, issuer.keys, deployment(issuer, **changes), AUDIENCE)


def test_token_of_job_returns_its_claims(issuer: GithubIssuer) -> None:
    claims = verify(issuer, issuer.issue(AUDIENCE))

    assert claims == {
        "iss": issuer.address,
        "sub": "repo:ada/churn:environment:production",
        "aud": AUDIENCE,
        "jti": "7c1e",
        "repository": "ada/churn",
        "environment": "production",
        "run_id": "17",
        "run_attempt": "1",
        "actor": "ada",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iss": "https://token.example.org"}, "Invalid issuer"),
        ({"aud": approval_audience("churn", 8, "d" * 64)}, "Audience doesn't match"),
        ({"aud": [AUDIENCE]}, "Invalid claim format"),
        ({"repository": "mallory/churn"}, "its repository must be 'ada/churn'. Got 'mallory/churn'"),
        ({"environment": "staging"}, "its environment must be 'production'. Got 'staging'"),
        ({"environment": None}, 'missing the "environment" claim'),
        ({"repository": None}, 'missing the "repository" claim'),
        ({"exp": int(time.time()) - 40}, "expired"),
        ({"exp": None}, 'missing the "exp" claim'),
        ({"iat": int(time.time()) + 600}, "not yet valid"),
        ({"nbf": int(time.time()) + 600}, "not yet valid"),
        ({"run_id": "17; touch x"}, "its run_id must be a number"),
    ],
)
def test_token_of_other_job_is_refused(rsa_issuer: GithubIssuer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ApprovalRefusedError, match="does not prove a job of the protected environment") as refused:
        verify(rsa_issuer, rsa_issuer.issue(AUDIENCE, **changes))

    assert message in str(refused.value)
    assert "Nothing was approved." in str(refused.value)


def test_token_expired_within_clock_skew_is_accepted(rsa_issuer: GithubIssuer) -> None:
    assert verify(rsa_issuer, rsa_issuer.issue(AUDIENCE, exp=int(time.time()) - 10))["run_id"] == "17"


def test_token_signed_by_other_key_is_refused(issuer: GithubIssuer) -> None:
    other = GithubIssuer(issuer.algorithm)
    other.address = issuer.address

    with pytest.raises(ApprovalRefusedError, match="Signature verification failed"):
        verify(issuer, other.issue(AUDIENCE))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS512"])
def test_token_with_other_algorithm_is_refused(rsa_issuer: GithubIssuer, algorithm: str) -> None:
    key: Any = {"none": None, "HS256": "s" * 32, "RS512": rsa_issuer.key}[algorithm]
    token = jwt.encode(rsa_issuer.claims(AUDIENCE), key, algorithm, headers={"kid": "1"})

    with pytest.raises(ApprovalRefusedError, match="alg"):
        verify(rsa_issuer, token)


def test_shared_secret_among_keys_is_refused(rsa_issuer: GithubIssuer) -> None:
    token = jwt.encode(rsa_issuer.claims(AUDIENCE), "s" * 32, "HS256", headers={"kid": "2"})
    keys = {
        "keys": [*rsa_issuer.keys["keys"], {"kty": "oct", "k": "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M", "kid": "2"}]
    }

    with pytest.raises(ApprovalRefusedError, match="alg"):
        verify_token(token, keys, deployment(rsa_issuer), AUDIENCE)


@pytest.mark.parametrize(
    "keys", [{}, {"keys": None}, {"keys": ["1"]}, {"keys": [{"kid": "2"}]}, {"keys": [{"kid": "1"}]}]
)
def test_keys_without_a_usable_key_are_refused(rsa_issuer: GithubIssuer, keys: dict[str, Any]) -> None:
    with pytest.raises(ApprovalRefusedError, match="Nothing was approved"):
        verify_token(rsa_issuer.issue(AUDIENCE), keys, deployment(rsa_issuer), AUDIENCE)


def test_two_keys_of_one_name_are_refused(rsa_issuer: GithubIssuer) -> None:
    keys = {"keys": rsa_issuer.keys["keys"] * 2}

    with pytest.raises(ApprovalRefusedError, match="no single key '1'"):
        verify_token(rsa_issuer.issue(AUDIENCE), keys, deployment(rsa_issuer), AUDIENCE)


@given(token=st.text() | st.lists(st.text(alphabet="abcABC019_-=", min_size=1), min_size=3, max_size=3).map(".".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_malformed_token_raises_typed_error(rsa_issuer: GithubIssuer, token: str) -> None:
    with pytest.raises(ApprovalRefusedError) as refused:
        verify(rsa_issuer, token)

    assert str(refused.value).isprintable()


@given(place=st.integers(min_value=0, max_value=2), position=st.integers(min_value=0), letter=st.sampled_from("AQgw"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changed_token_is_refused(rsa_issuer: GithubIssuer, place: int, position: int, letter: str) -> None:
    parts = rsa_issuer.issue(AUDIENCE).split(".")
    position %= len(parts[place])
    changed = parts[place][:position] + letter + parts[place][position + 1 :]
    if changed == parts[place]:
        return

    with pytest.raises(ApprovalRefusedError):
        verify(rsa_issuer, ".".join([*parts[:place], changed, *parts[place + 1 :]]))


def test_job_asks_for_token_of_its_approval(issuer: GithubIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in issuer.environment().items():
        monkeypatch.setenv(name, value)

    assert prove_job(deployment(issuer), AUDIENCE)["aud"] == AUDIENCE


@pytest.mark.parametrize("missing", ["URL", "TOKEN"])
def test_process_without_token_service_is_refused(
    rsa_issuer: GithubIssuer, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rsa_issuer.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(f"ACTIONS_ID_TOKEN_REQUEST_{missing}")

    with pytest.raises(ApprovalRefusedError, match="cannot ask GitHub for a token"):
        prove_job(deployment(rsa_issuer), AUDIENCE)


def test_wrong_secret_of_job_is_not_shown(rsa_issuer: GithubIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rsa_issuer.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "guessed-secret")

    with pytest.raises(RemoteServiceError, match="returned 403") as refused:
        prove_job(deployment(rsa_issuer), AUDIENCE)

    assert "guessed-secret" not in str(refused.value)


@pytest.mark.parametrize("answer", ["[]", "{", "7", "[" * 100_000])
def test_service_without_an_object_is_refused(
    rsa_issuer: GithubIssuer, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rsa_issuer.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ml_platform.system.http_client.send", lambda *_, **__: answer.encode())

    with pytest.raises(RemoteServiceError, match="GitHub's token service"):
        prove_job(deployment(rsa_issuer), AUDIENCE)


def test_service_without_a_token_is_refused(rsa_issuer: GithubIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rsa_issuer.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ml_platform.system.http_client.send", lambda *_, **__: json.dumps({"value": None}).encode())

    with pytest.raises(ApprovalRefusedError, match="does not prove a job"):
        prove_job(deployment(rsa_issuer), AUDIENCE)
