import re
from pathlib import Path

from ml_platform_tests.faults.report import known_faults

TESTS = Path(__file__).resolve().parents[1]


def test_faults_named_by_tests_are_documented() -> None:
    named = {
        identifier
        for file in TESTS.rglob("test_*.py")
        for arguments in re.findall(r"mark\.fault\(([^)]*)\)", file.read_text())
        for identifier in re.findall(r'"([^"]+)"', arguments)
    }

    assert named
    assert named <= set(known_faults())
