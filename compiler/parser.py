"""Parse the text form into a Program; docs/text-form.md describes the form.

Syntax is read first (syntax.py), then the graphs are built and typed by propagating fake values (text_builder.py).
Constants and samples that are not given get seeded random values. Whatever the input, errors are TextErrors.

Not handled: strides and devices, which the text does not hold: values are contiguous and on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_config
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from burnish.compiler.errors import BurnishError, TextError
from burnish.compiler.facts import Fact
from burnish.compiler.printer import default_parameters, default_structures
from burnish.compiler.program import Program, Signature
from burnish.compiler.quiet import silenced
from burnish.compiler.structure import Container, Structure, leaf_names
from burnish.compiler.syntax import ConstantText, ProgramText, read_syntax
from burnish.compiler.text_builder import Builder
from burnish.compiler.text_data import random_constant, random_sample, small_constant
from burnish.compiler.text_types import SymbolTable
from burnish.compiler.types_text import ScalarType, TensorType, Type

__all__ = ["parse_program", "parse_with_samples"]

# Random data beyond this is a slip of the pen (or of a fuzzer), not a model: give the constants instead.
_MAX_RANDOM_ELEMENTS = 2**30


def parse_program(text: str, constants: Mapping[str, torch.Tensor] | None = None, *, seed: int = 0) -> Program:
    """Parse `text` into a Program with sample inputs.

    Args:
        text: the text form.
        constants: values by name; a constant that is missing here gets the value in the text, or a random one.
        seed: of the random constants and samples.

    Raises:
        TextError: the text is not a program; the message shows the line.
    """
    return _parse(text, constants or {}, None, seed)


def parse_with_samples(text: str, constants: Mapping[str, torch.Tensor], samples: Mapping[str, Any]) -> Program:
    """Parse `text`, taking the sizes assumed for dynamic dimensions from `samples`, which the Program keeps.

    Raises:
        TextError: as `parse_program`.
    """
    return _parse(text, constants, samples, 0)


def _parse(text: str, given: Mapping[str, torch.Tensor], samples: Mapping[str, Any] | None, seed: int) -> Program:
    # Deeply nested input may exhaust the stack inside SymPy or PyTorch, in spite of the limit on brackets.
    try:
        table = SymbolTable(_sample_sizes(text, samples or {}))
        syntax = read_syntax(text, table.symbol, table.declare)
        builder = Builder(syntax, table)
        with (
            table.fake_mode,
            enable_python_dispatcher(),
            torch.no_grad(),
            symbolic_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            # What it logs is raised as a TextError anyway.
            silenced("torch._subclasses.fake_tensor"),
        ):
            builder.build(given, samples or {})
    except RecursionError as error:
        raise TextError("the text is nested too deeply", source=text, line=1, column=1) from error
    table.restore_bounds()
    signature = _signature(syntax, builder.graphs)
    program = Program(
        graphs=builder.graphs,
        branches=builder.branches,
        constants={},
        signature=signature,
        fake_mode=table.fake_mode,
        facts=frozenset(Fact(name) for name in syntax.facts),
        history=syntax.passes,
        conditions=tuple(syntax.conditions),
    )
    budget = _Budget(syntax)
    program.constants = {
        name: _constant(name, each, given.get(name), budget, seed) for name, each in syntax.constants.items()
    }
    program.samples = _random_samples(syntax, table, signature, budget, seed) if samples is None else dict(samples)
    return program


class _Budget:
    """Counts the random elements that a text asks for."""

    def __init__(self, syntax: ProgramText) -> None:
        self.left = _MAX_RANDOM_ELEMENTS
        self.place = syntax.place

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        """Take the elements of a tensor of `shape` from what is left."""
        count = 1
        for size in shape:
            count *= max(1, size)
        self.left -= count
        if self.left < 0:
            raise self.place.error(f"{name} asks for more random data than {_MAX_RANDOM_ELEMENTS} elements: give it")


def _constant(name: str, text: ConstantText, given: Any, budget: _Budget, seed: int) -> torch.Tensor:
    if given is not None:
        return torch.as_tensor(given)
    assert isinstance(text.type, TensorType)
    shape = tuple(int(size) for size in text.type.shape)
    budget.take(f"constant @{name}", shape)
    try:
        if text.value is not None:
            return small_constant(text.value, text.type.dtype, shape)
        return random_constant(name, text.type.dtype, shape, seed)
    except (BurnishError, RuntimeError, TypeError, ValueError) as error:
        raise text.place.error(f"constant @{name}: {str(error).splitlines()[0][:200]}") from error


def _random_samples(
    syntax: ProgramText, table: SymbolTable, signature: Signature, budget: _Budget, seed: int
) -> dict[str, Any]:
    inputs = {item.name: item for graph in reversed(syntax.graphs.values()) for item in graph.inputs}
    found: dict[str, Any] = {}
    for name in signature.input_names:
        item = inputs.get(name)
        if item is None:
            continue
        try:
            if isinstance(item.type, TensorType):
                shape = tuple(table.hint(size) for size in item.type.shape)
                budget.take(f"input %{name}", shape)
                found[name] = random_sample(name, item.type.dtype, shape, seed)
            else:
                found[name] = _random_number(item.type, table)
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise item.place.error(f"input %{name} has no sample: {str(error).splitlines()[0][:200]}") from error
    return found


def _random_number(kind: Type, table: SymbolTable) -> Any:
    if isinstance(kind, ScalarType) and kind.kind == "sym" and kind.value is not None:
        return table.hint(kind.value)
    if isinstance(kind, ScalarType):
        return {"symbool": True, "symfloat": 0.5}.get(kind.kind)
    raise TypeError("an input is a tensor or a number, never a tuple")


def _signature(syntax: ProgramText, graphs: dict[str, fx.Graph]) -> Signature:
    named = []
    for graph in graphs.values():
        result: Any = graph.output_node().args[0]
        named.append(([str(node.target) for node in graph.find_nodes(op="placeholder")], list(result)))
    inputs, outputs = default_structures(named)
    inputs = inputs if syntax.inputs is None else syntax.inputs
    outputs = outputs if syntax.outputs is None else syntax.outputs
    _check_inputs(syntax, inputs)
    known = list(leaf_names(inputs))
    if len(set(known)) != len(known):
        raise syntax.place.error("an input stands twice in 'inputs'")
    for arguments, results in named:
        missing = [name for name in arguments if name not in known]
        if missing:
            raise syntax.place.error(f"%{missing[0]} is neither an input nor an output of an earlier graph")
        known += results
    for name in leaf_names(outputs):
        if name not in known:
            raise syntax.place.error(f"the output %{name} is not returned by any graph")
    parameters = default_parameters(inputs) if syntax.parameters is None else syntax.parameters
    return Signature(inputs, outputs, parameters)


def _check_inputs(syntax: ProgramText, inputs: Structure) -> None:
    if isinstance(inputs, Container) and inputs.kind == "tuple" and len(inputs.children) == 2:
        args, kwargs = inputs.children
        kinds = [child.kind for child in (args, kwargs) if isinstance(child, Container)]
        if kinds == ["tuple", "dict"]:
            return
    raise syntax.place.error("'inputs' is a tuple of positional inputs and a dict of those by name")


def _sample_sizes(text: str, samples: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that samples have in dimensions that are a bare symbol in the text."""
    if not samples:
        return {}
    scratch = SymbolTable({})
    sizes: dict[str, int] = {}
    names: dict[Any, str] = {}

    def symbol(name: str, token: Any) -> Any:
        found = scratch.symbol(name, token)
        names[found] = name
        return found

    for graph in read_syntax(text, symbol, scratch.declare).graphs.values():
        for item in graph.inputs:
            sample = samples.get(item.name)
            if isinstance(item.type, TensorType) and isinstance(sample, torch.Tensor):
                pairs = zip(item.type.shape, sample.shape, strict=False)
                sizes.update({names[size]: given for size, given in pairs if size in names})
    return sizes
