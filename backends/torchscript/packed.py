"""A frozen module called with its layers packed for this processor.

The packed weights stay in memory: a file that holds them would run on one kind of processor alone. Convolutions are
packed for the heights and widths of the first call; calls that lead to others run ATen's kernels for these, which need
no packing, and after some of them in a row convolutions are packed for these instead. Which calls those are is
observed, once for every shape of the inputs.

Not handled: sizes that depend on data, where later calls with inputs of one shape are taken for alike: they are right,
and may be slow. Processors without AVX2.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from burnish.backends.torchscript.kernels import observe_sizes, pack_convolutions, pack_linears

__all__ = ["PackedModule", "runs_packed"]

_PROCESSORS = ("AVX2", "AVX512")
# Shapes of inputs that are remembered; a server of texts of any length sees many.
_REMEMBERED = 4096


def runs_packed() -> bool:
    """Tell whether this process, as it is set now, may run packed layers."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() not in _PROCESSORS:
        return False
    # Autocast casts the operands of ATen's layers, and does not know these kernels.
    return bool(mkldnn.enabled) and not torch.is_autocast_enabled("cpu")


class PackedModule:
    """Called like `module`, and computes the same; state is that of `module`, which stays as it is."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._graph: Any = module.graph.copy()
        packed = pack_linears(self._graph)
        observed = self._graph.copy()
        self._observes = observe_sizes(observed)
        self._any_size = self._function(observed) if packed or self._observes else module
        self._fitted: Callable[..., Any] | None = None
        # Threads may call first at a time, with different sizes.
        self._packing = threading.Lock()
        self._sizes: list[list[int]] = []
        self._fits: dict[tuple[Any, ...], bool] = {}
        self._latest, self._in_a_row, self._wanted_in_a_row = self._sizes, 0, 1

    def __call__(self, *inputs: Any) -> Any:
        """Run `forward` on its arguments, by position."""
        if not self._observes:
            return self._any_size(*inputs)
        shapes = tuple(each.shape if isinstance(each, torch.Tensor) else each for each in inputs)
        if self._fitted is not None and self._fits.get(shapes):
            self._in_a_row = 0
            return self._fitted(*inputs)
        result, *sizes = self._any_size(*inputs)
        # Weights cannot be packed for pictures of no pixels or a batch of none.
        if all(map(all, sizes)):
            self._remember(shapes, sizes)
        return result

    def _remember(self, shapes: tuple[Any, ...], sizes: list[list[int]]) -> None:
        """Note whether inputs of these shapes lead to the sizes that convolutions are packed for, or pack anew."""
        seen = [size[2:] for size in sizes]
        with self._packing:
            if seen == self._sizes:
                self._in_a_row = 0
            else:
                self._in_a_row = self._in_a_row + 1 if seen == self._latest else 1
                self._latest = seen
                if self._in_a_row >= self._wanted_in_a_row:
                    self._pack(sizes, seen)
            if len(self._fits) == _REMEMBERED:
                self._fits.clear()
            self._fits[shapes] = seen == self._sizes

    def _pack(self, sizes: list[list[int]], seen: list[list[int]]) -> None:
        graph = self._graph.copy()
        pack_convolutions(graph, sizes)
        self._fits.clear()
        self._sizes, self._fitted = seen, self._function(graph)
        # Sizes that take turns would be packed again and again.
        self._wanted_in_a_row *= 2

    def _function(self, graph: Any) -> Callable[..., Any]:
        private: Any = torch._C
        return functools.partial(private._create_function_from_graph("forward", graph), self._module)
