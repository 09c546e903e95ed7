"""The calling convention of a Program or Artifact: checks arguments, names them, and builds the result's pytree.

It is written into saved artifacts as JSON, so that they are called like the model in a process without its source.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.compiler import structure
from burnish.compiler.conditions import SizeRules, range_conditions
from burnish.compiler.errors import FileFormatError, InputError, TextError
from burnish.compiler.expressions import SymbolNames
from burnish.compiler.graphs import placeholders
from burnish.compiler.sizes import expression, static_size
from burnish.compiler.structure import Container, Leaf, Literal, Structure

if TYPE_CHECKING:
    from burnish.compiler.program import Program, Signature

__all__ = ["Binding", "InputType"]


@dataclass(frozen=True, slots=True)
class InputType:
    """Type of one input: element type (None for a plain number), and sizes.

    A size is a number, an expression in the text form's symbols where it is dynamic, or None where nothing is known.
    """

    dtype: torch.dtype | None
    shape: tuple[int | str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """How something compiled is called.

    Attributes:
        inputs: structure of `(args, kwargs)`.
        outputs: structure of the result.
        parameters: names of the positional parameters.
        types: the type of every input by name.
        conditions: comparisons of sizes that every call must satisfy, as text.
    """

    inputs: Structure
    outputs: Structure
    parameters: tuple[str, ...]
    types: Mapping[str, InputType]
    conditions: tuple[str, ...] = ()

    @staticmethod
    def of(program: Program) -> Binding:
        """Return the calling convention of `program`."""
        names = SymbolNames()
        types = {
            str(node.target): _type_of(node.meta.get("val"), names)
            for graph in program.graphs.values()
            for node in placeholders(graph)
        }
        signature: Signature = program.signature
        wanted = {name: types[name] for name in signature.input_names if name in types}
        ranges = range_conditions(program.fake_mode.shape_env, list(names.names))
        conditions = tuple(each.text(names) for each in (*ranges, *program.conditions))
        return Binding(signature.inputs, signature.outputs, signature.parameters, wanted, conditions)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a call by name.

        Raises:
            InputError: an argument is missing, left over, or differs from capture in structure, dtype or static size.
        """
        assert isinstance(self.inputs, Container)
        wanted_args, wanted_kwargs = self.inputs.children
        assert isinstance(wanted_args, Container) and isinstance(wanted_kwargs, Container)
        given = dict(kwargs)
        positional = list(args)
        # A positional parameter may be given by its name, as in Python.
        for name in self.parameters[len(positional) : len(wanted_args.children)]:
            if name in given:
                positional.append(given.pop(name))
        # One that was captured by name may be given by position, in the order of the signature.
        if len(positional) > len(wanted_args.children):
            names = self.parameters[len(wanted_args.children) : len(positional)]
            extra = len(positional) - len(wanted_args.children)
            if len(names) == extra and all(name in wanted_kwargs.keys and name not in given for name in names):
                given.update(zip(names, positional[len(wanted_args.children) :], strict=False))
                del positional[len(wanted_args.children) :]
        self._check_names(len(positional), given, wanted_args, wanted_kwargs)
        values = structure.flatten(self.inputs, (tuple(positional), given))
        for name, expected in self.types.items():
            _check(name, values[name], expected)
        shapes = {name: tuple(values[name].shape) for name, kind in self.types.items() if kind.dtype is not None}
        rules = _rules(tuple((name, kind.shape) for name, kind in self.types.items()), self.conditions)
        objection = rules.check(shapes)
        if objection is not None:
            raise InputError(f"{objection}: capture again with inputs like these")
        return values

    def _check_names(
        self, positional: int, given: Mapping[str, Any], wanted_args: Container, wanted_kwargs: Container
    ) -> None:
        unknown = [name for name in given if name not in wanted_kwargs.keys]
        missing = [name for name in wanted_kwargs.keys if name not in given]
        if unknown or missing or positional != len(wanted_args.children):
            takes = [*self.parameters[: len(wanted_args.children)], *wanted_kwargs.keys]
            trouble = [f"{name!r} is unexpected" for name in unknown] + [f"{name!r} is missing" for name in missing]
            trouble = trouble or [f"{positional} are given by position, and {len(wanted_args.children)} expected"]
            raise InputError(f"the inputs, as captured, are {', '.join(takes)}: {', '.join(trouble)}")

    def result(self, outputs: Mapping[str, Any]) -> Any:
        """Build the result's pytree from the outputs by name."""
        return structure.unflatten(self.outputs, outputs)

    def to_json(self) -> dict[str, Any]:
        """Return a description that `json.dumps` takes."""
        return {
            "inputs": _structure_to_json(self.inputs),
            "outputs": _structure_to_json(self.outputs),
            "parameters": list(self.parameters),
            "types": {
                name: {"dtype": None if each.dtype is None else str(each.dtype)[6:], "shape": list(each.shape)}
                for name, each in self.types.items()
            },
            "conditions": list(self.conditions),
        }

    @staticmethod
    def from_json(data: Any) -> Binding:
        """Read what `to_json` returned.

        Raises:
            FileFormatError: `data` has another form.
        """
        try:
            types = {}
            for name, each in data["types"].items():
                dtype = None if each["dtype"] is None else getattr(torch, str(each["dtype"]))
                if dtype is not None and not isinstance(dtype, torch.dtype):
                    raise TypeError(f"{each['dtype']!r} is no dtype")
                types[str(name)] = InputType(
                    dtype, tuple(size if size is None or isinstance(size, str) else int(size) for size in each["shape"])
                )
            found = Binding(
                _structure_from_json(data["inputs"]),
                _structure_from_json(data["outputs"]),
                tuple(str(name) for name in data["parameters"]),
                types,
                tuple(str(each) for each in data["conditions"]),
            )
            SizeRules({name: kind.shape for name, kind in types.items()}, found.conditions)
            return found
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, TextError) as error:
            raise FileFormatError(f"the calling convention in the file cannot be read: {error!r}") from error


@functools.lru_cache(maxsize=64)
def _rules(shapes: tuple[tuple[str, tuple[int | str | None, ...]], ...], conditions: tuple[str, ...]) -> SizeRules:
    return SizeRules(dict(shapes), conditions)


def _type_of(value: Any, names: SymbolNames) -> InputType:
    if not isinstance(value, torch.Tensor):
        return InputType(None)
    return InputType(value.dtype, tuple(_size_of(size, names, index == 0) for index, size in enumerate(value.shape)))


def _size_of(size: int | torch.SymInt, names: SymbolNames, leading: bool) -> int | str:
    number = static_size(size)
    return number if number is not None else names.expression(expression(size), leading=leading)


def _check(name: str, value: Any, expected: InputType) -> None:
    if expected.dtype is None:
        if isinstance(value, torch.Tensor) or not isinstance(value, (int, float, bool)):
            raise InputError(f"input {name!r} must be a number, as at capture, but is {type(value).__name__}")
        return
    if not isinstance(value, torch.Tensor):
        raise InputError(f"input {name!r} must be a tensor, but is {type(value).__name__}")
    if value.dtype != expected.dtype:
        raise InputError(f"input {name!r} must have dtype {expected.dtype}, but has {value.dtype}: convert it")
    if value.dim() != len(expected.shape):
        raise InputError(
            f"input {name!r} must have {len(expected.shape)} dimensions, but has shape {list(value.shape)}"
        )
    for index, (size, wanted) in enumerate(zip(value.shape, expected.shape, strict=True)):
        if isinstance(wanted, int) and size != wanted:
            raise InputError(
                f"input {name!r} has size {size} in dimension {index}, but was captured with {wanted} there:"
                " capture again with that dimension in dynamic_shapes"
            )


def _structure_to_json(value: Structure) -> Any:
    if isinstance(value, Leaf):
        return {"leaf": value.name}
    if isinstance(value, Literal):
        return {"literal": value.value}
    children = [_structure_to_json(child) for child in value.children]
    return {"kind": value.kind, "keys": list(value.keys), "children": children, "context": value.context}


def _structure_from_json(data: Any) -> Structure:
    if "leaf" in data:
        return Leaf(str(data["leaf"]))
    if "literal" in data:
        if data["literal"] is not None and not isinstance(data["literal"], (bool, int, float, str)):
            raise TypeError("a literal must be a number, a string or None")
        return Literal(data["literal"])
    children = tuple(_structure_from_json(child) for child in data["children"])
    return Container(str(data["kind"]), tuple(str(key) for key in data["keys"]), children, str(data["context"]))
