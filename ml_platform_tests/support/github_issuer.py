"""A part of GitHub: a server on loopback that issues a job's token and publishes its public key."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ml_platform_tests.support import fakes

REPOSITORY, ENVIRONMENT, SECRET = "ada/churn", "production", "the-jobs-secret"


class GithubIssuer:
    """GitHub's issuer and its token service.

    Parameters
    ----------
    algorithm : str
        ``RS256`` or ``ES256``.
    """

    def __init__(self, algorithm: str = "RS256") -> None:
        self.algorithm, self.address = algorithm, ""
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        )
        self.changes: dict[str, Any] = {}  # claims of the next tokens; None removes one

    @property
    def keys(self) -> dict[str, Any]:
        """The public key, as a JSON Web Key Set."""
        made = ECAlgorithm if self.algorithm == "ES256" else RSAAlgorithm
        return {"keys": [{**json.loads(made.to_jwk(self.key.public_key())), "kid": "1", "alg": self.algorithm}]}

    def claims(self, audience: str, **changes: Any) -> dict[str, Any]:
        """Return the claims of a token, some of them changed; None removes one."""
        now = int(time.time())
        made = {
            "iss": self.address,
            "aud": audience,
            "sub": f"repo:{REPOSITORY}:environment:{ENVIRONMENT}",
            "jti": "7c1e",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "repository": REPOSITORY,
            "environment": ENVIRONMENT,
            "run_id": "17",
            "run_attempt": "1",
            "actor": "ada",
        }
        return {name: value for name, value in {**made, **changes}.items() if value is not None}

    def issue(self, audience: str, **changes: Any) -> str:
        """Return a signed token."""
        return jwt.encode(self.claims(audience, **changes), self.key, self.algorithm, headers={"kid": "1"})

    def environment(self) -> dict[str, str]:
        """Return the variables of a job in the environment, and the settings of its step."""
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.address}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": SECRET,
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTOR": "ada",
            "GITHUB_RUN_ID": "17",
            "ML_PLATFORM_GITHUB_ENVIRONMENT": ENVIRONMENT,
            "ML_PLATFORM_GITHUB_ISSUER": self.address,
            "ML_PLATFORM_GITHUB_REPOSITORY": REPOSITORY,
        }

    @contextmanager
    def running(self) -> Iterator["GithubIssuer"]:
        """Serve; yield the issuer with its address."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                document: Any = issuer.keys if url.path == "/.well-known/jwks" else None
                if url.path == "/token" and self.headers["Authorization"] == f"Bearer {SECRET}":
                    (audience,) = parse_qs(url.query)["audience"]
                    document = {"value": issuer.issue(audience, **issuer.changes)}
                self.send_response(403 if document is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_: Any) -> None:
                pass

        with fakes.on_loopback(Handler) as address:
            self.address = address
            yield self
