"""Every shipped pass holds its contract on real trained weights and real inputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import burnish
from benchmarks.trained import Trained, efficientnet_lite0, minilm
from burnish import Pipeline, Program
from burnish.compiler.context import Context
from burnish.compiler.numerics import worst_drift
from burnish.compiler.pipeline import run_pipeline
from burnish.compiler.registry import find_pass, pass_names

pytestmark = pytest.mark.slow
MODELS = {"efficientnet-lite0": efficientnet_lite0, "minilm": minilm}
SOME_OUTPUT = {"efficientnet-lite0": "output", "minilm": "pooler_output"}
DEFAULT = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce"


@cache
def trained(name: str) -> Trained:
    return MODELS[name]()


@cache
def captured(name: str) -> Program:
    found = trained(name)
    return burnish.capture(found.model, found.inputs, found.dynamic_shapes)


def call(model: Any, inputs: Any) -> list[Any]:
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return torch.utils._pytree.tree_leaves(outputs)


SHIPPED = [name for name in pass_names() if not name.startswith("test-")]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_pass_survives_level_4(name: str, model: str) -> None:
    options = {"select-outputs": f"{{names=[{SOME_OUTPUT[model]}]}}", "recover": "{steps=2}"}
    text = name + options.get(name, "")
    before = "canonicalize," if find_pass(name).requires else ""
    if name.endswith("exits"):
        before += f"select-outputs{{names=[{SOME_OUTPUT[model]}]}},"
    if name == "calibrate-exits":
        before += "insert-exits,"
    context = Context(calibration=trained(model).calibration[:2])
    assert Pipeline.parse(before + text).run(captured(model), context, verify=4).history[-1] == text


@pytest.mark.parametrize("model", MODELS)
def test_the_default_pipeline_at_level_4_and_on_all_the_data(model: str) -> None:
    after, records = run_pipeline(Pipeline.parse(DEFAULT), captured(model), Context(), verify=4)
    assert after.node_count() < captured(model).node_count()
    assert all(record.drift is not None and record.drift <= 1e-5 for record in records)
    data = trained(model).data
    assert worst_drift(call(after, data), call(trained(model).model, data)) <= 1e-4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("precision", "most"), [("precision", 1e-2), ("precision{dtype=bf16,max_drift=1e-2}", 1e-2)])
def test_half_precision_drifts_by_a_hundredth_at_the_most(precision: str, most: float, model: str) -> None:
    _, records = run_pipeline(Pipeline.parse(f"{DEFAULT},{precision}"), captured(model), Context(), verify=2)
    assert records[-1].drift is not None and records[-1].drift <= most


def test_all_49_batch_norms_of_efficientnet_fold() -> None:
    after = Pipeline.parse("canonicalize,fold-batch-norm").run(captured("efficientnet-lite0"))
    assert not [each for each in after.print().splitlines() if "batch_norm" in each]
    assert sum("aten.batch_norm" in each for each in captured("efficientnet-lite0").print().splitlines()) == 49
