"""Repeat the integration test of a registered version, outside of its run: a workflow's check before an approval."""

import logging
from dataclasses import dataclass

from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.release.promote import staged_evidence
from ml_platform.release.register import integration_problem

log = logging.getLogger("ml_platform")


@dataclass(frozen=True, kw_only=True)
class VersionCheck:
    """Result of a version's integration test.

    Parameters
    ----------
    model : str
    version : int
    problem : str or None
        The failure; ``None`` if the test passed.
    verdict : str
        Digest of the verdict on the tested bytes; empty if the test failed.
    champion : int or None
        The current champion; ``None`` if there is none.
    waits : bool
        True if the version waits for a person's approval.
    """

    model: str
    version: int
    problem: str | None
    verdict: str
    champion: int | None
    waits: bool


def check_version(platform: Platform, spec: ModelSpec, version: int) -> VersionCheck:
    """Repeat the integration test of one version. Nothing is changed, nor is the version's alias.

    Raises
    ------
    EvidenceError
        There is no such version, it was never staged, or its evidence does not hold for the bytes in the registry.
    MissingInRegistryError
        The version's bytes are not in the registry.
    """
    registration = platform.database.registration(spec.name, version)
    if registration is None:
        raise EvidenceError(f"There is no version {version} of {spec.name!r}. Run: ml-platform status.")
    problem = integration_problem(platform, registration, max_ms=spec.max_inference_ms)
    verdict = "" if problem else staged_evidence(platform, spec, registration).digest
    champion = platform.database.champion(spec.name)
    champion_version = champion.version if champion else None
    return VersionCheck(
        model=spec.name,
        version=version,
        problem=problem,
        verdict=verdict,
        champion=champion_version,
        waits=problem is None and spec.approval_needed is not None and champion_version != version,
    )
