"""Teachers: what Programs and modules make of a batch, and how much each of several counts for each sample.

Distillation: Hinton et al., Distilling the Knowledge in a Neural Network (2015). Weights by sample: Zhang et al.,
Confidence-Aware Multi-Teacher Knowledge Distillation (ICASSP 2022), and by agreement with the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx, nn

from burnish.compiler import interpreter, structure
from burnish.compiler.errors import InputError
from burnish.compiler.graphs import name_of
from burnish.compiler.program import Program

__all__ = ["Teacher", "Weighting", "sample_weights"]

Weighting = Literal["equal", "confidence", "agreement"]


class Teacher:
    """Something that shows what outputs should be.

    Args:
        model: a Program, or a module that is called as the student is.
        student: gives the form of inputs and outputs.
        features: display names of nodes whose values are wanted; of a Program alone.
        label: for messages.

    Raises:
        InputError: it is neither, or has no such nodes.
    """

    def __init__(self, model: Any, student: Program, features: Sequence[str], label: str) -> None:
        if not isinstance(model, (Program, nn.Module)):
            raise InputError(f"{label} must be a Program or an nn.Module, but is {type(model).__name__}")
        self.model, self.signature, self.label = model, student.signature, label
        self.features: frozenset[str] = frozenset(features)
        if isinstance(model, nn.Module):
            model.eval()
            if features:
                raise InputError(
                    f"{label} is a module, but features are nodes of a Program: give burnish.capture of it"
                )
            return
        names = {name_of(node) for graph in model.graphs.values() for node in graph.nodes}
        missing = sorted(self.features - names)
        if missing:
            raise InputError(
                f"{label} has no node {missing[0]!r} to match: `burnish capture` prints the nodes of a model"
            )

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return outputs and features by name, without gradients."""
        seen: dict[str, Any] = {}

        def watch(node: fx.Node, value: Any) -> None:
            if name_of(node) in self.features:
                seen[name_of(node)] = value

        with torch.no_grad():
            if isinstance(self.model, Program):
                own = self.model.signature
                result = interpreter.run(self.model, inputs, watch if self.features else None)[0]
                return structure.flatten(own.outputs, result, f"the outputs of {self.label}"), seen
            args, kwargs = structure.unflatten(self.signature.inputs, inputs)
            found = self.model(*args, **kwargs)
            return structure.flatten(self.signature.outputs, found, f"the outputs of {self.label}"), seen


def sample_weights(logits: Sequence[torch.Tensor], weighting: Weighting, labels: torch.Tensor | None) -> torch.Tensor:
    """Return how much each teacher counts for each sample, [teachers, ...], 1 in all for a sample.

    Args:
        logits: of every teacher, [..., classes].
        weighting: equal; confidence: the surer, or, where there are labels [...], the more right of them counts more;
            agreement: whoever is nearer to what the others say on average.
        labels: classes, or None.
    """
    several = torch.stack([each.float() for each in logits])
    if weighting == "equal" or len(logits) == 1:
        return torch.full(several.shape[:-1], 1 / len(logits))
    chances = several.log_softmax(-1)
    if weighting == "agreement":
        others = (chances.exp().sum(0) - chances.exp()) / (len(logits) - 1)
        cost = (chances.exp() * (chances - others.clamp(min=1e-9).log())).sum(-1)
    elif labels is not None and labels.shape == several.shape[1:-1]:
        cost = -chances.gather(-1, labels.expand(len(logits), *labels.shape).unsqueeze(-1)).squeeze(-1)
    else:
        cost = -(chances.exp() * chances).sum(-1)
    return (-cost).softmax(0)
