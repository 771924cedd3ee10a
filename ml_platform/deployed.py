"""Ask a deployed Dagster for a retraining, through its GraphQL API."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_platform import outside
from ml_platform.errors import OutsideError

# How often a run is asked after, and for how long a server that does not answer is waited for, both in seconds.
PAUSE = 5.0
PATIENCE = 600.0
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
# As `ml_platform.pipeline` writes them; importing that imports Dagster.
MODEL_TAG, REASON_TAG, ACTOR_TAG = "ml_platform/model", "ml_platform/reason", "ml_platform/actor"
SLOT_TAG = "ml_platform/slot"
LOCATION = {"repositoryLocationName": "ml_platform", "repositoryName": "__repository__"}
LAUNCH = """
mutation Retrain($asked: ExecutionParams!) {
  launchRun(executionParams: $asked) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on PipelineNotFoundError { message }
    ... on UnauthorizedError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
STATUS = """
query Status($run: ID!) {
  runOrError(runId: $run) {
    __typename
    ... on Run { status }
    ... on RunNotFoundError { message }
    ... on PythonError { message }
  }
}
"""
KNOWN = """
query Known($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 1) {
    __typename
    ... on Runs { results { runId } }
    ... on PythonError { message }
    ... on InvalidPipelineRunsFilterError { message }
  }
}
"""


@dataclass(frozen=True, kw_only=True)
class DeployedDagster:
    """A Dagster that runs elsewhere.

    Parameters
    ----------
    url : str
        Where its webserver answers, with its path prefix if it has one.
    token : str or None
        What a proxy in front of it asks for; ``None`` where there is none.
    """

    url: str
    token: str | None = None

    def retrain(self, model: str, reason: str, actor: str, slot: str | None) -> str:
        """Ask for a retraining; return its run, which for a known slot is the one that was asked for before.

        Raises
        ------
        OutsideError
            It does not answer, or knows no such model.
        """
        tags = {MODEL_TAG: model, REASON_TAG: reason, ACTOR_TAG: actor}
        if slot is not None:
            tags[SLOT_TAG] = slot
            if known := self._known({name: tags[name] for name in (MODEL_TAG, REASON_TAG, SLOT_TAG)}):
                return known
        asked = {
            "selector": {**LOCATION, "jobName": f"{model}_retrain"},
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": _pairs(tags)},
        }
        return str(self._ask(LAUNCH, {"asked": asked}, "launchRun", "LaunchRunSuccess")["run"]["runId"])

    def _known(self, tags: dict[str, str]) -> str | None:
        found = self._ask(KNOWN, {"filter": {"tags": _pairs(tags)}}, "runsOrError", "Runs")["results"]
        return str(found[0]["runId"]) if found else None

    def outcome(self, run: str, say: Callable[[str], None]) -> str:
        """Wait until a run has ended; return ``SUCCESS``, ``FAILURE`` or ``CANCELED``.

        Parameters
        ----------
        run : str
        say : callable
            Is told every status that is new.

        Raises
        ------
        OutsideError
            It is not known there, or there was no answer for `PATIENCE` seconds.
        """
        said, answered = "", time.monotonic()
        while said not in ENDED:
            try:
                status = str(self._ask(STATUS, {"run": run}, "runOrError", "Run")["status"])
                answered = time.monotonic()
            except OutsideError as error:
                if not error.may_pass or time.monotonic() - answered > PATIENCE:
                    raise
                status = said
            if status != said:
                say(f"run {run}: {status}")
            said = status
            if said not in ENDED:
                time.sleep(PAUSE)
        return said

    def _ask(self, query: str, variables: dict[str, Any], field: str, wanted: str) -> dict[str, Any]:
        answer = outside.post(f"{self.url.rstrip('/')}/graphql", self.token, {"query": query, "variables": variables})
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), dict):
            errors = answer.get("errors") if isinstance(answer, dict) else None
            raise OutsideError(
                f"{self.url} is no Dagster that understands this question: {errors or 'no data'}.", status=400
            )
        found: dict[str, Any] = answer["data"][field]
        if found["__typename"] != wanted:
            why = found.get("message") or found.get("errors") or found["__typename"]
            raise OutsideError(f"Dagster at {self.url} refuses: {why}.", status=400)
        return found


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": value} for name, value in tags.items()]
