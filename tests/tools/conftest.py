"""A model on disk, and the command run in this process, for the tests of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import SOURCE, TEXT, Command
from typer.testing import CliRunner, Result

from burnish.tools.cli import app


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `nets_of_the_command_tests`."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "nets_of_the_command_tests.py").write_text(SOURCE)
    (folder / "broken_of_the_command_tests.py").write_text("import no_such_package_at_all\n")
    return folder


@pytest.fixture
def burnish(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `burnish *arguments` in the folder of the models; an exception that is no exit comes through."""
    monkeypatch.chdir(model_folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin, catch_exceptions=False)

    return run


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A program as text with two equal operators."""
    file = tmp_path / "program.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="session")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captured Program in a `.burnish`."""
    import torch

    from burnish.compiler.capture import capture

    namespace: dict[str, object] = {}
    exec(compile(SOURCE, "nets.py", "exec"), namespace)
    net = namespace["Net"]
    assert isinstance(net, type)
    file = tmp_path_factory.mktemp("saved") / "net.burnish"
    capture(net(), (torch.randn(2, 3, 8, 8),)).save(file)
    return file
