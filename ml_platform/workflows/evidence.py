"""What counts as evidence for a candidate."""

from pathlib import Path

from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import file_digest
from ml_platform.records import Candidate, Verdict
from ml_platform.stages import gates
from ml_platform.workflows.platform import Platform


def evidence(
    platform: Platform, spec: ModelSpec, candidate: Candidate, model_file: Path, *, succeeds_champion: bool = True
) -> Verdict:
    """Return a candidate's verdict if it is evidence for these very bytes, gates and dataset.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    candidate : Candidate
    model_file : Path
        The bytes that it must be evidence for.
    succeeds_champion : bool
        Whether it must have been compared with who is champion now. A version that was champion before and comes back
        was compared with an earlier one.

    Raises
    ------
    EvidenceError
        There is no verdict, it does not pass, or it speaks of something else; the message lists every reason.
    """
    verdict = platform.database.verdict_on(candidate.id)
    if verdict is None:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} has no verdict. Materialise trained_model with its checks."
        )
    refusals = gates.refusals(verdict, candidate, spec, file_digest(model_file))
    if succeeds_champion:
        refusals += _overtaken(platform, spec, candidate, verdict)
    if refusals:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} is refused: {'; '.join(refusals)}. The champion stays."
        )
    return verdict


def _overtaken(platform: Platform, spec: ModelSpec, candidate: Candidate, verdict: Verdict) -> list[str]:
    """Say why a comparison is out of date: another version became champion since."""
    champion, then = platform.database.champion(spec.name), verdict.findings.champion
    if spec.comparison is None or champion is None or champion.candidate == candidate.id or champion.version == then:
        return []
    compared = "before there was a champion" if then is None else f"when version {then} was champion"
    return [f"it was compared {compared}, and version {champion.version} is now: run its gates again"]
