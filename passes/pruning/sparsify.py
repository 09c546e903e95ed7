"""sparsify: the least important weights become zero, by masks that the graph shows.

Every reader of a weight `w` reads `mul(@w, @w.mask)` instead, so that what is trained afterwards keeps its zeros;
`fold-constants` makes one constant of it. The weights of smallest magnitude go (Han et al., NIPS 2015), one by one
(`unstructured`), or so that of every M inputs in a row N are kept (`N:M`, Mishra et al., arXiv 2104.08378). Of equal
ones the first go, so that the number is exact. What is masked stays masked: another run adds to the mask.

1. Weights of linear layers, of convolutions, transposed ones too, and of their fused forms.
2. A weight that several layers share has one mask, which whatever else reads it reads through as well (an embedding).
3. With N:M, inputs are counted within a group of the convolution.

Not handled: matrices that are no layer's weight (`fuse` makes layers of `addmm` and `matmul`), recurrent layers,
weights that are computed, quantized, updated by a run, outputs of the graph, or not finite.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import floor
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import fx

from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.operators import argument, find_operator
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.passes.canonical.affine_layers import AffineLayer
from burnish.passes.canonical.batch_norms import Refusal, read_constant
from burnish.passes.canonical.weights import described
from burnish.passes.pruning.masks import masked_weight, masks_of, write_masks
from burnish.passes.quantization.keeping import Keeping
from burnish.passes.quantization.makers import layer_of

__all__ = ["Sparsify"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PRODUCTS = {
    find_operator(f"aten.{name}"): slot for name, slot in (("addmm", "mat2"), ("mm", "mat2"), ("matmul", "other"))
}


@dataclass(frozen=True, kw_only=True)
class Sparsify(Pass):
    """Set the least important weights to zero, by masks.

    Attributes:
        ratio: the part of the weights that is zero afterwards, from 0 to less than 1.
        pattern: unstructured; or N:M, "2:4", N kept of every M inputs in a row.
        scope: global: the smallest of all layers; layer: the same part of every layer.
        keep: patterns as in a shell, `*.head`, of nodes, weights or modules that stay as they are.
    """

    name: ClassVar[str] = "sparsify"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    numerics: ClassVar[Numerics] = Lossy()
    idempotent: ClassVar[bool] = True
    ratio: float = 0.5
    pattern: str = "unstructured"
    scope: Literal["global", "layer"] = "global"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise OptionError(f"pass 'sparsify': option 'ratio' must be from 0 to less than 1, but is {self.ratio}")
        if self.pattern == "unstructured":
            return
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise OptionError(
                "pass 'sparsify': option 'pattern' must be unstructured, or N:M with 0 < N < M, as in \"2:4\","
                f" but is {self.pattern!r}"
            )
        for name in ("ratio", "scope"):
            if getattr(self, name) != self._default(name):
                raise OptionError(
                    f"pass 'sparsify': option {name!r} has no meaning with pattern={self.pattern!r}, which keeps"
                    f" {found[1]} of every {found[2]} inputs: leave it out"
                )

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: a pattern of `keep` matches no layer; the message names some that there are.
        """
        weights = _weights(program, rewriter, Keeping(self.name, self.keep))
        kept = self._kept(weights, rewriter)
        write_masks(rewriter, {each.name: mask for each, mask in kept.items()})
        zeros = sum(int((each.value.eq(0) | ~mask).sum()) for each, mask in kept.items())
        total = sum(each.value.numel() for each in kept)
        note = "sparsify found no weight to mask"
        if total:
            note = f"sparsify: {zeros:,} of {total:,} weights in {len(kept)} tensors are zero ({zeros / total:.1%})"
        # Verification runs the pass twice.
        if note not in context.notes:
            context.notes.append(note)

    def _kept(self, weights: list[_Weight], rewriter: Rewriter) -> dict[_Weight, torch.Tensor]:
        """Return which elements stay, by weight."""
        if self.pattern != "unstructured":
            several, of = map(int, self.pattern.split(":"))
            found = {}
            for each in weights:
                try:
                    found[each] = _in_rows(each, several, of)
                except Refusal as refusal:
                    each.skip(rewriter, str(refusal))
        elif self.scope == "layer":
            found = {each: kept for each in weights for kept in _largest([each], self.ratio)}
        else:
            found = dict(zip(weights, _largest(weights, self.ratio), strict=True))
        return {each: kept if each.mask is None else kept & each.mask for each, kept in found.items()}


@dataclass(eq=False, slots=True)
class _Weight:
    """A weight and the layers that read it, through its mask where it has one."""

    name: str
    value: torch.Tensor
    mask: torch.Tensor | None
    layers: list[AffineLayer] = field(default_factory=list)

    @property
    def scores(self) -> torch.Tensor:
        """How much each element matters; less than zero where it is masked."""
        wide = self.value if self.value.dtype == torch.float64 else self.value.float()
        size = wide.abs().contiguous()
        return size if self.mask is None else size.masked_fill_(~self.mask, -1.0)

    def skip(self, rewriter: Rewriter, reason: str) -> None:
        for each in self.layers:
            rewriter.skip(each.node, reason)


def _weights(program: Program, rewriter: Rewriter, keeping: Keeping) -> list[_Weight]:
    """Return the weights that may be masked, in the order of the graph."""
    masks = masks_of(program)
    found: dict[str, _Weight] = {}
    refused: dict[str, str] = {}
    for node in rewriter.nodes():
        layer = layer_of(node)
        if layer is None:
            if node.target in _PRODUCTS and rewriter.constant(argument(node, _PRODUCTS[node.target])) is not None:
                rewriter.skip(node, "its matrix is no layer's weight: `fuse` makes a layer of it")
            continue
        weight = layer.weight
        pair = masked_weight(weight)
        if pair is not None and str(pair.weight.target) in masks:
            weight = pair.weight
        name = str(weight.target)
        try:
            keeping.check(node)
            if weight is not layer.weight:
                keeping.check(weight)
            value = _checked(weight, rewriter)
        except Refusal as refusal:
            rewriter.skip(node, str(refusal))
            refused.setdefault(name, f"{described(node)} shares its weight: {refusal}")
        else:
            mask = program.constants[masks[name]] if name in masks else None
            found.setdefault(name, _Weight(name, value, mask)).layers.append(layer)
    keeping.finish()
    for name, reason in refused.items():
        if name in found:
            found.pop(name).skip(rewriter, reason)
    return list(found.values())


def _checked(weight: fx.Node, rewriter: Rewriter) -> torch.Tensor:
    value = read_constant(weight, "weight", rewriter)
    if value.dtype not in _DTYPES:
        raise Refusal(f"its weight is {str(value.dtype).removeprefix('torch.')}")
    if not value.numel():
        raise Refusal("its weight is empty")
    if any(user.op == "output" for user in weight.users):
        raise Refusal("its weight is an output of the graph too")
    if not bool(value.isfinite().all()):
        raise Refusal("its weight is not finite")
    return value


def _largest(weights: list[_Weight], ratio: float) -> list[torch.Tensor]:
    """Return what stays when `ratio` of all elements goes, the smallest; of equal ones the first go."""
    scores = [each.scores for each in weights]
    # A little more, as 0.29 * 100 is less than 29.
    count = floor(ratio * sum(each.numel() for each in scores) + 1e-6)
    if not count:
        return [torch.ones_like(each, dtype=torch.bool) for each in scores]
    every = torch.cat([each.flatten() for each in scores])
    # NumPy finds it many times faster than PyTorch's kthvalue.
    threshold = torch.from_numpy(np.partition(every.cpu().numpy(), count - 1))[count - 1].to(every.device)
    kept = every > threshold
    equal = (every == threshold).nonzero().flatten()
    kept[equal[count - int((every < threshold).sum()) :]] = True
    parts = torch.tensor_split(kept, np.cumsum([each.numel() for each in scores])[:-1].tolist())
    return [part.reshape(each.shape).clone() for part, each in zip(parts, scores, strict=True)]


def _in_rows(weight: _Weight, several: int, of: int) -> torch.Tensor:
    """Return what stays when `several` of every `of` inputs in a row do.

    Raises:
        Refusal: the inputs cannot be divided so, or layers that share the weight count them differently.
    """
    layer = weight.layers[0]
    if len({(each.groups, each.transposed) for each in weight.layers}) > 1:
        raise Refusal("layers that share its weight count its inputs differently")
    scores = layer.split(weight.scores)
    inputs = scores.shape[2]
    if inputs % of:
        raise Refusal(f"its {inputs} inputs{' a group' if layer.groups > 1 else ''} are no multiple of {of}")
    rows = scores.reshape(*scores.shape[:2], inputs // of, of, -1)
    kept = torch.ones_like(rows, dtype=torch.bool)
    kept.scatter_(3, rows.argsort(dim=3, stable=True)[:, :, :, : of - several], False)
    return layer.join(kept.flatten(2, 3), weight.value.shape)
