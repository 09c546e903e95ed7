"""Goldens of whole models: as captured, and after the pipeline that every backend starts from."""

from pathlib import Path

import pytest
import torch

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.testing import assert_golden
from tests.golden.models import MODELS

FOLDER = Path(__file__).parent / "models"
PIPELINE = "canonicalize,fold-batch-norm,fold-constants,cse,dce,fuse,dce"


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    if name in ("bert", "llama"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    program = capture(model, inputs)
    after, records = run_pipeline(Pipeline.parse(PIPELINE), program, Context(), verify=4)
    assert "/" not in program.print().replace("//", ""), "a path of this machine is in the text"
    assert_golden(program, FOLDER / f"{name}.txt")
    assert_golden(after, FOLDER / f"{name}.default.txt")
    assert all(record.drift is not None for record in records)
