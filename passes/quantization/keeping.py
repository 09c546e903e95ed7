"""Which layers a user wants to stay float, by patterns as in a shell, and which the rules refuse."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import fx

from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import name_of
from burnish.compiler.operators import arguments
from burnish.compiler.provenance import provenance_of
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.batch_norms import Refusal, read_constant

__all__ = ["Keeping", "checked_weight"]

# Scales of smaller weights would overflow when they are inverted.
_LEAST = 2.0**-92


class Keeping:
    """The patterns of an option `keep`, and which of them matched something."""

    def __init__(self, pass_name: str, patterns: tuple[str, ...]) -> None:
        self.pass_name = pass_name
        self.patterns = patterns
        self.matched: set[str] = set()
        self.names: list[str] = []

    def check(self, node: fx.Node) -> None:
        """Raise Refusal where a pattern matches the node's name, its weight's, or the path of its module."""
        self.names.append(name_of(node))
        provenance = provenance_of(node)
        modules = [each.module for each in provenance.origins] if provenance is not None else []
        weight = arguments(node).get("weight")
        names = [name_of(node), *modules, *([name_of(weight)] if isinstance(weight, fx.Node) else [])]
        found = [pattern for pattern in self.patterns if any(fnmatchcase(name, pattern) for name in names)]
        self.matched |= set(found)
        if found:
            raise Refusal(f"it is to be kept: {found[0]!r}")

    def finish(self) -> None:
        """Raise OptionError for a pattern that matched nothing; the message names some layers that there are."""
        unknown = [pattern for pattern in self.patterns if pattern not in self.matched]
        if unknown:
            some = ", ".join(self.names[:5]) or "none"
            raise OptionError(f"pass {self.pass_name!r}: no layer matches {unknown[0]!r}: there are {some}")


def checked_weight(node: fx.Node, smallest: int, rewriter: Rewriter) -> torch.Tensor:
    """Return the weight of a layer, [outputs, inputs, ...].

    Raises:
        Refusal: it is applied to a vector, or is no constant, has another dtype than float32, fewer than `smallest`
            inputs or outputs, or is not finite, or too small for a scale.
    """
    given = arguments(node)
    value = read_constant(given["weight"], "weight", rewriter)
    if given["input"].meta["val"].dim() < 2:
        raise Refusal("it reads a single vector: integer kernels take matrices")
    if value.dtype != torch.float32 or given["input"].meta["val"].dtype != torch.float32:
        raise Refusal(f"it computes in {str(value.dtype).removeprefix('torch.')}, not in float32")
    if min(value.shape[:2]) * int(given.get("groups", 1)) < smallest:
        raise Refusal(f"its weight, {list(value.shape)}, is too small for integers to pay")
    if not bool(torch.isfinite(value).all()):
        raise Refusal("its weight is not finite")
    most = float(value.abs().max()) if value.numel() else 0.0
    if 0 < most < _LEAST:
        raise Refusal(f"its weight is too small for a scale: the largest is {most:.1g}")
    return value
