"""select-outputs: errors, containers, and the comparison of what is left."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from burnish.compiler.capture import capture
from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError, PassError, PipelineError
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program

Pair = namedtuple("Pair", ["left", "right"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"logits": self.first(x), "states": [self.second(x), x.relu()], "none": None}


class Named(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return Pair(self.first(x), self.second(x))


def select(program: Program, names: str) -> Program:
    return run_pipeline(Pipeline.parse(f"select-outputs{{names={names}}}"), program, Context(), verify=4)[0]


def test_what_is_left_is_called_as_before() -> None:
    model, x = Net().eval(), torch.randn(2, 4)
    program = capture(model, (x,))
    after = select(program, "[logits]")
    result = after(x)
    assert set(result) == {"logits", "none"}
    assert torch.equal(result["logits"], model(x)["logits"])
    assert set(after.used_constants()) == {"first.weight", "first.bias"}
    # The Program before stays whole.
    assert set(program(x)) == {"logits", "states", "none"}


def test_a_list_shrinks() -> None:
    x = torch.randn(2, 4)
    after = select(capture(Net(), (x,)), "[states_1]")
    assert torch.equal(after(x)["states"][0], x.relu())
    assert len(after(x)["states"]) == 1


def test_a_dropped_field_of_a_class_is_none() -> None:
    model, x = Named().eval(), torch.randn(2, 4)
    result = select(capture(model, (x,)), "[right]")(x)
    assert isinstance(result, Pair)
    assert result.left is None
    assert torch.equal(result.right, model(x).right)


def test_a_model_output_leaves_out_what_was_dropped() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertModel(config).eval()
    inputs = {"input_ids": torch.randint(0, 20, (2, 5))}
    after = select(capture(model, inputs), "[last_hidden_state]")
    result = after(**inputs)
    assert list(result.keys()) == ["last_hidden_state"]
    torch.testing.assert_close(result.last_hidden_state, model(**inputs).last_hidden_state)
    assert not any("pooler" in name for name in after.used_constants())


def test_a_pattern_without_a_match_names_the_outputs() -> None:
    program = capture(Net(), (torch.randn(2, 4),))
    with pytest.raises(PassError, match=r"no output matches 'logit'.*'logits', 'states_0', 'states_1'") as caught:
        select(program, "[logit]")
    assert isinstance(caught.value.__cause__, OptionError)


@pytest.mark.parametrize("text", ["select-outputs", "select-outputs{names=[]}", "select-outputs{names=[1]}"])
def test_names_are_needed(text: str) -> None:
    with pytest.raises((OptionError, PipelineError), match="names"):
        Pipeline.parse(text)
