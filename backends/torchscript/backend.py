"""The torchscript backend: TorchScript source from the graph, frozen, at any batch size.

Cases not handled: see `operators.refusal`; devices other than the CPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from burnish.backends.stages import StagedArtifact, emit_stages
from burnish.backends.torchscript.artifact import Convention, TorchScriptArtifact, load_artifact
from burnish.backends.torchscript.half_norms import spare_casts_of_norms
from burnish.backends.torchscript.jit import compile_source, freeze
from burnish.backends.torchscript.layout import plan_layout
from burnish.backends.torchscript.operators import refusal
from burnish.backends.torchscript.quantized import lower_integers, stays_fused
from burnish.backends.torchscript.source import Source, write_source
from burnish.compiler.backend import Finding
from burnish.compiler.binding import Binding
from burnish.compiler.context import Target
from burnish.compiler.errors import BackendError
from burnish.compiler.fused import is_fused
from burnish.compiler.graphs import calls, name_of
from burnish.compiler.inlining import inline_fused
from burnish.compiler.integers import IntegerRules
from burnish.compiler.operators import operator_name
from burnish.compiler.options import check_options
from burnish.compiler.pipeline import Pipeline
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of

__all__ = ["TorchScriptBackend"]

_OPTIONS: dict[str, Any] = {}
# Floats of a vector register, and channels of a block of oneDNN.
_ALIGNMENT = 16
# Kernels of averages keep the scale of their operand, which is too wide for what they give: these stay float.
_INTEGERS = IntegerRules(
    operators=frozenset({"add", "concat", "leaky-relu", "mul", "sigmoid"}),
    large_silu=1 << 18,
)
_SHOWN_FINDINGS = 10
_LINE = re.compile(r'File "<string>", line (\d+)')


class TorchScriptBackend:
    """Lowers a Program to a `.pt` that plain `torch.jit.load` runs."""

    name: ClassVar[str] = "torchscript"
    suffix: ClassVar[str] = ".pt"

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return what passes may know of where the Program will run."""
        return Target(name=self.name, integers=_INTEGERS, alignment=_ALIGNMENT)

    def default_passes(self, options: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline that `compile(passes=None)` runs."""
        check_options(self.name, options, _OPTIONS)
        return Pipeline.parse("canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce")

    def check(self, program: Program) -> list[Finding]:
        """List the nodes whose operator TorchScript cannot call."""
        findings = []
        for _, graph in program.all_graphs():
            for node in calls(graph):
                # A fused operator has a form of its own, or is inlined into operators of ATen.
                reason = None if is_fused(node.target) else refusal(node)
                if reason is not None:
                    provenance = provenance_of(node)
                    module = provenance.origins[0].module if provenance and provenance.origins else ""
                    findings.append(Finding(name_of(node), operator_name(node.target), reason, module))
        return findings

    def emit(self, program: Program, options: Mapping[str, Any]) -> TorchScriptArtifact | StagedArtifact:
        """Lower `program`; its weights are copied. Fused operators without a form of their own are inlined.

        Raises:
            OptionError: an option is unknown or has an unusable value.
            BackendError: the program cannot be lowered; names the node.
        """
        check_options(self.name, options, _OPTIONS)
        if len(program.graphs) > 1:
            return emit_stages(self, program, options)
        findings = self.check(program)
        if findings:
            shown = "".join(f"\n  {each}" for each in findings[:_SHOWN_FINDINGS])
            more = f"\n  and {len(findings) - _SHOWN_FINDINGS} more" if len(findings) > _SHOWN_FINDINGS else ""
            raise BackendError(f"the torchscript backend cannot take {len(findings)} nodes:{shown}{more}")
        program = spare_casts_of_norms(inline_fused(program, stays_fused))
        lowered = lower_integers(program)
        layout = plan_layout(lowered.program)
        source = write_source(lowered.program, layout)
        # Copies, so that training the model further, or a call that updates a buffer, does not reach the other side.
        constants = {
            attribute: lowered.packed[name]
            if name in lowered.packed
            else _copy(lowered.program.constants[name], name in layout.weights)
            for name, attribute in source.attributes.items()
        }
        try:
            module = compile_source(source.text, constants)
        except RuntimeError as error:
            raise BackendError(_explain(error, source)) from error
        mutable = program.mutable_constants()
        state = tuple(attribute for name, attribute in source.attributes.items() if name in mutable)
        frozen = freeze(module, list(state))
        convention = Convention(Binding.of(program), source.inputs, source.outputs, state)
        return TorchScriptArtifact(
            frozen, convention, program.samples, source.lines, _notes(program, state), program.cost
        )

    def load(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> TorchScriptArtifact:
        """Load what an artifact of this backend saved.

        Raises:
            InputError: no such file.
            OptionError: an option is unknown or has an unusable value.
            FileFormatError: the file is truncated, damaged or foreign.
        """
        check_options(self.name, options, _OPTIONS)
        return load_artifact(path)


def _copy(constant: torch.Tensor, channels_last: bool) -> torch.Tensor:
    if channels_last:
        return constant.detach().clone(memory_format=torch.channels_last)
    # The order in memory is also how a loaded module tells the weights that may be packed.
    is_picture = constant.dim() == 4 and constant.is_contiguous(memory_format=torch.channels_last)
    return constant.detach().clone(memory_format=torch.contiguous_format if is_picture else torch.preserve_format)


def _explain(error: RuntimeError, source: Source) -> str:
    text = str(error).strip()
    place = _LINE.search(text)
    node, module = source.lines.get(int(place.group(1)), ("", "")) if place else ("", "")
    where = f" at {node} (in {module or 'the root module'})" if node else ""
    return f"TorchScript does not take the program{where}: {text}"


def _notes(program: Program, state: tuple[str, ...]) -> tuple[str, ...]:
    notes = ["TorchScript compiles at the first calls: they are slower than the following ones"]
    if state:
        notes.append(
            f"calls update {len(state)} buffers; the saved file starts from their values at the time of saving"
        )
    return tuple(notes)
