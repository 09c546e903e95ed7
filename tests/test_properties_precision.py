"""Half precision on random graphs, in random pipelines: only casts are added, and every backend computes what they say.

That a graph in half precision is near the original cannot be asked of random graphs: a difference of near equals has
any error. Asked instead: without its casts it is the original; later passes change little; backends agree with eager.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.graphs import calls
from burnish.compiler.numerics import worst_drift
from tests.random_programs import programs
from tests.test_properties_quantized import batches, leaves

_SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
_BEFORE = (
    "canonicalize",
    "canonicalize,fold-batch-norm,fold-constants,cse",
    "canonicalize,fold-batch-norm,fuse,dce",
    "canonicalize,fold-batch-norm,fuse,quantize{preset=fast}",
    "canonicalize,prune{ratio=0.3}",
)
_PRECISION = ("precision", "precision{dtype=bf16}", "precision{dtype=bf16,max_drift=1e-2}", "precision{max_range=2}")


def run(program: Program, passes: str) -> Program:
    data = [(each,) for each in batches(program, (4, 4), seed=0)]
    return Pipeline.parse(passes).run(program, Context(calibration=data, progress=False), verify=3)


def without_casts(found: Program, original: Program) -> Program:
    """Return `found` with casts handed through and the constants of `original`."""
    copy = found.copy()
    graph = copy.graphs["main"]
    for node in list(calls(graph)):
        if node.target is torch.ops.aten.to.dtype and node.meta["val"].is_floating_point():
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    copy.constants.update(original.constants)
    return copy


@given(text=programs(), before=st.sampled_from(_BEFORE), precision=st.sampled_from(_PRECISION))
@_SETTINGS
def test_without_its_casts_it_is_the_original(text: str, before: str, precision: str) -> None:
    program = run(Program.parse(text), before)
    found = run(program, precision)
    assert Program.parse(found.print()).print() == found.print()
    bare = without_casts(found, program)
    for x in batches(program, (1, 3, 17), seed=1):
        assert worst_drift(leaves(bare(x)), leaves(program(x))) == 0.0
        assert [(each.shape, each.dtype) for each in leaves(found(x))] == [
            (each.shape, each.dtype) for each in leaves(program(x))
        ]


@given(
    text=programs(),
    precision=st.sampled_from((*_PRECISION, "precision{io=convert}")),
    after=st.sampled_from(("cse", "cse,dce", "canonicalize,dce", "fold-constants,fuse,dce", "quantize{preset=fast}")),
)
@_SETTINGS
def test_later_passes_take_it(text: str, precision: str, after: str) -> None:
    found = run(Program.parse(text), f"canonicalize,fold-batch-norm,fuse,{precision}")
    assume("quantize" not in after or "convert" not in precision)
    context = Context(progress=False)
    if "quantize" in after:
        context.calibration = [(each,) for each in batches(found, (4, 4), seed=0)]
    finished = Pipeline.parse(after).run(found, context, verify=4)
    x = found.samples["x"]
    assert [each.dtype for each in leaves(finished(x))] == [each.dtype for each in leaves(found(x))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("onnx", "fp16"), ("torchscript", "fp16"), ("torchscript", "bf16"), ("onnx{runtime=openvino}", "bf16")],
)
@given(text=programs())
@settings(_SETTINGS, max_examples=12)
def test_backends_compute_what_the_casts_say(backend: str, dtype: str, text: str) -> None:
    program = run(Program.parse(text), "canonicalize,fold-batch-norm,fuse")
    exact = program(program.samples["x"])
    found = run(program, f"precision{{dtype={dtype}}}")
    # Where rounding is most of the result, kernels that round elsewhere have another.
    assume(worst_drift(leaves(found(program.samples["x"])), leaves(exact)) < 2e-2)
    compiled = burnish.compile(found, "", backend=backend, progress=False, verify=0)
    x = program.samples["x"]
    assert worst_drift(leaves(compiled(x)), leaves(exact)) <= 5e-2
