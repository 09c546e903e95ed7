"""insert-exits: samples of which an early head is sure leave there; the others go on, fewer of them.

Behind a cut point stand a head and a score. `nonzero` finds the samples that stay, `index_select` takes their rows, the
rest of the network computes these, and `index_copy` puts the results in place of the head's, so that the order is that
of the inputs. It is plain dataflow: every backend runs it, and nothing is computed for a sample that has left.

With mode=whole-batch a `cond` runs the rest where some sample would stay: for batches of one sample.

Not handled: outputs other than logits [samples, classes]; Programs that update buffers, or have stages or exits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import sympy
import torch
from torch import fx, nn

from burnish.compiler.context import Context
from burnish.compiler.cost_numbers import estimated
from burnish.compiler.cuts import Cut, apart, cut_points
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import calls, name_of, output_of
from burnish.compiler.numerics import Lossy, Numerics
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter
from burnish.compiler.sizes import expression, static_size
from burnish.compiler.structure import Container, Leaf
from burnish.passes.canonical.dce import erase_dead
from burnish.passes.exits import heads
from burnish.passes.exits.attach import Attached, attach
from burnish.passes.exits.independence import check_independence
from burnish.passes.exits.per_sample import per_sample
from burnish.passes.exits.places import by_layer, by_name, evenly
from burnish.passes.exits.rules import Rule
from burnish.passes.exits.straight import straightened
from burnish.passes.exits.whole_batch import whole_batch

__all__ = ["UNCALIBRATED", "InsertExits"]

UNCALIBRATED = "the thresholds of exits are not calibrated: nothing holds accuracy until calibrate-exits has run"
_DEFAULTS: dict[Rule, float] = {"max-probability": 0.9, "margin": 0.8, "entropy": 0.7, "patience": 1.0}
_INDEX = "exit"


@dataclass(frozen=True, kw_only=True)
class InsertExits(Pass):
    """Give a classifier early exits.

    Attributes:
        exits: how many, at equal cost; 1 where neither this nor a place is given.
        after: patterns as in a shell of nodes and modules: an exit stands behind the last cut point of each.
        layers: numbers of layers, in place of `after`: an exit stands at the end of each.
        head: linear: a mean over positions and a linear layer; copy: the model's own head, with weights of its own.
        heads: in Python, modules in place of `head`, one for every exit: features of the cut point to logits.
        rule: how sure a head is: max-probability, margin, entropy or patience; see `rules`.
        thresholds: one, or one for every exit: a sample leaves above it; with patience, when it is reached.
        mode: samples leave one by one (per-sample), or all together (whole-batch).
        index: give another output, `exit`, the number of the exit that each sample left by, i64[samples]: from 0; the
            model's own head has the last number.
    """

    name: ClassVar[str] = "insert-exits"
    numerics: ClassVar[Numerics] = Lossy()
    exits: int | None = None
    after: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    head: Literal["linear", "copy"] = "linear"
    heads: tuple[nn.Module, ...] = field(default=(), compare=False)
    rule: Rule = "max-probability"
    thresholds: tuple[float, ...] = ()
    mode: Literal["per-sample", "whole-batch"] = "per-sample"
    index: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(bool(each) for each in (self.exits is not None, self.after, self.layers)) > 1:
            raise OptionError("pass 'insert-exits': give one of exits, after and layers")
        if self.exits is not None and self.exits < 1:
            raise OptionError(f"pass 'insert-exits': option 'exits' must be 1 or more, but is {self.exits}")
        if not isinstance(self.heads, (tuple, list)):
            raise OptionError("pass 'insert-exits': option 'heads' must be a tuple of modules, one for every exit")
        for number, head in enumerate(self.heads):
            if not isinstance(head, nn.Module):
                raise OptionError(
                    f"pass 'insert-exits': option 'heads' must be modules, but number {number} is {type(head).__name__}"
                )
        for each in self.thresholds:
            if self.rule == "patience" and not (1 <= each < math.inf and each == int(each)):
                raise OptionError(
                    f"pass 'insert-exits': option 'thresholds': patience is a number of exits, 1 or more, not {each:g}"
                )
            if self.rule != "patience" and not 0 <= each <= 1:
                raise OptionError(
                    f"pass 'insert-exits': option 'thresholds' must be from 0 to 1 for {self.rule}, but has {each:g}"
                )

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """See the module.

        Raises:
            OptionError: the Program can have no such exits.
            InputError: it has dynamic sizes and no samples.
        """
        name, result, batch = _logits(program)
        cuts = [cut for cut in cut_points(program) if cut.is_before(result) and _has_rows(cut.value, batch)]
        flops = estimated(program.cost().at_samples().flops)
        places = self._places(apart(cuts), flops)
        thresholds = self._thresholds(len(places))
        check_independence(program, batch, name)
        described = [f"{name_of(cut.value)} ({cut.flops / max(flops, 1):.1%} of the FLOPs)" for cut in places]
        with rewriter.rewrite("exits"):
            _put_work_last(result.graph, cuts[0])
            attached: list[Attached] = []
            for number, (cut, threshold) in enumerate(zip(places, thresholds, strict=True)):
                head = partial(self._head, rewriter, cut, cuts, flops, result, number, context.seed)
                before = attached[-1] if attached else None
                attached.append(attach(rewriter, cut, f"exit{number + 1}", head, result, self.rule, threshold, before))
            self._leave(rewriter, attached, name, result, batch)
        program.warnings = (*program.warnings, UNCALIBRATED)
        parts = [f"exit{number + 1} behind {where}" for number, where in enumerate(described)]
        uncounted = "; FLOPs behind an exit depend on who stays, and count for nothing in the report"
        context.notes.append(f"insert-exits: {', '.join(parts)}{uncounted * (self.mode == 'per-sample')}")

    def _places(self, cuts: list[Cut], flops: int) -> list[Cut]:
        if not cuts:
            raise OptionError(
                "pass 'insert-exits': there is no cut point: no value in the middle is all that the logits depend on"
            )
        if self.after:
            return by_name(cuts, self.after)
        if self.layers:
            return by_layer(cuts, self.layers)
        return evenly(cuts, 1 if self.exits is None else self.exits, flops)

    def _thresholds(self, count: int) -> list[float]:
        given = self.thresholds or (_DEFAULTS[self.rule],)
        given = given * count if len(given) == 1 else given
        for name, values in (("thresholds", given), ("heads", self.heads)):
            if values and len(values) != count:
                raise OptionError(f"pass 'insert-exits': option {name!r} has {len(values)} values for {count} exits")
        if self.rule == "patience" and all(each > number for number, each in enumerate(given, start=1)):
            raise OptionError(
                f"pass 'insert-exits': option 'thresholds': {min(given):g} exits in a row cannot agree where there are"
                f" {count}"
            )
        return list(given)

    def _head(
        self,
        rewriter: Rewriter,
        cut: Cut,
        cuts: list[Cut],
        flops: int,
        result: fx.Node,
        number: int,
        seed: int,
        anchor: fx.Node,
    ) -> fx.Node:
        name = f"exit{number + 1}"
        if self.heads:
            return heads.of_module(rewriter, anchor, cut.value, self.heads[number], name)
        if self.head == "copy":
            return heads.copied(rewriter, anchor, cut, cuts, flops, result, name)
        return heads.linear(rewriter, anchor, cut.value, int(result.meta["val"].shape[1]), name, seed + number)

    def _leave(
        self, rewriter: Rewriter, attached: list[Attached], name: str, result: fx.Node, batch: sympy.Symbol
    ) -> None:
        """Let what is behind every exit, from the last to the first, work for those that stay."""
        logits = result
        index: fx.Node | int | None = len(attached) if self.index else None
        behind = set[fx.Node]()
        for number, here in reversed(list(enumerate(attached))):
            behind.update(here.cut.behind())
            results = logits, index
            if self.mode == "whole-batch":
                logits, index, made = whole_batch(rewriter, here, behind, results, number)
            else:
                logits, index, made = per_sample(rewriter, here, behind, results, number, batch)
            behind |= made | here.nodes
        outputs = {name: logits}
        if isinstance(index, fx.Node):
            outputs[_INDEX] = index
            parts = (rewriter.program.signature.outputs, Leaf(_INDEX))
            rewriter.set_output_structure(Container("tuple", (), parts))
        rewriter.set_outputs(result.graph, outputs)
        erase_dead(rewriter.program, rewriter)


def _logits(program: Program) -> tuple[str, fx.Node, sympy.Symbol]:
    """Return name and node of the logits, and the number of samples.

    Raises:
        OptionError: there are none.
    """
    names = program.signature.output_names
    if straightened(program) is not None:
        raise OptionError("pass 'insert-exits': the program has exits: give all of them to one insert-exits")
    if len(program.graphs) > 1:
        raise OptionError("pass 'insert-exits': the program has stages: put insert-exits before partition")
    if program.mutable_constants():
        raise OptionError(
            f"pass 'insert-exits': the model updates {min(program.mutable_constants())!r}: samples that leave would not"
        )
    if len(names) != 1:
        raise OptionError(
            f"pass 'insert-exits': exits give one output, logits, but there are {', '.join(names)}: keep one with"
            f" select-outputs{{names=[...]}} first"
        )
    (graph,) = program.graphs.values()
    outputs: dict[str, fx.Node] = output_of(graph).args[0]  # type: ignore[assignment]
    result = outputs[names[0]]
    value = result.meta.get("val")
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    written = [str(expression(size)) for size in shape]
    if (
        not isinstance(value, torch.Tensor)
        or len(shape) != 2
        or not value.is_floating_point()
        or (static_size(shape[1]) or 0) < 2
    ):
        raise OptionError(
            f"pass 'insert-exits': output {names[0]!r} must be logits, floats [samples, classes] of two classes or"
            f" more, but is [{', '.join(written)}]"
        )
    batch = expression(shape[0])
    if not isinstance(batch, sympy.Symbol):
        raise OptionError(
            f"pass 'insert-exits': dimension 0 of output {names[0]!r} is {batch}: capture the model with a dynamic"
            " number of samples"
        )
    return names[0], result, batch


def _has_rows(value: fx.Node, batch: sympy.Symbol) -> bool:
    """Tell whether a value has a row for every sample, and its other sizes have nothing to do with their number."""
    found = value.meta.get("val")
    if not isinstance(found, torch.Tensor) or found.dim() < 2 or not found.is_floating_point():
        return False
    first, *others = (expression(size) for size in found.shape)
    return bool(first == batch) and not any(batch in getattr(size, "free_symbols", ()) for size in others)


def _put_work_last(graph: fx.Graph, first: Cut) -> None:
    """Let everything that does not depend on the first cut point stand before it: heads may read it."""
    for node in [each for each in calls(graph) if not first.is_before(each) and first.value < each]:
        first.value.prepend(node)
