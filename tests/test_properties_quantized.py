"""Quantization of random graphs, in random pipelines: only pairs are added, and every backend computes what they say.

That a graph of eight bits is near the original cannot be asked of random graphs: a difference of near equals has any
error. Asked instead: without its pairs it is the original; later passes change nothing; backends agree with eager.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.graphs import calls
from burnish.compiler.loading import parse_backend
from burnish.compiler.numerics import worst_drift
from burnish.compiler.operators import operator_name
from tests.random_programs import programs

_SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
_BEFORE = (
    "canonicalize",
    "canonicalize,fold-batch-norm,fold-constants,cse",
    "canonicalize,fold-batch-norm,fuse,dce",
)
_QUANTIZE = (
    "quantize{preset=fast}",
    "quantize{preset=fast,observer=percentile}",
    "quantize{preset=fast,granularity=tensor}",
    "quantize{preset=fast,symmetric=True}",
)
_AFTER = ("cse", "dce", "cse,dce", "repeat{max=2}(cse,dce)")
_TARGETS = ("onnx", "onnx{dialect=openvino}", "onnx{dialect=tensorrt}", "torchscript")


def batches(program: Program, sizes: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((size, *program.samples["x"].shape[1:]), generator=generator) for size in sizes]


def leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def run(program: Program, passes: str, target: str) -> Program:
    backend, options = parse_backend(target)
    data = [(each,) for each in batches(program, (4, 4, 4), seed=0)]
    context = Context(target=backend.target(options), calibration=data, progress=False)
    return Pipeline.parse(passes).run(program, context, verify=3)


def without_pairs(quantized: Program, original: Program) -> Program:
    """Return `quantized` with activations handed through and the weights and biases of `original`."""
    found = quantized.copy()
    graph = found.graphs["main"]
    for node in calls(graph):
        name = operator_name(node.target)
        if not name.startswith("quantized_decomposed."):
            continue
        source = node.args[0]
        if "per_channel" in name:
            # A layer without bias gets one of zeros to hold its integers.
            kept = str(source.target).removesuffix(".integers")
            zeros = torch.zeros(found.constants[source.target].shape)
            found.constants[source.target] = original.constants.get(kept, zeros)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    return found


@given(
    text=programs(),
    before=st.sampled_from(_BEFORE),
    quantize=st.sampled_from(_QUANTIZE),
    target=st.sampled_from(_TARGETS),
)
@_SETTINGS
def test_without_its_pairs_it_is_the_original(text: str, before: str, quantize: str, target: str) -> None:
    program = run(Program.parse(text), before, target)
    quantized = run(program, quantize, target)
    bare = without_pairs(quantized, program)
    for x in batches(program, (1, 3, 17), seed=1):
        # Fused layers are taken apart, which rounds differently.
        assert worst_drift(leaves(bare(x)), leaves(program(x))) <= 1e-5
        assert [each.shape for each in leaves(quantized(x))] == [each.shape for each in leaves(program(x))]


@given(
    text=programs(),
    quantize=st.sampled_from((*_QUANTIZE, "quantize-dynamic", "quantize", "quantize{preset=accurate}")),
    after=st.sampled_from(_AFTER),
    target=st.sampled_from(_TARGETS),
)
@_SETTINGS
def test_exact_passes_behind_it_change_no_bit(text: str, quantize: str, after: str, target: str) -> None:
    quantized = run(Program.parse(text), f"canonicalize,fold-batch-norm,fuse,{quantize}", target)
    finished = run(quantized, after, target)
    assert Program.parse(finished.print()).print() == finished.print()
    for x in batches(quantized, (1, 3), seed=2):
        assert worst_drift(leaves(finished(x)), leaves(quantized(x))) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["onnx", "onnx{dialect=standard}", "onnx{dialect=tensorrt}", "onnx{runtime=openvino}", "torchscript"]
)
@given(text=programs(), quantize=st.sampled_from(("quantize", "quantize-dynamic")))
@settings(_SETTINGS, max_examples=12)
def test_backends_compute_what_the_pairs_say(backend: str, text: str, quantize: str) -> None:
    program = Program.parse(text)
    data = [(each,) for each in batches(program, (4, 4, 4), seed=0)]
    passes = f"canonicalize,fold-batch-norm,fuse,{quantize},dce"
    compiled = burnish.compile(program, passes, backend=backend, calibration=data)
    for x in batches(program, (1, 3), seed=3):
        # A sum rounded otherwise becomes the next integer: some steps of 1/255 in a short graph, not another number.
        assert worst_drift(leaves(compiled(x)), leaves(compiled.program(x))) <= 0.1
