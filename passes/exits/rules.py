"""Rules: how sure an exit is of its sample, as operators and as numbers.

A score is above a threshold where the sample may leave; NaN is above none. Scores are from 0 to 1, but for patience,
which counts how many exits in a row have given the same class.

- max-probability: of the most probable class (BranchyNet, Teerapittayanon et al., ICPR 2016).
- margin: by which it is more probable than the second.
- entropy: 1 less the entropy of the probabilities, in units of the largest that there could be (DeeBERT, ACL 2020).
- patience: Zhou et al., BERT Loses Patience (NeurIPS 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["Rule", "certainty"]

Rule = Literal["max-probability", "margin", "entropy", "patience"]
Apply = Callable[..., Any]
"""Applies an operator, by name, to values: inserts a node, or computes."""


def certainty(rule: Rule, logits: Any, classes: int, apply: Apply) -> Any:
    """Return the scores of samples, f32[samples].

    Args:
        rule: any but patience.
        logits: [samples, classes], float32.
        classes: 2 or more.
        apply: is called with the name of an operator and its arguments.
    """
    if rule == "entropy":
        chances = apply("aten.log_softmax.int", logits, -1)
        products = apply("aten.mul.Tensor", apply("aten.exp", chances), chances)
        total = apply("aten.sum.dim_IntList", products, [-1])
        return apply("aten.add.Tensor", apply("aten.mul.Tensor", total, 1 / math.log(classes)), 1.0)
    chances = apply("aten.softmax.int", logits, -1)
    if rule == "max-probability":
        return apply("aten.amax", chances, [-1])
    best = apply("aten.topk", chances, 2, -1)
    values = apply("getitem", best, 0)
    return apply("aten.sub.Tensor", apply("aten.select.int", values, 1, 0), apply("aten.select.int", values, 1, 1))
