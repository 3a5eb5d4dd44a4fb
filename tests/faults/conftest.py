"""How often each fault was tried, said below the tests' results: what SECURITY.md states is read off there."""

from collections import Counter

import pytest

TRIED: Counter[str] = Counter()


@pytest.fixture
def tally() -> Counter[str]:
    """What was tried -> how often; a test adds its own once it has come through."""
    return TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        terminalreporter.section("tried")
        for what, count in TRIED.items():
            terminalreporter.write_line(f"{count:9,} {what}")
