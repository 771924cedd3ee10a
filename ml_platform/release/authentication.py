"""Authentication of the people who approve a version: operating-system user, token or GitHub environment.

The three ways are not equally hard to forge; a model's author declares those that count.
"""

import hmac
import json
import os
import pwd
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ml_platform.errors import ApprovalRefusedError, ConfigurationError
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import Person
from ml_platform.settings import GithubRun, Settings, read_github_run
from ml_platform.storage.secret_files import NAME, SHA256, read_secret_file

if TYPE_CHECKING:
    # An import at run time would load the database for `ml-platform --help`, and before `rollback` swaps a server.
    from ml_platform.platform import Platform


def caller(settings: Settings) -> str:
    """Return the user of this process as ``name@host``; on GitHub, the user who started the job, ``name@github``."""
    run = read_github_run(settings)
    return f"{run.triggering_actor}@github" if run else os_user().name


def os_user() -> Person:
    """Return the operating system's user of this process; environment variables are not read."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user may have only a number
        user = f"uid-{uid}"
    host = socket.gethostname()
    return Person(
        name=f"{user}@{host}",
        authenticated_by="os_user",
        identity={"user": user, "uid": str(uid), "host": host},
    )


def token_holder(name: str, token: str, tokens: Path | None) -> Person:
    """Authenticate a person by a token.

    Parameters
    ----------
    name, token : str
        The token's owner, and the secret.
    tokens : Path or None
        A JSON file of names with the hex sha256 of their tokens, readable and writable by its owner only.

    Raises
    ------
    ApprovalRefusedError
        There is no file, other users may read it, it is malformed, or the token is not that of `name`.
    """
    # guard: no-token-file
    if tokens is None:
        raise ApprovalRefusedError(
            "There are no tokens: ML_PLATFORM_APPROVAL_TOKENS_FILE must name a JSON file of names with the sha256 "
            "of their tokens, of mode 0600. Nothing was approved."
        )
    try:
        known = json.loads(read_secret_file(tokens))
    except ConfigurationError as error:
        raise ApprovalRefusedError(f"{error} Nothing was approved.") from error
    except (OSError, ValueError) as error:
        raise ApprovalRefusedError(f"The tokens in {tokens} cannot be read: {error}. Nothing was approved.") from error
    # guard: token-file-no-object, token-file-plain-text
    if not isinstance(known, dict) or not all(SHA256.fullmatch(str(value)) for value in known.values()):
        raise ApprovalRefusedError(
            f"The tokens in {tokens} must be one JSON object of names with 64 hex digits each. Nothing was approved."
        )
    # An unknown name takes as long as a wrong token and gets the same message.
    right = hmac.compare_digest(known.get(name, "0" * 64), sha256_text(token))
    # guard: wrong-token
    if not (right and NAME.fullmatch(name) and name in known):
        raise ApprovalRefusedError(
            f"The token is not that of {name!r}. Give its owner with --token-name and the token in "
            "ML_PLATFORM_APPROVAL_TOKEN or on standard input. Nothing was approved."
        )
    return Person(name=f"{name}@token", authenticated_by="token", identity={"name": name})


def github_person(run: GithubRun | None) -> Person:
    """Return the approver of a job in a protected GitHub environment.

    The name comes from environment variables, which the user who starts the process can set. A model's author should
    accept this way only if GitHub's runners alone can reach the database.

    Raises
    ------
    ApprovalRefusedError
        The process is not a GitHub job, or no protected environment is named.
    """
    # guard: no-github-job, no-github-environment, no-github-approver
    if run is None or not run.environment or not run.approver:
        raise ApprovalRefusedError(
            "This is not a job of a protected GitHub environment: GITHUB_ACTIONS, GITHUB_RUN_ID, "
            "GITHUB_TRIGGERING_ACTOR and ML_PLATFORM_GITHUB_ENVIRONMENT must be set. Nothing was approved."
        )
    identity = {
        "actor": run.actor,
        "triggering_actor": run.triggering_actor,
        "reviewer": run.reviewer or "",
        "run_id": run.run_id,
        "environment": run.environment,
    }
    return Person(name=f"{run.approver}@github", authenticated_by="github_environment", identity=identity)


def current_actor(platform: "Platform") -> str:
    """Return the user of this process as ``name@host``; on GitHub, the user who started the job, ``name@github``."""
    return caller(platform.settings)


def authenticate(platform: "Platform", way: str, *, name: str = "", token: str = "") -> Person:
    """Authenticate the person who approves.

    Parameters
    ----------
    platform : Platform
    way : str
        ``os_user``, ``token`` or ``github_environment``.
    name, token : str
        For ``token``: its owner, and the secret.

    Raises
    ------
    ApprovalRefusedError
        The person could not be authenticated in this way.
    ConfigurationError
        `way` is unknown.
    """
    settings = platform.settings
    # no guard: selects the authentication
    if way == "os_user":
        return os_user()
    # no guard: selects the authentication
    if way == "token":
        return token_holder(name, token, settings.approval_tokens_file)
    # no guard: selects the authentication
    if way == "github_environment":
        return github_person(read_github_run(settings))
    raise ConfigurationError(f"--auth must be os_user, token or github_environment. Got {way!r} instead.")
