"""Who approves: a name, and what it rests on, which is not equally hard to forge everywhere."""

import hmac
import json
import os
import pwd
import socket
from pathlib import Path

from ml_platform.errors import ApprovalRefusedError, ConfigurationError
from ml_platform.private import NAME, SHA256, private_text
from ml_platform.records import Person, sha256_text
from ml_platform.settings import GithubRun, Settings, read_github_run


def caller(settings: Settings) -> str:
    """Return who runs this process, as ``name@where``: on GitHub who started the job, else the system's user."""
    run = read_github_run(settings)
    return f"{run.triggering_actor}@github" if run else os_user().name


def os_user() -> Person:
    """Return who runs this process, as the system knows it; no environment variable is asked."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user may have a number only
        user = f"uid-{uid}"
    host = socket.gethostname()
    return Person(
        name=f"{user}@{host}",
        authenticated_by="os_user",
        identity={"user": user, "uid": str(uid), "host": host},
    )


def token_holder(name: str, token: str, tokens: Path | None) -> Person:
    """Return the person whose token was given.

    Parameters
    ----------
    name, token : str
        Who it says it is, and the secret.
    tokens : Path or None
        A JSON file of names with the hex sha256 of their tokens, which nobody but its owner may read or write.

    Raises
    ------
    ApprovalRefusedError
        There is no file, others may read it, it is no such file, or the token is not that of the name.
    """
    known = _tokens(tokens)
    # An unknown name takes as long as a wrong token and is told the same.
    right = hmac.compare_digest(known.get(name, "0" * 64), sha256_text(token))
    if not (right and NAME.fullmatch(name) and name in known):
        raise ApprovalRefusedError(
            f"The token is not that of {name!r}. Give the name with --name and its token in "
            "ML_PLATFORM_APPROVAL_TOKEN or on standard input. Nothing was approved."
        )
    return Person(name=f"{name}@token", authenticated_by="token", identity={"name": name})


def _tokens(path: Path | None) -> dict[str, str]:
    if path is None:
        raise ApprovalRefusedError(
            "There are no tokens: ML_PLATFORM_APPROVAL_TOKENS_FILE must name a JSON file of names with the sha256 "
            "of their tokens, of mode 0600. Nothing was approved."
        )
    try:
        known = json.loads(private_text(path))
    except ConfigurationError as error:
        raise ApprovalRefusedError(f"{error} Nothing was approved.") from error
    except (OSError, ValueError) as error:
        raise ApprovalRefusedError(f"The tokens in {path} cannot be read: {error}. Nothing was approved.") from error
    if not isinstance(known, dict) or not all(SHA256.fullmatch(str(value)) for value in known.values()):
        raise ApprovalRefusedError(
            f"The tokens in {path} must be one JSON object of names with 64 hex digits each. Nothing was approved."
        )
    return known


def github_person(run: GithubRun | None) -> Person:
    """Return whom a job in a protected GitHub environment names.

    It rests on environment variables: whoever starts the process can set them. A model's author lists this way only
    where nobody but GitHub's runners reaches the database.

    Raises
    ------
    ApprovalRefusedError
        This is no GitHub job, or no protected environment is named.
    """
    if run is None or not run.environment or not run.approver:
        raise ApprovalRefusedError(
            "This is no job of a protected GitHub environment: GITHUB_ACTIONS, GITHUB_RUN_ID, GITHUB_TRIGGERING_ACTOR "
            "and ML_PLATFORM_GITHUB_ENVIRONMENT must be set. Nothing was approved."
        )
    identity = {
        "actor": run.actor,
        "triggering_actor": run.triggering_actor,
        "reviewer": run.reviewer or "",
        "run_id": run.run_id,
        "environment": run.environment,
    }
    return Person(name=f"{run.approver}@github", authenticated_by="github_environment", identity=identity)
