"""`make faults`: run the tests of every fault in docs/faults.md, and list the faults without a test."""

import re
import sys
from collections import defaultdict

import pytest

from ml_platform.settings import PROJECT_ROOT

DOCUMENT = PROJECT_ROOT / "docs" / "faults.md"


def known_faults() -> dict[str, str]:
    """Return the descriptions of the faults in docs/faults.md by id."""
    return dict(re.findall(r"^\| ([A-Z]\d+) \| (.+?) \|", DOCUMENT.read_text(), flags=re.MULTILINE))


class Recorder:
    """A pytest plugin that records the result of each fault's tests."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.failed: set[str] = set()
        self.passed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for marker in item.iter_markers("fault"):
                for identifier in marker.args:
                    self.ids[identifier].append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def result(self, identifier: str) -> str:
        tests = self.ids[identifier]
        if any(test in self.failed for test in tests):
            return "FAIL"
        return "pass" if tests and all(test in self.passed for test in tests) else "not run"


def main() -> int:
    """Run the tests, print one line for each fault, and return pytest's exit status."""
    recorder, known = Recorder(), known_faults()
    status = pytest.main(
        ["-m", "fault and not soak", "-q", "--no-header", "-p", "no:cacheprovider"], plugins=[recorder]
    )
    for identifier, injected in known.items():
        tests = recorder.ids.get(identifier, [])
        sys.stdout.write(f"{identifier:4} {recorder.result(identifier) if tests else 'none yet':9} {injected}\n")
        for test in tests:
            sys.stdout.write(f"       {test}\n")
    covered = sum(bool(recorder.ids.get(identifier)) for identifier in known)
    sys.stdout.write(f"{covered} of {len(known)} faults have tests\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
