"""What counts as evidence for a candidate."""

from pathlib import Path

from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import file_digest
from ml_platform.records import Candidate, Verdict
from ml_platform.stages import gates
from ml_platform.workflows.platform import Platform


def evidence(platform: Platform, spec: ModelSpec, candidate: Candidate, model_file: Path) -> Verdict:
    """Return a candidate's verdict if it is evidence for these very bytes, gates and dataset.

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
    if refusals:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} is refused: {'; '.join(refusals)}. The champion stays."
        )
    return verdict
