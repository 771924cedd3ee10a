import logging

import pytest

from ml_platform.system.log_format import FormatterWithoutValues, SafeFormatter

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


@pytest.mark.fault("R26")
def test_traceback_without_values_shows_type_and_place() -> None:
    with pytest.raises(ValueError, match="17") as caught:
        int("no. 17")
    information = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), information)
    text = FormatterWithoutValues("%(message)s").format(record)

    assert "invalid literal" not in text
    assert "test_log_format.py" in text
    assert text.endswith("ValueError (its message may quote a request)")
