"""TensorRTBackend: lowers a Program to a TensorRT engine, or to what one is built from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.backends.onnx import OnnxArtifact, OnnxBackend
from burnish.backends.readiness import Graph, Range, sample_ranges
from burnish.backends.stages.eager import EagerArtifact
from burnish.backends.stages.plan import Stages
from burnish.backends.tensorrt import device, library
from burnish.backends.tensorrt.artifact import TensorRTArtifact
from burnish.backends.tensorrt.bundle import SUFFIX as BUNDLE
from burnish.backends.tensorrt.bundle import Bundle
from burnish.backends.tensorrt.bundle_artifact import BundleArtifact
from burnish.backends.tensorrt.engine_file import SUFFIX as ENGINE
from burnish.backends.tensorrt.engine_file import EngineFile
from burnish.backends.tensorrt.gates import cut_at_gates, stage_ranges
from burnish.backends.tensorrt.settings import DTYPES, Settings
from burnish.backends.tensorrt.sizes import check_samples
from burnish.backends.tensorrt.stages import StagedEngines
from burnish.compiler.backend import Artifact, Finding
from burnish.compiler.errors import BackendError, OptionError
from burnish.compiler.options import check_options
from burnish.compiler.printer import symbol_names
from burnish.compiler.stages import stage_programs

if TYPE_CHECKING:
    from burnish.compiler.context import Target
    from burnish.compiler.pipeline import Pipeline
    from burnish.compiler.program import Program

__all__ = ["TensorRTBackend", "build_engine"]

_DIALECT = {"dialect": "tensorrt"}
_PASSES = {"fp16": "precision{dtype=fp16}", "bf16": "precision{dtype=bf16}", "int8": "quantize"}
_SHOWN = 3


class TensorRTBackend:
    """Lowers Programs to engines. Options: see `settings.Settings`."""

    name: ClassVar[str] = "tensorrt"
    suffix: ClassVar[str] = ENGINE
    other_suffixes: ClassVar[tuple[str, ...]] = (BUNDLE,)

    def __init__(self) -> None:
        self._onnx = OnnxBackend()

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return what passes may know of where the Program will run.

        Raises:
            OptionError: an option is unknown or has an unusable value.
        """
        Settings.parse(options)
        return replace(self._onnx.target(_DIALECT), name=self.name)

    def default_passes(self, options: Mapping[str, Any]) -> Pipeline:
        """Return the passes that pay.

        Raises:
            OptionError: an option is unknown or has an unusable value.
        """
        Settings.parse(options)
        return self._onnx.default_passes(_DIALECT)

    def check(self, program: Program) -> list[Finding]:
        """List what ONNX cannot express; what TensorRT refuses of the rest, `emit` and `burnish check` tell."""
        return self._onnx.check(program)

    def emit(self, program: Program, options: Mapping[str, Any]) -> Artifact:
        """Lower `program`; it is not changed. Without TensorRT or a GPU the result is a bundle, and a warning says so.

        Raises:
            OptionError: an option is unknown or has an unusable value.
            BackendError: the Program cannot be lowered, TensorRT is known to refuse it, or cannot build it; names node,
                module and source line.
        """
        settings = Settings.parse(options)
        _check_names(program, settings)
        whole, parts = cut_at_gates(program)
        if len(whole.graphs) == 1:
            return self._engine(program, settings, None, 0)
        stages = stage_programs(whole)
        ranges = stage_ranges(program, whole, stages, settings.ranges())
        made: list[Artifact] = [
            EagerArtifact(stages[name])
            if part.is_gate
            else self._engine(stages[name], settings, ranges[name], part.origin)
            for name, part in parts.items()
        ]
        return StagedEngines(Stages.of(whole, self.suffix), made, program.samples)

    def load(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> TensorRTArtifact | BundleArtifact:
        """Load an `.engine`, or a `.trtbundle`, which ONNX Runtime runs: loading builds nothing.

        Args:
            path: the file.
            options: of an engine, `host_code`: let a version-compatible one bring its own runtime, code that TensorRT
                executes. By default such a file is refused.

        Raises:
            OptionError: another option is given, or one for a bundle: what was built stays so.
            FileFormatError: the file is truncated, damaged or foreign.
            MissingDependencyError: TensorRT, which an engine needs, is not installed.
            BackendError: there is no GPU, or the engine was built by another TensorRT or on another GPU.
        """
        if Path(path).suffix != BUNDLE:
            return TensorRTArtifact.load(path, **check_options(self.name, options, {"host_code": False}))
        if options:
            raise OptionError(f"{os.fspath(path)}: a bundle is loaded without options, so without {', '.join(options)}")
        return BundleArtifact(Bundle.load(path))

    def _engine(
        self, program: Program, settings: Settings, ranges: Mapping[str, Range] | None, number: int
    ) -> TensorRTArtifact | BundleArtifact:
        """Lower a Program of one graph.

        Args:
            program: what to lower.
            settings: the options.
            ranges: sizes by symbol; None for those of the samples and the options.
            number: of the stage; stages go round the GPUs.
        """
        lowered = self._onnx.emit(program, _DIALECT)
        assert isinstance(lowered, OnnxArtifact)
        graph = Graph.of(lowered.model.graph, lowered.model.weights, "the program")
        if ranges is None:
            samples, given = sample_ranges(program, graph), settings.ranges()
            check_samples(samples, given)
            ranges = samples | given
        notes = (*lowered.notes(), *_checked(graph, ranges, settings))
        count = device.count()
        bundle = Bundle.of(program, lowered.model, settings, ranges, number % count if count else number)
        return BundleArtifact(bundle, program, notes) if library.reason() else build_engine(bundle, program, notes)[0]


def build_engine(
    bundle: Bundle, program: Program | None = None, notes: tuple[str, ...] = ()
) -> tuple[TensorRTArtifact, float]:
    """Build the engine of a bundle on its GPU, or, where there are fewer, on another; return it and the seconds taken.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        BackendError: there is no GPU, or TensorRT refuses the graph; names node, module and source line.
    """
    library.require("building an engine")
    from burnish.backends.tensorrt.building import build

    index = bundle.device % device.count()
    built = build(bundle, index)
    file = EngineFile.of(bundle, built.plan, index)
    return TensorRTArtifact(file, bundle, program, (*notes, *built.notes)), built.seconds


def _check_names(program: Program, settings: Settings) -> None:
    """Check that profiles are of sizes or inputs that there are, before anything is lowered."""
    names = [*symbol_names(program).names.values(), *program.signature.input_names]
    for each in settings.ranges():
        if each not in names and each.rpartition(".")[0] not in names:
            known = ", ".join(symbol_names(program).names.values()) or "none"
            raise OptionError(
                f"option 'profiles' of backend 'tensorrt': the program has no dynamic size {each!r}; there are {known}"
            )


def _checked(graph: Graph, ranges: Mapping[str, Range], settings: Settings) -> list[str]:
    """Check what TensorRT is known to refuse, before any build; return what only takes time.

    Raises:
        BackendError: there is something; says what would mend it.
    """
    chosen = library.target()
    found = chosen.findings(graph, ranges)
    wrong = [each for each in found if each.rule != "fusion"]
    if wrong:
        texts = [_finding(each) for each in wrong[:_SHOWN]]
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise BackendError(f"{chosen.name} cannot take {'; '.join(texts)}{more}")
    dtype = DTYPES.get(settings.dtype)
    if dtype is not None:
        present = {scope.dtype(value) for scope in graph.scopes for node in scope.nodes for value in node.proto.output}
        # Integers of weights are constants.
        present |= {scope.dtype(each.name) for scope in graph.scopes for each in scope.proto.initializer}
        if dtype not in present:
            raise BackendError(
                f"dtype={settings.dtype} was asked for, and the network carries none: TensorRT computes in its types;"
                f" put {_PASSES[settings.dtype]} into the passes, as in 'default,{_PASSES[settings.dtype]}'"
            )
    return [f"{each.node} ({each.operator}): {each.reason}" for each in found if each.rule == "fusion"]


def _finding(finding: Finding) -> str:
    fix = finding.fix
    if finding.rule == "profile":
        fix = f'the option profiles=["{fix.removeprefix("--profile ")}"]'
    module = f" in {finding.module}" if finding.module else ""
    return f"{finding}{module}{f': {fix}' if fix else ''}"
