"""Retrain on a deployed Dagster, through its GraphQL API.

Importing `dagster_graphql` takes a second: import this module only where it is used.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import dagster_graphql
import gql
import graphql
from gql.transport import Transport

from ml_platform.errors import RemoteServiceError
from ml_platform.safe_text import show_address
from ml_platform.system import http_client

PAUSE = 5.0  # seconds between two requests for a run's status
PATIENCE = 600.0  # seconds without a response after which waiting for a run fails
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
# The same as in `ml_platform.pipeline`, which belongs to a higher layer.
MODEL_TAG, REASON_TAG, ACTOR_TAG = "ml_platform/model", "ml_platform/reason", "ml_platform/actor"
SLOT_TAG = "ml_platform/slot"
LOCATION, REPOSITORY = "ml_platform", "__repository__"
# `DagsterGraphQLClient` has no call that finds runs by their tags.
FIND_RUN = """
query FindRun($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 1) {
    __typename
    ... on Runs { results { runId } }
    ... on PythonError { message }
    ... on InvalidPipelineRunsFilterError { message }
  }
}
"""


class _Transport(Transport):
    """Sends GraphQL requests with `http_client`, which bounds responses and keeps the token out of errors."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self.token = url, token

    def execute(self, request: gql.GraphQLRequest, *_: Any, **__: Any) -> graphql.ExecutionResult:
        response = http_client.post(f"{self.url.rstrip('/')}/graphql", self.token, request.payload)
        errors = response.get("errors") if isinstance(response, dict) else None
        if errors or not isinstance(response, dict) or not isinstance(response.get("data"), dict):
            shown = show_address(self.url)
            raise RemoteServiceError(
                f"{shown} did not return a valid Dagster GraphQL response: {errors or 'no data'}.", status=400
            )
        return graphql.ExecutionResult(data=response["data"])


@dataclass(frozen=True, kw_only=True)
class DeployedDagster:
    """A Dagster deployment on another host.

    Parameters
    ----------
    url : str
        URL of its webserver, with the path prefix if it has one.
    token : str or None
        Bearer token for a proxy in front of it; ``None`` sends none.
    """

    url: str
    token: str | None = None

    def retrain(self, model: str, reason: str, actor: str, slot: str | None) -> str:
        """Launch a retraining, unless its slot already has a run; return the run's id.

        Raises
        ------
        RemoteServiceError
            The deployment did not respond, or has no such model.
        """
        tags = {MODEL_TAG: model, REASON_TAG: reason, ACTOR_TAG: actor}
        with self._typed_errors():
            if slot is not None:
                tags[SLOT_TAG] = slot
                pairs = [{"key": name, "value": tags[name]} for name in (MODEL_TAG, REASON_TAG, SLOT_TAG)]
                request = gql.GraphQLRequest(FIND_RUN, variable_values={"filter": {"tags": pairs}})
                runs = gql.Client(transport=_Transport(self.url, self.token)).execute(request)["runsOrError"]
                # Without the list, a second run could be launched for the slot.
                if not isinstance(runs, dict) or not isinstance(runs.get("results"), list):
                    message = runs.get("message") if isinstance(runs, dict) else None
                    raise ValueError(message or "it returned no list of runs")
                if runs["results"]:
                    return str(runs["results"][0]["runId"])
            return self._client().submit_job_execution(f"{model}_retrain", LOCATION, REPOSITORY, tags=tags)

    def outcome(self, run: str, say: Callable[[str], None]) -> str:
        """Wait until a run has ended; return ``SUCCESS``, ``FAILURE`` or ``CANCELED``.

        Parameters
        ----------
        run : str
        say : callable
            Called with a message for each new status.

        Raises
        ------
        RemoteServiceError
            The deployment has no such run, or did not respond for `PATIENCE` seconds.
        """
        last, responded = "", time.monotonic()
        while last not in ENDED:
            try:
                with self._typed_errors():
                    status = self._client().get_run_status(run).value
                responded = time.monotonic()
            except RemoteServiceError as error:
                if not error.may_pass or time.monotonic() - responded > PATIENCE:
                    raise
                status = last
            if status != last:
                say(f"run {run}: {status}")
            last = status
            if last not in ENDED:
                time.sleep(PAUSE)
        return last

    def _client(self) -> dagster_graphql.DagsterGraphQLClient:
        # The client needs a host name only to build a transport of its own.
        transport = _Transport(self.url, self.token)
        return dagster_graphql.DagsterGraphQLClient(urlsplit(self.url).hostname or "", transport=transport)

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Raise the failures of Dagster's client as RemoteServiceError, without the request that they repeat."""
        try:
            yield
        except (dagster_graphql.DagsterGraphQLClientError, LookupError, TypeError, ValueError) as error:
            if isinstance(error.__cause__, RemoteServiceError):
                raise error.__cause__ from None
            reason = getattr(error, "body", None) or error.__cause__ or error.args[-1]
            shown = show_address(self.url)
            raise RemoteServiceError(f"Dagster at {shown} refused the request: {reason}.", status=400) from error
