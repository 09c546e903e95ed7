"""Reproducer bundles: the Program before the failed pass, the passes from there on, seed and versions, in a folder.

`burnish repro FOLDER` replays it. The folder holds `program.burnish`, `bundle.json` and `error.txt`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import traceback
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.compiler.errors import FileFormatError
from burnish.compiler.program import Program

if TYPE_CHECKING:
    from burnish.compiler.pipeline import Pipeline

__all__ = ["Bundle", "read_bundle", "versions", "write_bundle"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A failure to replay: run `pipeline` on `program` with this seed and level of verification.

    `error` is the type and message seen when it was written.
    """

    program: Program
    pipeline: str
    seed: int
    verify: int
    error: str


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("burnish", "torch", "onnx", "onnxruntime", "onnxscript"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_bundle(program: Program, pipeline: Pipeline, seed: int, verify: int, error: Exception) -> Path:
    """Write a bundle into a new folder below the system's temporary one, and return its path."""
    folder = Path(tempfile.mkdtemp(prefix="burnish-repro-"))
    program.save(folder / "program.burnish")
    digest = hashlib.sha256(program.print().encode()).hexdigest()
    record = {
        "bundle": 1,
        "pipeline": str(pipeline),
        "seed": seed,
        "verify": verify,
        "error": f"{type(error).__name__}: {error}",
        "text_sha256": digest,
        "versions": versions(),
    }
    (folder / "bundle.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return folder


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        FileFormatError: `path` is no bundle, or one of another version.
    """
    folder = Path(path)
    try:
        record = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        if record["bundle"] != 1:
            raise FileFormatError(f"{folder}: a bundle of version {record['bundle']!r}, and this burnish reads 1")
        seed, verify = int(record["seed"]), int(record["verify"])
        pipeline, error = str(record["pipeline"]), str(record["error"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise FileFormatError(f"{folder} is no reproducer bundle: {problem}") from problem
    return Bundle(Program.load(folder / "program.burnish"), pipeline, seed, verify, error)
