"""What Polygraphy, NVIDIA's tool for ONNX files, says of one: `polygraphy check lint` and `polygraphy inspect model`.

Lint checks the file with ONNX's checker, runs it in ONNX Runtime without optimizations, and names nodes and inputs
that no output depends on. Both verbs run in this process: starting one takes longer than what it does.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER
from polygraphy.tools import main

__all__ = ["complaints"]

_MARKS = ("[W]", "[E]", "[!]")


def complaints(file: Path, feeds: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what either verb complains of; [] for a clean file.

    Args:
        file: an `.onnx` file.
        feeds: inputs by name to run it on.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, report = Path(folder) / "inputs.json", Path(folder) / "report.json"
        save_json([{name: each.numpy() for name, each in feeds.items()}], str(inputs))
        options = ["--load-inputs", str(inputs), "--output", str(report)]
        # Its optimizer crashes on some files in float16 (microsoft/onnxruntime#28392).
        options += ["--graph-optimization-level", "ORT_DISABLE_ALL"]
        status, _ = _run(["check", "lint", str(file), *options])
        entries = json.loads(report.read_text(encoding="utf-8"))["lint_entries"] if report.exists() else []
    found = [f"lint: {each['level']}: {each['message'].strip()} {each.get('nodes', '')}".strip() for each in entries]
    found += [f"lint: exit status {status}"] if status else []
    # Its first words in a process may be about Polygraphy itself: those are lint's.
    status, printed = _run(["inspect", "model", str(file)])
    found += [f"inspect: {line.strip()}" for line in printed.splitlines() if line.startswith(_MARKS)]
    return [*found, *([f"inspect: exit status {status}"] if status else [])]


def _run(arguments: list[str]) -> tuple[int, str]:
    """Return a verb's exit status and what it prints; lint itself catches what ONNX Runtime writes to stderr."""
    # Some warnings it gives once in a process, not once for each file.
    G_LOGGER.once_logged.clear()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        return int(main(arguments)), printed.getvalue()
