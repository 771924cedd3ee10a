import logging
import socket

import pytest

from ml_platform.errors import AlertError
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform_tests.support import fakes

ALERT = Alert(name="TickFailed", summary="403 from the landing zone", labels={"sensor": "visits_arrivals"})


def test_alertmanager_gets_name_labels_and_summary() -> None:
    manager = fakes.Alertmanager()

    with manager.running() as address:
        send([ALERT], f"{address}/")

    assert manager.taken == [
        {
            "labels": {"alertname": "TickFailed", "sensor": "visits_arrivals"},
            "annotations": {"summary": "403 from the landing zone"},
        }
    ]


def test_send_rejected_alert_is_an_error() -> None:
    with (
        fakes.Alertmanager(status=500).running() as address,
        pytest.raises(AlertError, match="did not accept 1 alerts"),
    ):
        send([ALERT], address)


def test_send_unreachable_server_error_hides_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    with pytest.raises(AlertError, match="Check ML_PLATFORM_ALERTMANAGER_URL") as refused:
        send([ALERT], f"http://user:secret@127.0.0.1:{port}")

    assert "secret" not in str(refused.value)


def test_nothing_is_sent_where_no_alertmanager_is_named() -> None:
    send([ALERT], None)
    manager = fakes.Alertmanager()
    with manager.running() as address:
        send([], address)

    assert manager.taken == []


def test_the_log_has_every_alert(caplog: pytest.LogCaptureFixture) -> None:
    write_log([ALERT])

    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "TickFailed: 403 from the landing zone")
