"""Every file tests/golden/<pass>/<case>.txt is a case; see burnish.testing for its form."""

from pathlib import Path

import pytest

from burnish.testing import check_case

HERE = Path(__file__).parent
CASES = sorted(path for path in HERE.glob("*/*.txt") if path.parent.name != "models")


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path: Path) -> None:
    check_case(path)
