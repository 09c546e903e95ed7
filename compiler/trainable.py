"""Trainable: a Program as an `nn.Module` with parameters and gradients.

Fused operators are taken apart. Weights behind masks and quantizers stay what they are in the graph: gradients go
through a mask, and through rounding as if it were none (the straight-through estimator, Bengio et al. 2013), where
weights that are integers get floats beside them (Jacob et al., CVPR 2018).

Not handled: loops and conditionals get no gradient checkpoints; integers other than by
`quantized_decomposed.(de)quantize_per_(tensor|channel)` get no floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from burnish.compiler import structure
from burnish.compiler.conditional import branch_module
from burnish.compiler.constant_uses import is_parameter, uses_of
from burnish.compiler.graphs import calls, name_of, placeholders
from burnish.compiler.inlining import inline_fused
from burnish.compiler.operators import arguments
from burnish.compiler.program import Program
from burnish.compiler.straight_through import latents_of, replace_quantizers, scales_of

__all__ = ["Trainable"]

# Dimensions of weights of convolutions over pictures.
_PICTURES = 4


class Trainable(nn.Module):
    """A Program that can be trained. Call it with inputs by name; it returns the outputs by name.

    Args:
        program: stays as it is: see `trained_constants`.
        frozen: names of constants that do not change.
        statistics: whether batch norms use the statistics of their batch, and update their running ones.
        segments: of so many parts of every graph values inside are computed again for gradients (Chen et al. 2016);
            1 keeps all.

    Attributes:
        trained: parameters by the names of their constants.
        statistics: running means and variances that training updates, by the same.
        observed: what `observe` asked for, by node, of the latest call.
    """

    def __init__(
        self,
        program: Program,
        *,
        frozen: frozenset[str] = frozenset(),
        statistics: bool = False,
        segments: int = 1,
    ) -> None:
        super().__init__()
        self.program = inline_fused(program)
        if self.program is program:
            self.program = program.copy()
        self.trained: dict[str, nn.Parameter] = {}
        self.statistics: dict[str, torch.Tensor] = {}
        self.observed: dict[str, Any] = {}
        self.watched: frozenset[str] = frozenset()
        self._recomputing = False
        self._latents = latents_of(self.program)
        self._choose(frozen | self.program.mutable_constants() | scales_of(self.program))
        replace_quantizers(self.program, self._latents)
        if statistics:
            self._live_statistics(frozen)
        self._parts = {name: _segments(graph, segments) for name, graph in self.program.graphs.items()}

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Run all stages with gradients; buffers that the model updates start from their values at capture."""
        values, state = dict(inputs), dict[str, torch.Tensor]()
        self.observed = {}
        for name, graph in self.program.graphs.items():
            known: dict[fx.Node, Any] = {node: values[str(node.target)] for node in placeholders(graph)}
            for part in self._parts[name]:
                part.run(self, known, state)
            outputs: Any = fx.node.map_arg(graph.output_node().args[0], known.__getitem__)
            values.update(outputs)
        return {name: values[name] for name in self.program.signature.output_names}

    def unflatten(self, outputs: Mapping[str, Any]) -> Any:
        """Return outputs by name as the model's pytree."""
        return structure.unflatten(self.program.signature.outputs, outputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`; statistics are not updated by what is computed again for it."""
        self._recomputing = True
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._recomputing = False

    def observe(self, names: frozenset[str]) -> None:
        """Keep the values of these nodes, by display name, of every call from now on."""
        self.watched = names

    def names(self) -> set[str]:
        """Return the display names of all operator nodes."""
        return {name_of(node) for graph in self.program.graphs.values() for node in calls(graph)}

    def constants(self) -> dict[str, torch.Tensor]:
        """Return what the constants have become, those that quantizers read as integers, by name."""
        found = {name: value.detach().clone() for name, value in self.statistics.items()}
        for name, value in self.trained.items():
            latent = self._latents.get(name)
            result = value.detach().clone(memory_format=torch.contiguous_format)
            found[name] = result if latent is None else latent.integers(result)
        return found

    def constant(self, name: str, state: Mapping[str, torch.Tensor]) -> Any:
        """Return the present value of a constant, or the module of a branch."""
        if name in self.program.branches:
            return branch_module(self.program.branches, name)
        for values in (state, self.trained, self.statistics):
            if name in values:
                return values[name]
        return self.program.constants[name]

    def _choose(self, others: frozenset[str]) -> None:
        """Make parameters of the constants that training changes."""
        for name, used in uses_of(self.program).items():
            value = self.program.constants[name]
            if name in others or not is_parameter(used):
                self._latents.pop(name, None)
            elif name in self._latents or value.is_floating_point():
                start = self._latents[name].floats(value) if name in self._latents else value.detach().clone()
                if start.dim() == _PICTURES:
                    # Convolutions of pictures, and their gradients, are faster with channels last.
                    start = start.contiguous(memory_format=torch.channels_last)
                self.trained[name] = nn.Parameter(start)
                self.register_parameter(name.replace(".", "/"), self.trained[name])

    def _live_statistics(self, frozen: frozenset[str]) -> None:
        """Let batch norms normalize by their batches."""
        for graph in self.program.graphs.values():
            for node in calls(graph):
                if node.target is not torch.ops.aten.batch_norm.default:
                    continue
                given = arguments(node)
                running = [given[name] for name in ("running_mean", "running_var")]
                names = [str(each.target) for each in running if isinstance(each, fx.Node) and each.op == "get_attr"]
                if len(names) != 2 or not frozen.isdisjoint(names):
                    continue
                for name in names:
                    self.statistics.setdefault(name, self.program.constants[name].detach().clone())
                node.target = self._batch_norm
                node.args = tuple(
                    given[name]
                    for name in ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
                )
                node.kwargs = {}

    def _batch_norm(
        self, value: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
    ) -> torch.Tensor:
        # One value a channel, as of a last batch of one sample, has no variance.
        if not self.training or value.numel() == value.shape[1]:
            return nn.functional.batch_norm(value, mean, var, weight, bias, False, momentum, eps)
        if self._recomputing:
            mean, var = mean.clone(), var.clone()
        return nn.functional.batch_norm(value, mean, var, weight, bias, True, momentum, eps)


class _Segment:
    """Nodes that run one after the other, with what they read from before and leave behind."""

    def __init__(self, nodes: list[fx.Node], recompute: bool) -> None:
        inside = set(nodes)
        self.nodes, self.recompute = nodes, recompute
        self.reads = list(dict.fromkeys(e for node in nodes for e in node.all_input_nodes if e not in inside))
        self.leaves = [node for node in nodes if any(user not in inside for user in node.users)]

    def run(self, module: Trainable, known: dict[fx.Node, Any], state: dict[str, torch.Tensor]) -> None:
        """Add the values that the nodes leave to `known`."""
        if not self.recompute:
            known.update(self._values(module, [known[node] for node in self.reads], state))
            return

        def again(*given: Any) -> list[Any]:
            return list(self._values(module, list(given), state).values())

        given = [known[node] for node in self.reads]
        results = checkpoint(again, *given, use_reentrant=False)
        known.update(zip(self.leaves, results, strict=True))

    def _values(self, module: Trainable, given: list[Any], state: dict[str, torch.Tensor]) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = dict(zip(self.reads, given, strict=True))
        look_up = values.__getitem__
        for node in self.nodes:
            if node.op == "get_attr":
                values[node] = module.constant(str(node.target), state)
                continue
            target: Any = node.target
            mutates = target is torch.ops.aten.copy_.default
            function: Callable[..., Any] = torch.ops.aten.copy.default if mutates else target
            result = function(*fx.node.map_arg(node.args, look_up), **fx.node.map_arg(node.kwargs, look_up))
            values[node] = result
            if mutates and isinstance(node.args[0], fx.Node):
                state[str(node.args[0].target)] = result
            if module.watched and name_of(node) in module.watched:
                module.observed[name_of(node)] = result
        return {node: values[node] for node in self.leaves}


def _segments(graph: fx.Graph, count: int) -> list[_Segment]:
    """Return the operators and constants of a graph in `count` parts of as many nodes each."""
    nodes = [node for node in graph.nodes if node.op in ("call_function", "get_attr")]
    effects = any(node.target is torch.ops.aten.copy_.default for node in nodes)
    count = 1 if effects else max(1, min(count, len(nodes)))
    size = -(-len(nodes) // count) if nodes else 1
    return [_Segment(nodes[at : at + size], count > 1) for at in range(0, len(nodes), size)]
