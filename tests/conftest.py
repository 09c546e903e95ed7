"""Options of the test run."""

import pytest

from burnish import testing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write golden files instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    testing.set_accepting(config.getoption("--accept"))
