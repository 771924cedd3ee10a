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
from ml_platform.settings import Settings, read_github_run
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


def github_person(settings: Settings, audience: str) -> Person:
    """Return the reviewer of a job in the deployment's protected GitHub environment.

    GitHub's token proves repository, environment and run; the environment's protection proves that a reviewer approved
    the run. The reviewer's name is the one that the job reads from GitHub's record, and is not part of the token.

    Parameters
    ----------
    settings : Settings
    audience : str
        The approval that the token must be issued for; see `approval_audience`.

    Raises
    ------
    ApprovalRefusedError
        The settings name no environment, repository or reviewer, or the token does not prove the job.
    RemoteServiceError
        GitHub did not respond.
    """
    from ml_platform.release.github_token import prove_job

    run = read_github_run(settings)
    # guard: no-github-job, no-github-environment, no-github-repository, no-github-reviewer
    if run is None or not run.environment or not settings.github_repository or not run.reviewer:
        raise ApprovalRefusedError(
            "This is not a job of a protected GitHub environment: ML_PLATFORM_GITHUB_ENVIRONMENT, "
            "ML_PLATFORM_GITHUB_REPOSITORY, ML_PLATFORM_GITHUB_REVIEWER and the runner's own variables must be set. "
            "Nothing was approved."
        )
    identity = {**prove_job(settings, audience), "reviewer": run.reviewer}
    return Person(name=f"{run.reviewer}@github", authenticated_by="github_environment", identity=identity)


def current_actor(platform: "Platform") -> str:
    """Return the user of this process as ``name@host``; on GitHub, the user who started the job, ``name@github``."""
    return caller(platform.settings)


def authenticate(
    platform: "Platform", way: str, *, name: str = "", token: str = "", audience: str | None = None
) -> Person:
    """Authenticate the person who approves.

    Parameters
    ----------
    platform : Platform
    way : str
        ``os_user``, ``token`` or ``github_environment``.
    name, token : str
        For ``token``: its owner, and the secret.
    audience : str or None
        For ``github_environment``: the approval that GitHub's token must be issued for; see `approval_audience`.

    Raises
    ------
    ApprovalRefusedError
        The person could not be authenticated in this way.
    ConfigurationError
        `way` is unknown, or ``github_environment`` has no `audience`.
    RemoteServiceError
        GitHub did not respond.
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
        # guard: no-audience
        if audience is None:
            raise ConfigurationError(
                "--auth github_environment needs the version and --verdict with the digest that was reviewed, because "
                "GitHub's token is issued for them alone. Got no digest or no version. Nothing was approved."
            )
        return github_person(settings, audience)
    raise ConfigurationError(f"--auth must be os_user, token or github_environment. Got {way!r} instead.")
