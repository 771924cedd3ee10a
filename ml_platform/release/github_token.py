"""Proof that a process is a job of a protected GitHub environment: the OpenID Connect token that GitHub signs for it.

Environment variables prove nothing, because any process can set them. The token names repository, environment and run,
and is issued for one approval only.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ml_platform.errors import ApprovalRefusedError, RemoteServiceError, printable
from ml_platform.settings import Settings, read_token_service
from ml_platform.system import http_client

ALGORITHMS = ["RS256", "ES256"]  # public keys only: with a shared secret, the public key would sign
CLOCK_SKEW = 30.0  # seconds
REQUIRED = ["iss", "aud", "sub", "exp", "iat", "jti", "repository", "environment", "run_id"]
# The claims that the ledger keeps: with them, the run can be found on GitHub.
KEPT = (
    "iss",
    "sub",
    "aud",
    "jti",
    "repository",
    "environment",
    "run_id",
    "run_attempt",
    "actor",
    "workflow_ref",
    "sha",
)
NUMBER = re.compile(r"[0-9]{1,20}")


def prove_job(settings: Settings, audience: str) -> dict[str, str]:
    """Ask GitHub for this job's token and return its verified claims.

    Parameters
    ----------
    settings : Settings
        Issuer, repository and environment that the token must name.
    audience : str
        The approval that the token is for; see `approval_audience`.

    Returns
    -------
    dict of str
        The claims in `KEPT` that the token has.

    Raises
    ------
    ApprovalRefusedError
        The process is not a job that may ask for a token, or the token proves another job or is for another approval.
    RemoteServiceError
        GitHub did not respond, or not in its format.
    """
    service = read_token_service()
    # guard: no-token-service
    if service is None:
        raise ApprovalRefusedError(
            "This process cannot ask GitHub for a token: ACTIONS_ID_TOKEN_REQUEST_URL and "
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN are not set. Approve in a job of the environment with 'permissions: "
            "id-token: write'. Nothing was approved."
        )
    separator = "&" if "?" in service.url else "?"
    address = f"{service.url}{separator}audience={quote(audience, safe='')}"
    answer = _read_object(http_client.send(address, token=service.secret.get_secret_value()), "GitHub's token service")
    keys = _read_object(http_client.send(f"{settings.github_issuer.rstrip('/')}/.well-known/jwks"), "GitHub's issuer")
    return verify_token(str(answer.get("value", "")), keys, settings, audience)


def verify_token(token: str, keys: Mapping[str, Any], settings: Settings, audience: str) -> dict[str, str]:
    """Return the claims of a job's token if its signature, times and claims are right.

    Parameters
    ----------
    token : str
    keys : mapping
        The issuer's public keys, a JSON Web Key Set.
    settings : Settings
        Issuer, repository and environment that the token must name.
    audience : str
        The only value of its claim ``aud``.

    Raises
    ------
    ApprovalRefusedError
        The token is malformed, expired, from another issuer, job or environment, or for another approval.
    """
    import jwt

    try:
        kid = jwt.get_unverified_header(token).get("kid")
        listed = keys.get("keys")
        # no guard: a document without a list of keys has no matching key
        listed = listed if isinstance(listed, list) else []
        matches = [key for key in listed if isinstance(key, dict) and key.get("kid") == kid]
        # guard: unknown-signing-key
        if len(matches) != 1:
            raise ApprovalRefusedError(_refused(f"the issuer has no single key {kid!r}"))
        claims = jwt.decode(
            token,
            jwt.PyJWK(matches[0]),
            algorithms=ALGORITHMS,
            audience=audience,
            issuer=settings.github_issuer,
            leeway=CLOCK_SKEW,
            options={"require": REQUIRED, "strict_aud": True, "enforce_minimum_key_length": True},
        )
    except jwt.PyJWTError as error:
        raise ApprovalRefusedError(_refused(str(error))) from error
    for name, expected in (("repository", settings.github_repository), ("environment", settings.github_environment)):
        # guard: token-of-other-job
        if claims[name] != expected:
            raise ApprovalRefusedError(_refused(f"its {name} must be {expected!r}. Got {str(claims[name])!r}"))
    # guard: token-without-run
    if not NUMBER.fullmatch(str(claims["run_id"])):
        raise ApprovalRefusedError(_refused(f"its run_id must be a number. Got {str(claims['run_id'])!r}"))
    return {name: str(claims[name]) for name in KEPT if name in claims}


def _refused(reason: str) -> str:
    return (
        f"GitHub's token does not prove a job of the protected environment: {printable(reason)}. Nothing was approved."
    )


def _read_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RemoteServiceError(f"{name} did not return valid JSON: {error}. Nothing was approved.") from error
    # guard: token-service-no-object
    if not isinstance(document, dict):
        raise RemoteServiceError(f"{name} must return one JSON object. Nothing was approved.")
    return document
