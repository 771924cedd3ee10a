"""Who asks, and who approves."""

from ml_platform.errors import ConfigurationError
from ml_platform.records import Person
from ml_platform.settings import read_github_run
from ml_platform.stages import approvals
from ml_platform.workflows.platform import Platform


def who(platform: Platform) -> str:
    """Return who runs this process, as ``name@where``: on GitHub who started the job, else the system's user."""
    return approvals.caller(platform.settings)


def authenticate(platform: Platform, way: str, *, name: str = "", token: str = "") -> Person:
    """Return the person who approves.

    Parameters
    ----------
    platform : Platform
    way : str
        ``os_user``, ``token`` or ``github_environment``.
    name, token : str
        For a token: whose it is, and the secret.

    Raises
    ------
    ApprovalRefusedError
        The person could not be authenticated that way.
    ConfigurationError
        There is no such way.
    """
    settings = platform.settings
    if way == "os_user":
        return approvals.os_user()
    if way == "token":
        return approvals.token_holder(name, token, settings.approval_tokens_file)
    if way == "github_environment":
        return approvals.github_person(read_github_run(settings))
    raise ConfigurationError(f"--by must be os_user, token or github_environment. Got {way!r} instead.")
