"""Bearer tokens of a server's admin port: only their sha256 is stored, and it is compared in constant time."""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ml_platform.errors import ConfigurationError
from ml_platform.records.canonical import sha256_text
from ml_platform.release.admin_client import TOKEN_FILE
from ml_platform.storage import atomic_files
from ml_platform.storage.secret_files import NAME, SHA256, read_secret_file

LOCAL = "local"


class Scope(StrEnum):
    """Permissions of a token: VIEWER may read, OPERATOR may read and roll back."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The name and the permissions of a token's holder."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Return True if the holder has a permission; OPERATOR includes VIEWER."""
        return scope in self.scopes or Scope.OPERATOR in self.scopes


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of an admin port: each token's holder by the token's hex sha256."""

    known: Mapping[str, Principal]

    def find_principal(self, token: str) -> Principal | None:
        """Return a token's holder; ``None`` for an unknown token.

        All tokens are compared, so the duration does not reveal which one matched, or that none did.
        """
        principal, digest = None, sha256_text(token)
        for known, holder in self.known.items():
            if hmac.compare_digest(known, digest):
                principal = holder
        return principal


def read_tokens(path: Path) -> Tokens:
    """Read a tokens file: a JSON object of ``name: {"sha256": …, "scopes": ["viewer" | "operator"]}``.

    Raises
    ------
    ConfigurationError
        The file cannot be read, users other than its owner have access to it, or its contents are not valid.
    """
    try:
        rows = json.loads(read_secret_file(path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The admin tokens in {path} cannot be read: {error}.") from error
    try:
        return Tokens(known={row["sha256"]: _make_principal(name, row) for name, row in rows.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"The admin tokens in {path} must be a JSON object of names, each with sha256 (64 hex digits) and scopes "
            f"(viewer, operator). Got {type(error).__name__}: {error} instead."
        ) from error


def _make_principal(name: str, row: Mapping[str, object]) -> Principal:
    scopes = row["scopes"]
    if not NAME.fullmatch(name) or not SHA256.fullmatch(str(row["sha256"])) or not isinstance(scopes, list):
        raise ValueError(name)
    return Principal(name=name, scopes=frozenset(Scope(scope) for scope in scopes))


def local_tokens(folder: Path) -> Tokens:
    """Return the only token of a host without a tokens file; it is created if it does not exist yet.

    The token has all permissions. Its file is readable by its owner alone.

    Raises
    ------
    ConfigurationError
        The file cannot be read, or users other than its owner have access to it.
    StorageError
        The file could not be written.
    """
    path = folder / TOKEN_FILE
    if not path.exists():
        with atomic_files.temporary_beside(path) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            temporary.write_text(secrets.token_urlsafe(32))
            atomic_files.atomic_replace(temporary, path)
    try:
        token = read_secret_file(path).strip()
    except OSError as error:
        raise ConfigurationError(f"The admin token in {path} cannot be read: {error.strerror}.") from error
    return Tokens(known={sha256_text(token): Principal(name=LOCAL, scopes=frozenset(Scope))})
