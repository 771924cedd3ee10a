"""Who may call a server's admin port: bearer tokens of which only the sha256 is kept, compared in constant time."""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ml_platform import durable
from ml_platform.admin import TOKEN_FILE
from ml_platform.errors import ConfigurationError
from ml_platform.private import NAME, SHA256, private_text
from ml_platform.records import sha256_text

LOCAL = "local"


class Scope(StrEnum):
    """What a token allows: VIEWER looks, OPERATOR looks and rolls back."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whose token it is, and what it allows."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the token allows something; who may roll back may look."""
        return scope in self.scopes or Scope.OPERATOR in self.scopes


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of an admin port: the hex sha256 of each with its holder."""

    known: Mapping[str, Holder]

    def holder(self, token: str) -> Holder | None:
        """Return who holds a token; ``None`` if nobody does. It takes as long whoever it is, and for nobody."""
        found, digest = None, sha256_text(token)
        for known, holder in self.known.items():
            if hmac.compare_digest(known, digest):
                found = holder
        return found


def read_tokens(path: Path) -> Tokens:
    """Read a tokens file: a JSON object of ``name: {"sha256": …, "scopes": ["viewer" | "operator"]}``.

    Raises
    ------
    ConfigurationError
        It cannot be read, others than its owner may read it, or it holds something else.
    """
    try:
        rows = json.loads(private_text(path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The admin tokens in {path} cannot be read: {error}.") from error
    try:
        return Tokens(known={row["sha256"]: _holder(name, row) for name, row in rows.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"The admin tokens in {path} must be a JSON object of names, each with sha256 (64 hex digits) and scopes "
            f"(viewer, operator). Got {type(error).__name__}: {error} instead."
        ) from error


def _holder(name: str, row: Mapping[str, object]) -> Holder:
    scopes = row["scopes"]
    if not NAME.fullmatch(name) or not SHA256.fullmatch(str(row["sha256"])) or not isinstance(scopes, list):
        raise ValueError(name)
    return Holder(name=name, scopes=frozenset(Scope(scope) for scope in scopes))


def local_tokens(folder: Path) -> Tokens:
    """Return the one token of a host without a tokens file, made where there is none yet.

    Whoever may read the file, which is its owner alone, may roll back; so may whoever is the owner.

    Raises
    ------
    ConfigurationError
        Others may read the file.
    StorageError
        It could not be written.
    """
    path = folder / TOKEN_FILE
    if not path.exists():
        with durable.temporary_beside(path) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            temporary.write_text(secrets.token_urlsafe(32))
            durable.place(temporary, path)
    try:
        token = private_text(path).strip()
    except OSError as error:
        raise ConfigurationError(f"The admin token in {path} cannot be read: {error.strerror}.") from error
    return Tokens(known={sha256_text(token): Holder(name=LOCAL, scopes=frozenset(Scope))})
