"""Alerts: always written to the log, and sent to Alertmanager if the deployment has one."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ml_platform.errors import AlertError, RemoteServiceError
from ml_platform.system import http_client

log = logging.getLogger("ml_platform.alerts")

SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A problem that needs a person's attention.

    Parameters
    ----------
    name : str
        Name of the rule that fired; alerts are grouped by it.
    summary : str
        One sentence for the person on call.
    labels : dict of str
        Subject of the alert, for instance model and version. Alerts with the same name and labels are one alert.
    """

    name: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


def write_log(alerts: Sequence[Alert]) -> None:
    """Write alerts to the log ``ml_platform.alerts``."""
    for alert in alerts:
        log.error("%s: %s", alert.name, alert.summary, extra={"labels": alert.labels})


def send(alerts: Sequence[Alert], alertmanager: str | None) -> None:
    """Send firing alerts to Alertmanager (API v2). Sending an alert again renews it.

    Parameters
    ----------
    alerts : sequence of Alert
        Alertmanager resolves an alert that is no longer sent, after its ``resolve_timeout``.
    alertmanager : str or None
        Address of Alertmanager, for instance ``http://127.0.0.1:9093``; ``None`` sends nothing.

    Raises
    ------
    AlertError
        Alertmanager did not accept the alerts.
    """
    if alertmanager is None or not alerts:
        return
    body = [
        {"labels": {"alertname": alert.name, **alert.labels}, "annotations": {"summary": alert.summary}}
        for alert in alerts
    ]
    try:
        http_client.send(f"{alertmanager.rstrip('/')}/api/v2/alerts", json.dumps(body).encode(), seconds=SECONDS)
    except RemoteServiceError as error:
        raise AlertError(
            f"Alertmanager did not accept {len(body)} alerts: {error} Check ML_PLATFORM_ALERTMANAGER_URL. "
            "The alerts are in the log."
        ) from error
