"""How often each fault was tried, said below the tests' results: what SECURITY.md states is read off there."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """What was tried -> how often; a test adds its own once it has come through."""
    tried: Counter[str] = Counter()
    yield tried
    for what, count in tried.items():
        record_property(what, count)  # which a worker of xdist hands on with its report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    tried: Counter[str] = Counter()
    for report in reports:
        if getattr(report, "when", None) == "teardown":
            tried.update(dict(report.user_properties))
    if tried:
        terminalreporter.section("tried")
        for what, count in tried.items():
            terminalreporter.write_line(f"{count:9,} {what}")
