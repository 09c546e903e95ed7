"""What README and docs/ tell a user to type works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ["README.md", "docs/quick-start.md", "docs/writing-a-pass.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks, f"{page} shows no Python"
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"`((?:docs|benchmarks|tests|compiler|passes|backends|tools)/[\w./-]*\w)`", text):
        assert (ROOT / target).exists() or list(ROOT.glob(f"{target}*")), f"{page.name} names {target}"


def test_writing_a_pass_is_under_60_lines_of_code() -> None:
    text = (ROOT / "docs/writing-a-pass.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert sum(len(block.splitlines()) for block in blocks) < 60
