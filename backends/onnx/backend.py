"""OnnxBackend: lowers a Program to ONNX, run by ONNX Runtime. See docs/backends/onnx.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from burnish.backends.onnx.artifact import OnnxArtifact
from burnish.backends.onnx.check import findings
from burnish.backends.onnx.emit import lower
from burnish.backends.onnx.files import load_model
from burnish.backends.onnx.integer_rules import INTEGER_RULES
from burnish.backends.onnx.model import DTYPES, RUNTIMES, model_of
from burnish.backends.onnx.settings import DEFAULT_OPSETS, Settings
from burnish.backends.onnx.simplify import simplified
from burnish.backends.stages import StagedArtifact, emit_stages
from burnish.compiler.backend import Finding
from burnish.compiler.binding import Binding
from burnish.compiler.context import Target
from burnish.compiler.errors import BackendError, MissingDependencyError, OptionError
from burnish.compiler.graphs import name_of
from burnish.compiler.provenance import provenance_of

if TYPE_CHECKING:
    from burnish.compiler.pipeline import Pipeline
    from burnish.compiler.program import Program

__all__ = ["OnnxBackend"]


# Channels of a block of ONNX Runtime's and OpenVINO's convolutions, and floats of a vector register.
_ALIGNMENT = 16
# From here on layers and activations take bfloat16.
_BFLOAT16_OPSET = 22


class OnnxBackend:
    """Lowers Programs to ONNX. Options: see `settings.Settings`."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return what passes may know of where the Program will run.

        Raises:
            OptionError: an option is unknown or has an unusable value.
        """
        settings = Settings.parse(options)
        floating = {dtype for dtype in DTYPES.values() if dtype.is_floating_point}
        if settings.dialect == "ort" and settings.providers == ("CPUExecutionProvider",):
            # Its kernels for float16 it makes of casts, for bfloat16 it has none.
            floating.remove(torch.bfloat16)
        return Target(
            name=self.name,
            dtypes=frozenset(floating),
            integers=INTEGER_RULES[settings.dialect],
            alignment=_ALIGNMENT,
        )

    def default_passes(self, options: Mapping[str, Any]) -> Pipeline:
        """Return the passes that pay on ONNX Runtime.

        Raises:
            OptionError: an option is unknown or has an unusable value.
        """
        from burnish.compiler.pipeline import Pipeline

        Settings.parse(options)
        return Pipeline.parse("canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce")

    def check(self, program: Program) -> list[Finding]:
        """List what the backend cannot take, node by node, without lowering anything."""
        return list(findings(program, DEFAULT_OPSETS["ort"]))

    def emit(self, program: Program, options: Mapping[str, Any]) -> OnnxArtifact | StagedArtifact:
        """Lower `program`; it is not changed. Weights are shared with it, but for those that ONNX wants transposed.

        Raises:
            OptionError: an option is unknown or has an unusable value.
            BackendError: the program cannot be lowered; names node, module and source line.
        """
        settings = Settings.parse(options)
        if len(program.graphs) > 1:
            return emit_stages(self, program, options)
        if "opset" not in options and settings.opset < _BFLOAT16_OPSET and _computes_in_bfloat16(program):
            settings = replace(settings, opset=_BFLOAT16_OPSET)
        found = list(findings(program, settings.opset))
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise BackendError(f"the onnx backend cannot take {found[0]}{_place(program, found[0])}{more}")
        with torch.no_grad():
            model = model_of(lower(program, settings.opset, settings.standard), Binding.of(program), program.constants)
        model.check()
        notes = [f"opset {settings.opset}, dialect {settings.dialect}"]
        model = simplified(model, program, settings, notes)
        return OnnxArtifact(model, settings, tuple(notes), program)

    def load(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> OnnxArtifact:
        """Load what an artifact saved, or an ONNX file from elsewhere, for the runtime that it was saved for.

        Raises:
            OptionError: an option is unknown or has an unusable value.
            FileFormatError: the file is truncated or not ONNX.
            MissingDependencyError: the runtime is not installed.
        """
        model = load_model(path)
        try:
            settings = Settings.parse({"runtime": model.runtime, **options})
        except (MissingDependencyError, OptionError) as error:
            if "runtime" in options or model.runtime == RUNTIMES[0]:
                raise
            raise type(error)(
                f"{os.fspath(path)}: it was saved for {model.runtime}: {error}; or take"
                f' burnish.load(path, runtime="{RUNTIMES[0]}")'
            ) from error
        return OnnxArtifact(model, settings)


def _computes_in_bfloat16(program: Program) -> bool:
    values = (node.meta.get("val") for _, graph in program.all_graphs() for node in graph.nodes)
    return any(isinstance(each, torch.Tensor) and each.dtype is torch.bfloat16 for each in values)


def _place(program: Program, finding: Finding) -> str:
    for _, graph in program.all_graphs():
        for node in graph.nodes:
            provenance = provenance_of(node)
            if name_of(node) == finding.node and provenance is not None and provenance.origins:
                return f", from {', '.join(map(str, provenance.origins))}"
    return ""
