"""`compile`: capture, passes, lowering, and the comparison with the model, in one call."""

from __future__ import annotations

import inspect
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.export import ExportedProgram

from burnish.compiler import interpreter, numerics, structure
from burnish.compiler.backend import Artifact, Backend, refuse_untimed, suffixes
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs, as_arguments, capture, evaluation_mode
from burnish.compiler.context import Context
from burnish.compiler.errors import InputError, OptionError, VerificationError
from burnish.compiler.graphs import calls
from burnish.compiler.loading import Model, open_model, parse_backend
from burnish.compiler.measure import Timing, benchmark
from burnish.compiler.numerics import Lossy
from burnish.compiler.operators import is_random, operator_name
from burnish.compiler.pass_base import Pass
from burnish.compiler.pipeline import PassRecord, Pipeline, run_pipeline
from burnish.compiler.profile import Profile
from burnish.compiler.program import Program
from burnish.compiler.progress import working
from burnish.compiler.report import Report, row_of

__all__ = ["Compiled", "compile_model"]

Passes = Pipeline | str | Pass | Iterable[Pass | str]

# Of a measurement that passes ask for: seconds of a turn.
_TURN, _TURNS = 0.2, 5


def compile_model(
    model: Model,
    passes: Passes | None = None,
    inputs: Inputs | None = None,
    *,
    dynamic_shapes: Any = None,
    backend: str = "onnx",
    calibration: Iterable[Any] | None = None,
    verify: int = 2,
    progress: bool = True,
    seed: int = 0,
) -> Compiled:
    """Compile `model` and return something that is called like it.

    Args:
        model: an `nn.Module` (left untouched), an `ExportedProgram`, a `Program`, or the path of a saved Program
            (`.burnish`) or ExportedProgram (`.pt2`).
        passes: pass objects and pipeline text, in which `default` stands for the backend's own passes,
            `"default,quantize"`; these alone when None.
        inputs: example inputs, a tuple or a dict by name. Left out, a module is captured at its first call.
        dynamic_shapes: as in `torch.export.export`; by default dimension 0 of every tensor input is dynamic.
        backend: a backend's name, with options in braces where wanted: `"onnx{threads=2}"`.
        calibration: inputs, or (inputs, targets) pairs, for passes that need data.
        verify: level of verification after each pass, 0 to 4. From 2 on, the artifact is compared with the model.
        progress: show progress on a terminal.
        seed: everything random derives from it; the same seed gives the same result.

    Raises:
        InputError, OptionError, PipelineError, CaptureError, PassError, BackendError: each names what to change.
        VerificationError: the artifact's outputs are not the model's, and no pass in the pipeline is lossy.
    """
    chosen, options = parse_backend(backend)
    default = chosen.default_passes(options)
    pipeline = default if passes is None else Pipeline.of(passes, default)
    opened = open_model(model)
    pipeline.check(opened.facts if isinstance(opened, Program) else frozenset())
    if not isinstance(verify, int) or isinstance(verify, bool) or not 0 <= verify <= 4:
        raise OptionError(f"verify must be a level from 0 to 4, but is {verify!r}")
    job = _Job(opened, pipeline, dynamic_shapes, chosen, options, calibration, verify, progress, seed)
    if inputs is None and isinstance(job.model, torch.nn.Module):
        return Compiled(job)
    compiled = Compiled(job)
    compiled.start(inputs)
    return compiled


class Compiled:
    """A compiled model: called like the model, with a report of what was done to it.

    Made by `burnish.compile`. Without example inputs the work is done at the first call.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._done: tuple[Program, Artifact, Report] | None = None

    def start(self, inputs: Inputs | None) -> None:
        """Capture with `inputs`, run the passes, lower, and compare."""
        self._done = self._job.run(inputs)
        # Who called `compile_model`.
        self._warn(4)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the artifact; same pytree in and out as the model, torch tensors."""
        if self._done is None:
            self._done = self._job.run_call(args, kwargs)
            self._warn(3)
        return self.artifact(*args, **kwargs)

    @property
    def program(self) -> Program:
        """The Program after all passes."""
        return self._finished()[0]

    @property
    def artifact(self) -> Artifact:
        """What the backend made."""
        return self._finished()[1]

    @property
    def report(self) -> Report:
        """What every pass did; `print` it."""
        return self._finished()[2]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact; `burnish.load` reads it back. That of a partitioned Program is a folder.

        Raises:
            OptionError: the file's ending is not the backend's.
        """
        known = suffixes(self._job.backend)
        if len(self.program.graphs) == 1 and Path(path).suffix not in known:
            raise OptionError(
                f"{os.fspath(path)}: an artifact of the backend {self._job.backend.name!r} ends in {' or '.join(known)}"
            )
        self.artifact.save(path)

    def reset(self) -> None:
        """Put the buffers that a call updates back to their values at capture."""
        self.artifact.reset()

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Time calls of the artifact on `inputs`, by default the example inputs."""
        return self.artifact.benchmark(inputs if inputs is not None else self._samples(), seconds)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of each lowered node in a run on `inputs`, by default the example inputs."""
        return self.artifact.profile(inputs if inputs is not None else self._samples())

    def _warn(self, level: int) -> None:
        for each in self.report.warnings:
            warnings.warn(each, stacklevel=level)

    def _samples(self) -> Inputs | None:
        if not self.program.samples:
            return None
        args, kwargs = self.program.sample_arguments()
        return args if not kwargs else {**dict(zip(self.program.signature.parameters, args, strict=False)), **kwargs}

    def _finished(self) -> tuple[Program, Artifact, Report]:
        if self._done is None:
            raise InputError("nothing is compiled yet: pass inputs= to compile, or call the compiled model once")
        return self._done


@dataclass(slots=True)
class _Job:
    """The arguments of one compilation, kept until there are inputs to start it with."""

    model: torch.nn.Module | ExportedProgram | Program
    pipeline: Pipeline
    dynamic_shapes: Any
    backend: Backend
    options: Mapping[str, Any]
    calibration: Iterable[Any] | None
    verify: int
    progress: bool
    seed: int
    # What was measured, while somebody holds it: a search compares everything with the same Program.
    lowered: WeakKeyDictionary[Program, Artifact] = field(default_factory=WeakKeyDictionary)

    def run_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Program, Artifact, Report]:
        """Compile with the arguments of the first call as example inputs."""
        assert isinstance(self.model, torch.nn.Module)
        start = time.perf_counter()
        return self._run(self._capture(_by_name(self.model, args, dict(kwargs))), start)

    def run(self, inputs: Inputs | None) -> tuple[Program, Artifact, Report]:
        """Compile with example inputs."""
        start = time.perf_counter()
        if isinstance(self.model, Program):
            captured = self.model if inputs is None else self.model.with_samples(*as_arguments(inputs))
        elif isinstance(self.model, ExportedProgram):
            captured = capture(self.model, inputs)
        else:
            assert inputs is not None
            captured = self._capture(inputs)
        return self._run(captured, start)

    def _capture(self, inputs: Inputs) -> Program:
        assert isinstance(self.model, torch.nn.Module)
        with working("capture", self.progress):
            return capture(self.model, inputs, self.dynamic_shapes)

    def _run(self, captured: Program, start: float) -> tuple[Program, Artifact, Report]:
        report = Report(self.backend.name, capture_seconds=time.perf_counter() - start, notes=list(captured.notes))
        report.notes += [
            f"captured for {text} only: the model takes another path elsewhere"
            for text in Binding.of(captured).conditions
        ]
        context = Context(
            target=self.backend.target(self.options),
            calibration=self.calibration,
            seed=self.seed,
            measure=self._measure,
            profile=self._profile,
            progress=self.progress,
        )
        report.passes.append(row_of("capture", captured))

        def observe(record: PassRecord, before: Program, after: Program) -> None:
            like = None if record.changed else report.passes[-1]
            report.passes.append(row_of(record.label, after, record, like))

        with working("passes", self.progress):
            program, report.records = run_pipeline(
                self.pipeline, captured, context, verify=self.verify, observer=observe
            )
        start = time.perf_counter()
        with working(f"lowering to {self.backend.name}", self.progress):
            artifact = self.backend.emit(program, self.options)
        report.emit_seconds = time.perf_counter() - start
        report.artifact_nodes, report.artifact_bytes = artifact.node_count(), artifact.size()
        report.notes += [*context.notes, *artifact.notes()]
        report.warnings = (*program.warnings, *artifact.warnings())
        start = time.perf_counter()
        if self.verify >= 2:
            with working("comparing with the model", self.progress):
                self._compare(captured, program, artifact, report)
        report.verify_seconds = time.perf_counter() - start + sum(each.verify_seconds for each in report.records)
        return program, artifact, report

    def _measure(self, programs: Sequence[Program]) -> list[float]:
        """Return seconds per call of what the backend makes of each, behind its own passes; the best of some turns."""
        timed = []
        for program in programs:
            artifact = self._lowered(program)
            refuse_untimed(artifact)
            # Copied once: a copy's threads, which wait busily for more, would share the cores with the backend's.
            args, kwargs = program.sample_arguments()
            timed.append(partial(artifact, *args, **kwargs))
        turns = [[benchmark(call, _TURN).median for call in timed] for _ in range(_TURNS)]
        return [min(times) for times in zip(*turns, strict=True)]

    def _profile(self, program: Program) -> Profile:
        return self._lowered(program).profile()

    def _lowered(self, program: Program) -> Artifact:
        """Return what the backend makes of a Program, behind its own passes."""
        if program not in self.lowered:
            context = Context(target=self.backend.target(self.options))
            finished = run_pipeline(self.backend.default_passes(self.options), program, context, verify=0)[0]
            self.lowered[program] = self.backend.emit(finished, self.options)
        return self.lowered[program]

    def _compare(self, captured: Program, program: Program, artifact: Artifact, report: Report) -> None:
        """Hold the artifact to the model on the sample inputs."""
        if not program.samples:
            report.notes.append("not compared with the model: there are no sample inputs")
            return
        if any(is_random(node) for _, graph in program.all_graphs() for node in calls(graph)):
            report.notes.append("not compared with the model: it draws random numbers")
            return
        expected = self._reference(captured)
        args, kwargs = program.sample_arguments()
        actual = artifact(*args, **kwargs)
        artifact.reset()
        is_lossy = any(isinstance(each.numerics, Lossy) for each in self.pipeline.flat())
        found = _compare(program, actual, captured, expected, is_lossy)
        report.artifact_drift = found
        # Of a model that came quantized, kernels of two runtimes round to different steps.
        lossy = is_lossy or _is_quantized(captured)
        allowed = numerics.tolerance(program)
        if found > allowed and not lossy:
            raise VerificationError(
                f"the {self.backend.name} artifact differs from the model by {found:.3g} relative, where {allowed:g} is"
                " allowed: `burnish opt --verify 4` tells whether a pass did it; otherwise the lowering did"
            )

    def _reference(self, captured: Program) -> Any:
        args, kwargs = captured.sample_arguments()
        if isinstance(self.model, Program):
            return interpreter.run(captured, captured.samples)[0]
        if isinstance(self.model, ExportedProgram):
            return self.model.module()(*args, **kwargs)
        # Buffers that forward updates must stay as they are: it runs on copies.
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        with evaluation_mode(self.model), torch.no_grad():
            return torch.func.functional_call(self.model, buffers, args, kwargs)


def _is_quantized(program: Program) -> bool:
    names = {operator_name(node.target) for _, graph in program.all_graphs() for node in calls(graph)}
    return any(name.startswith("quantized_decomposed.quantize") for name in names)


def _by_name(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Return the arguments of a call as `capture` takes them: all positional, or all by name."""
    if not kwargs:
        return args
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments) if args else kwargs


def _compare(program: Program, actual: Any, captured: Program, expected: Any, lossy: bool) -> float:
    """Return the worst drift over the outputs that both have; a lossy pass may have given them another float type."""
    found = structure.flatten(program.signature.outputs, actual, "the artifact's outputs")
    wanted = structure.flatten(captured.signature.outputs, expected, "the model's outputs")
    common = [name for name in wanted if name in found]
    if lossy:
        found = {name: numerics.comparable(found[name], wanted[name]) for name in common}
    return numerics.worst_drift([found[name] for name in common], [wanted[name] for name in common])
