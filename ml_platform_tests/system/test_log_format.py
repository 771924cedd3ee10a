import logging

import pytest

from ml_platform.system.log_format import SafeFormatter

FORMATTER = SafeFormatter("%(levelname)s %(message)s")


def make_record(message: str, cause: BaseException | None = None) -> logging.LogRecord:
    information = (type(cause), cause, None) if cause else None
    return logging.LogRecord("ml_platform", logging.WARNING, "", 0, message, (), information)


@pytest.mark.fault("X1")
@pytest.mark.fault("X2")
def test_log_record_is_one_safe_line() -> None:
    line = FORMATTER.format(make_record("no answer from http://u:s3cret@h/x\x1b[31m\nWARNING forged"))

    assert line == "WARNING no answer from http://***@h/x\\x1b[31m\\nWARNING forged"


@pytest.mark.fault("X2")
def test_logged_traceback_hides_secrets() -> None:
    text = FORMATTER.format(make_record("failed", ValueError("http://u:s3cret@h/\x1b[31m")))

    assert text == "WARNING failed\nValueError: http://***@h/\\x1b[31m"
