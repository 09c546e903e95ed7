"""Program: the typed graph of ATen operators that passes rewrite and backends lower.

A Program holds one or more named graphs (a partitioned model has a graph per stage), the branches that
higher-order operators call, the constants, the signature and sample inputs. Stages run in order; a stage's input is
a Program input, or an output of an earlier stage, of the same name.

A graph is a bare `torch.fx.Graph`, and the constants are one table beside it, so that a copy of a Program never
copies a weight and editing never recompiles Python code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from burnish.compiler import graphs as graph_functions
from burnish.compiler import interpreter
from burnish.compiler.binding import Binding
from burnish.compiler.conditions import Condition
from burnish.compiler.facts import Fact
from burnish.compiler.structure import Structure, leaf_names, unflatten

if TYPE_CHECKING:
    import os

    from burnish.compiler.cost import Cost

__all__ = ["Program", "Signature"]


@dataclass(frozen=True, slots=True)
class Signature:
    """How a Program is called.

    Attributes:
        inputs: structure of `(args, kwargs)`; its leaves name the Program's inputs.
        outputs: structure of the result; its leaves name the Program's outputs.
        parameters: name of the positional parameter of each item of `args`, where known: they may be given by name.
    """

    inputs: Structure
    outputs: Structure
    parameters: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(leaf_names(self.inputs))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order, each once."""
        return tuple(dict.fromkeys(leaf_names(self.outputs)))


@dataclass(eq=False)
class Program:
    """A captured model. See the module's docstring.

    Attributes:
        graphs: the stages by name, in the order in which they run; "main" for a whole model.
        branches: graphs that higher-order operators (`cond`) call, by name.
        constants: parameters, buffers and lifted tensors by name; shared between copies, never written in place.
        signature: how it is called.
        fake_mode: the mode that every `node.meta["val"]` belongs to.
        samples: one tensor (or number) per input, used to verify and to measure; may be empty.
        facts: what is known to hold.
        history: the passes that have run, in pipeline text.
        conditions: what the sizes of the inputs must satisfy, besides their ranges.
        notes: what the user should know (an input that could not be made dynamic, say).
        warnings: what makes it unfit for use as it is.
    """

    graphs: dict[str, fx.Graph]
    constants: dict[str, torch.Tensor]
    signature: Signature
    fake_mode: FakeTensorMode
    branches: dict[str, fx.Graph] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    facts: frozenset[Fact] = frozenset()
    history: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Program in eager PyTorch, operator by operator; call it as the model is called.

        Buffers that the model updates are updated in this Program's `constants`.
        """
        outputs, state = interpreter.run(self, Binding.of(self).bind(args, kwargs))
        self.constants.update(state)
        return outputs

    def sample_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the sample inputs as (args, kwargs), tensors copied: a model may write to its inputs."""
        values = {name: _clone(value) for name, value in self.samples.items()}
        args, kwargs = unflatten(self.signature.inputs, values)
        return args, kwargs

    def with_samples(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        """Return this Program with other sample inputs.

        Raises:
            InputError: they do not fit the signature.
        """
        values = Binding.of(self).bind(args, kwargs)
        return replace(self, samples={name: _clone(value) for name, value in values.items()})

    def copy(self) -> Program:
        """Copy the graphs; constants, types and samples are shared."""
        return replace(
            self,
            graphs={name: graph_functions.copy_graph(graph) for name, graph in self.graphs.items()},
            branches={name: graph_functions.copy_graph(graph) for name, graph in self.branches.items()},
            constants=dict(self.constants),
            samples=copy.copy(self.samples),
        )

    def all_graphs(self) -> Iterator[tuple[str, fx.Graph]]:
        """Yield the stages, then the branches, by name."""
        yield from self.graphs.items()
        yield from self.branches.items()

    def called_branches(self, graph: fx.Graph) -> list[str]:
        """Return the names of the branches that a graph calls, those that branches call among them."""
        found, waiting = dict[str, None](), [graph]
        while waiting:
            names = [str(node.target) for node in waiting.pop().find_nodes(op="get_attr")]
            new = [name for name in names if name in self.branches and name not in found]
            found |= dict.fromkeys(new)
            waiting += [self.branches[name] for name in dict.fromkeys(new)]
        return list(found)

    def node_count(self) -> int:
        """Return the number of operator nodes."""
        return sum(sum(1 for _ in graph_functions.calls(graph)) for _, graph in self.all_graphs())

    def mutable_constants(self) -> frozenset[str]:
        """Return the names of the buffers that a run updates: their values must not be folded."""
        return frozenset(
            str(node.args[0].target)
            for _, graph in self.all_graphs()
            for node in graph_functions.updates(graph)
            if isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"
        )

    def used_constants(self) -> dict[str, torch.Tensor]:
        """Return the constants that some graph refers to, in order of first use."""
        used: dict[str, torch.Tensor] = {}
        for _, graph in self.all_graphs():
            for node in graph.find_nodes(op="get_attr"):
                if node.target in self.constants:
                    used[str(node.target)] = self.constants[str(node.target)]
        return used

    def structural_key(self) -> int:
        """Return a hash of structure and constants (by identity), equal within one process only."""
        graphs = tuple((name, graph_functions.structural_key(graph)) for name, graph in self.all_graphs())
        constants = frozenset((name, id(value)) for name, value in self.used_constants().items())
        return hash((graphs, constants, self.signature))

    def parameter_count(self) -> int:
        """Return the number of elements of all constants in use, tied weights counted once."""
        return sum(value.numel() for value in self.used_constants().values())

    def print(self) -> str:
        """Return the text form; see docs/text-form.md."""
        from burnish.compiler.printer import print_program

        return print_program(self)

    @staticmethod
    def parse(text: str, constants: Mapping[str, torch.Tensor] | None = None, *, seed: int = 0) -> Program:
        """Parse the text form; constants that are not given get seeded random values.

        Raises:
            TextError: the text is not a program; the message shows the line.
        """
        from burnish.compiler.parser import parse_program

        return parse_program(text, constants, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file (safetensors: weights and samples, with the text and provenance in its metadata)."""
        from burnish.compiler.storage import save_program

        save_program(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Program:
        """Read a file that `save` wrote.

        Raises:
            FileFormatError: the file is truncated, foreign, or of an unknown version.
        """
        from burnish.compiler.storage import load_program

        return load_program(path)

    def cost(self) -> Cost:
        """Return FLOPs, bytes, parameters and peak activation memory; symbolic in the dynamic dimensions."""
        from burnish.compiler.cost import cost_of

        return cost_of(self)

    def __repr__(self) -> str:
        return f"<burnish.Program {', '.join(self.graphs)}: {self.node_count()} nodes>"


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
