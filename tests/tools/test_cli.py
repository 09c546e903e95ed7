"""What all verbs share: help, errors, exit status, colour, and how fast the command starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TEXT, Command

VERBS = [
    "compile",
    "capture",
    "opt",
    "explain",
    "passes",
    "diff",
    "run",
    "bench",
    "profile",
    "repro",
    "check",
    "doctor",
]
SRC = Path(__file__).parents[2] / "src"
START = "from burnish.tools.cli import main; main()"


def run_process(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(burnish: Command, verb: str) -> None:
    result = burnish(verb, "--help")
    assert result.exit_code == 0
    usage = result.stdout.index("Usage:")
    assert f"burnish {verb} " in result.stdout[usage + len("Usage: burnish") :]
    assert "--debug" in result.stdout


def test_the_help_lists_the_verbs(burnish: Command) -> None:
    assert all(verb in burnish("--help").stdout for verb in VERBS)


def test_version(burnish: Command) -> None:
    result = burnish("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("burnish")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["opt", "{file}", "-p", "cse", "--verify", "9"], "--verify"),
        (["opt", "{file}"], "--passes"),
        (["opt", "{file}", "-p", "cze"], "did you mean"),
        (["opt", "{file}", "-p", "cse{strong=true}"], "has no option 'strong'"),
        (["opt", "{file}", "-p", "cse,("], "pipeline text"),
        (["opt", "missing.txt", "-p", "cse"], "missing.txt: no such file"),
        (["opt", "missing.burnish", "-p", "cse"], "missing.burnish: no such file"),
        (["explain", "{file}", "-p", "cze"], "no pass is called"),
        (["passes", "cze"], "no pass is called"),
        (["diff", "{file}", "missing.txt"], "no such file"),
        (["diff", "-", "-"], "standard input holds one program"),
        (["run", "missing.onnx"], "no such file"),
        (["run", "{file}"], "the ending must be one of"),
        (["bench", "missing.pt"], "no such file"),
        (["repro", "missing"], "no such folder"),
        (["repro", "."], "no reproducer bundle"),
        (["compile", "missing.pt2"], "no such file"),
        (["opt", "{file}", "-p", "cse", "-o", "missing/out.txt"], "there is no folder missing"),
        (["opt", "{file}", "-p", "cse", "-o", "."], ".: a folder, not a file"),
        (["opt", ".", "-p", "cse"], ".: a folder, not a file"),
        (["opt", "{file}", "-p", "cse", "--dump-dir", "{file}"], ": File exists"),
        (["compile", ":factory"], "is written package.module:name"),
        (["compile", "module:"], "is written package.module:name"),
    ],
)
def test_what_cannot_be_used_is_status_2(burnish: Command, text_file: Path, arguments: list[str], message: str) -> None:
    result = burnish(*[each.replace("{file}", str(text_file)) for each in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_text_that_does_not_parse_names_file_and_line(burnish: Command, tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(TEXT.replace("aten.relu(%x)", "aten.relu(%y)", 1))
    result = burnish("opt", file, "-p", "cse")
    assert result.exit_code == 2
    assert f"{file}:3:" in result.stderr


@pytest.mark.parametrize("verb", ["diff", "explain"])
def test_an_artifact_holds_no_program(burnish: Command, tmp_path: Path, verb: str) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"\xff")
    result = burnish(verb, file, *([file] if verb == "diff" else ["-p", "dce"]))
    assert result.exit_code == 2
    assert f"{file}: what a backend made holds no Program: give a .burnish, or its text" in result.stderr


def test_a_binary_file_is_no_text(burnish: Command, tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(b"\xff\xfe\x00")
    result = burnish("diff", file, file)
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr


def test_a_truncated_file_is_status_2_for_diff_too(burnish: Command, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.burnish"
    file.write_bytes(saved.read_bytes()[:300])
    assert burnish("diff", saved, file).exit_code == 2


def test_debug_shows_the_traceback(burnish: Command) -> None:
    result = burnish("passes", "cze", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: no pass is called" in result.stderr


def test_colour_on_a_terminal_only(burnish: Command, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = burnish("opt", text_file, "-p", "")
    assert plain.stdout == TEXT
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[36m" in burnish("opt", text_file, "-p", "").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in burnish("opt", text_file, "-p", "").stdout


def test_help_comes_without_torch() -> None:
    script = f"""
import sys
from burnish.tools.cli import app
for verb in {VERBS!r}:
    app([verb, "--help"], standalone_mode=False)
print(sorted({{"torch", "numpy", "onnx", "onnxruntime"}} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_real_pipe_is_plain(text_file: Path) -> None:
    result = run_process("opt", "-", "-p", "cse", "--stats", stdin=text_file.read_text())
    assert result.returncode == 0
    assert "\x1b" not in result.stdout + result.stderr
    assert "  %c = aten.add.Tensor(%a, %a) : f32[4]\n" in result.stdout
    assert "cse" in result.stderr


def test_a_real_exit_status(text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("relu(%x)", "neg(%x)", 1))
    result = run_process("diff", text_file, other, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["equal"] is False
