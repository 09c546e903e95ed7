"""From a bundle to a verified engine and what is to be said of it: the work of `burnish build-trt`.

A folder of stages is built stage by stage, verified stage by stage, and timed as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.backends.stages.eager import EagerArtifact
from burnish.backends.stages.plan import MANIFEST, Stages
from burnish.backends.tensorrt import device, library
from burnish.backends.tensorrt.artifact import TensorRTArtifact
from burnish.backends.tensorrt.backend import build_engine
from burnish.backends.tensorrt.bundle import SUFFIX, Bundle
from burnish.backends.tensorrt.settings import Settings
from burnish.backends.tensorrt.stages import GATE, StagedEngines
from burnish.compiler.backend import Artifact
from burnish.compiler.errors import FileFormatError, InputError
from burnish.compiler.program import Program

__all__ = ["Result", "construct"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came out.

    Attributes:
        artifact: the engine, or the stages, not saved yet.
        verified: whether outputs are as near to the expected ones as they must be; None where nothing was expected.
        data: the whole result, as JSON takes it.
    """

    artifact: Artifact
    verified: bool | None
    data: dict[str, Any]


def construct(path: Path, timing_cache: Path | None, seconds: float) -> Result:
    """Build, run and time what a bundle holds.

    Args:
        path: a `.trtbundle`, or a folder of them with a manifest.
        timing_cache: file that keeps how fast kernels were.
        seconds: how long to time it.

    Raises:
        InputError: there is no bundle, or the timing cache cannot be written.
        OptionError: the timing cache is no file.
        FileFormatError: the bundle is truncated, damaged or foreign.
        MissingDependencyError: TensorRT is not installed.
        BackendError: there is no GPU, or TensorRT refuses the graph; names node, module and source line.
    """
    parts = list(_read(path))
    library.require("build-trt")
    if timing_cache is not None:
        Settings.parse({"timing_cache": str(timing_cache)})
    made: list[Artifact] = []
    stages: list[dict[str, Any]] = []
    for name, part in parts:
        if isinstance(part, Program):
            made.append(EagerArtifact(part))
            continue
        if timing_cache is not None:
            part = replace(part, settings=replace(part.settings, timing_cache=str(timing_cache)))
        artifact, taken = build_engine(part)
        made.append(artifact)
        stages.append({"stage": name, "build_seconds": taken, **_measured(part, artifact, seconds)})
    whole, timing = made[0], stages[0]["latency"]
    if path.is_dir():
        whole = StagedEngines(Stages.read(path), made, _samples(parts))
        timing = (
            _timing(whole, seconds) if all(isinstance(part, Program) or part.samples for _, part in parts) else None
        )
    errors = [each["error"] for each in stages if each["error"] is not None]
    verified = all(each["verified"] is not False for each in stages) if errors else None
    bundles = [part for _, part in parts if isinstance(part, Bundle)]
    data = {
        "bundle": str(path),
        "verified": verified,
        "error": max(errors, default=None),
        "tolerance": max(each.tolerance for each in bundles),
        "build_seconds": sum(each["build_seconds"] for each in stages),
        "latency": timing,
        "bytes": whole.size(),
        "gpus": sorted({each["gpu"] for each in stages}),
        "versions": {**bundles[0].versions, "tensorrt": library.version()},
        "stages": stages,
    }
    return Result(whole, verified, data)


def _read(path: Path) -> Iterator[tuple[str, Bundle | Program]]:
    """Yield the stages of a bundle, by name."""
    if not path.is_dir():
        yield path.stem, Bundle.load(path)
        return
    stages = Stages.read(path).stages
    if not any(each.file.endswith(SUFFIX) for each in stages):
        raise FileFormatError(f"{path}: {MANIFEST} names no {SUFFIX}: save one with backend='tensorrt'")
    for stage in stages:
        file = path / stage.file
        if not file.is_file():
            raise InputError(f"{file}: no such file")
        if file.suffix not in (SUFFIX, GATE):
            raise FileFormatError(f"{file}: neither a {SUFFIX} nor a {GATE}")
        yield stage.name, Program.load(file) if file.suffix == GATE else Bundle.load(file)


def _measured(bundle: Bundle, artifact: TensorRTArtifact, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gpu": device.name(artifact.file.device),
        "capability": list(artifact.file.capability),
        "profiles": list(artifact.file.profiles),
        "latency": _timing(artifact, seconds) if bundle.samples else None,
        "error": None,
        "verified": None,
        "tolerance": bundle.tolerance,
        "engine": artifact.inspection.data(),
        "notes": artifact.notes(),
    }
    if bundle.expected:
        args, kwargs = bundle.arguments()
        error = bundle.drift(artifact(*args, **kwargs))
        artifact.reset()
        found |= {"error": error, "verified": error <= bundle.tolerance}
    return found


def _timing(artifact: Artifact, seconds: float) -> dict[str, Any]:
    timing = artifact.benchmark(seconds=seconds)
    return {"median": timing.median, "best": timing.best, "p90": timing.p90, "calls": timing.calls}


def _samples(parts: list[tuple[str, Bundle | Program]]) -> dict[str, Any]:
    """Return the samples of all stages: those of the whole are among them."""
    return {name: each for _, part in reversed(parts) for name, each in part.samples.items()}
