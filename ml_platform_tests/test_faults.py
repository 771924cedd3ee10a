import re
from pathlib import Path

from ml_platform_tests.faults import known_faults

HERE = Path(__file__).resolve().parent


def test_every_fault_that_a_test_names_is_documented() -> None:
    named = {
        identifier
        for file in HERE.rglob("test_*.py")
        for arguments in re.findall(r"mark\.fault\(([^)]*)\)", file.read_text())
        for identifier in re.findall(r'"([^"]+)"', arguments)
    }

    assert named
    assert named <= set(known_faults())
