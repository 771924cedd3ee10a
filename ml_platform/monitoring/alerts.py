"""Alerts: into the log always, and to an Alertmanager where the deployment names one."""

import json
import logging
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from ml_platform.errors import AlertError

log = logging.getLogger("ml_platform.alerts")

SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something that a person should look at.

    Parameters
    ----------
    name : str
        Of the rule that fired; what alerts are grouped by.
    summary : str
        One sentence for whoever is woken.
    labels : dict of str
        What it is about. Alerts of one name and the same labels are one alert.
    """

    name: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


def write_log(alerts: Sequence[Alert]) -> None:
    """Write alerts into the log ``ml_platform.alerts``."""
    for alert in alerts:
        log.error("%s: %s", alert.name, alert.summary, extra={"labels": alert.labels})


def send(alerts: Sequence[Alert], alertmanager: str | None) -> None:
    """Post firing alerts to Alertmanager (API v2), which takes the same alert again as the same.

    Parameters
    ----------
    alerts : sequence of Alert
        They resolve by themselves when they are no longer sent, after Alertmanager's ``resolve_timeout``.
    alertmanager : str or None
        Its address, for instance ``http://127.0.0.1:9093``; ``None`` sends nothing.

    Raises
    ------
    AlertError
        It did not take them.
    """
    if alertmanager is None or not alerts:
        return
    posted = [
        {"labels": {"alertname": alert.name, **alert.labels}, "annotations": {"summary": alert.summary}}
        for alert in alerts
    ]
    request = urllib.request.Request(  # noqa: S310 - the settings take http and https only
        f"{alertmanager.rstrip('/')}/api/v2/alerts",
        data=json.dumps(posted).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310
            pass
    except OSError as error:
        raise AlertError(
            f"Alertmanager did not take {len(posted)} alerts: {error}. Check ML_PLATFORM_ALERTMANAGER_URL. "
            "They stand in the log."
        ) from error
