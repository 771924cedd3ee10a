"""Evidence for a candidate: a passing verdict on its exact bytes, gates and dataset."""

from pathlib import Path

from ml_platform.database.decided import served_digest
from ml_platform.errors import EvidenceError
from ml_platform.evaluation import gates
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.release.ledger.decision_evidence import find_anchor_problem
from ml_platform.storage.model_files import file_digest


def evidence(
    platform: Platform, spec: ModelSpec, candidate: Candidate, model_file: Path, *, succeeds_champion: bool = True
) -> Verdict:
    """Return a candidate's verdict if it passes and holds for exactly these bytes, gates and dataset.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    candidate : Candidate
    model_file : Path
        The model file that the verdict must hold for.
    succeeds_champion : bool
        True if the candidate must have been compared with the current champion. A former champion that returns was
        compared with an earlier one.

    Raises
    ------
    EvidenceError
        There is no verdict, it does not pass, it belongs to other bytes, gates or data, or the log of heads or MLflow's
        run holds another verdict. The message lists every reason.
    RegistryError
        MLflow does not give the candidate's run.
    """
    verdict = platform.database.verdict_on(candidate.id)
    # guard: no-verdict
    if verdict is None:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} has no verdict. Materialise trained_model with its checks."
        )
    refusals = gates.refusals(verdict, candidate, spec, file_digest(model_file))
    if succeeds_champion:
        # guard: overtaken-comparison
        refusals += _find_outdated_comparison(platform, spec, candidate, verdict)
    # guard: unanchored-verdict
    if problem := find_anchor_problem(platform, candidate, verdict):
        refusals.append(problem)
    # guard: served-files-of-verdict
    if candidate.served_digest != served_digest(verdict, candidate, platform.database.ledger(spec.name)):
        refusals.append("the list of its served files was changed since it was judged: train another version")
    # guard: refused-evidence
    if refusals:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} is refused: {'; '.join(refusals)}. The champion stays."
        )
    return verdict


def _find_outdated_comparison(platform: Platform, spec: ModelSpec, candidate: Candidate, verdict: Verdict) -> list[str]:
    """Return a refusal if another version became champion after the comparison; empty otherwise."""
    champion, then = platform.database.champion(spec.name), verdict.evaluation.champion
    # guard: current-comparison
    if spec.comparison is None or champion is None or champion.candidate == candidate.id or champion.version == then:
        return []
    compared = "before there was a champion" if then is None else f"when version {then} was champion"
    return [f"it was compared {compared}, and version {champion.version} is now: run its gates again"]
