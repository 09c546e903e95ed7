"""Build the graphs that a text describes: operators looked up, arguments checked, types propagated and compared.

Propagation calls each operator once per distinct argument types: equal types share one fake tensor, so that the cost
of a large text is that of its distinct nodes. Operators whose result depends on data, or that write to an argument,
are always called, on fake tensors of their own.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.conditional import branch_module
from burnish.compiler.errors import BurnishError, TextError
from burnish.compiler.expressions import is_unbacked
from burnish.compiler.operators import Operator, find_operator, is_mutating, operator_name, schema_of
from burnish.compiler.printer import default_outputs
from burnish.compiler.provenance import Origin, Provenance, set_provenance
from burnish.compiler.stand_ins import type_of
from burnish.compiler.syntax import Call, GraphText, Input, Place, ProgramText, Return
from burnish.compiler.text_types import SymbolTable, TypeMismatchError
from burnish.compiler.types_text import TensorType, format_type
from burnish.compiler.values_text import Reference

__all__ = ["Builder"]

# Python's operators work on sizes; with literals alone they could be made to compute anything.
_MAX_LITERAL = 2**63
_DEEPEST = 30
_MAX_SHIFT = 64
_FRESH_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Builder:
    """Builds the graphs of one text; `table.fake_mode` must be active while it works.

    Attributes:
        graphs: the stages built so far.
        branches: the branches built so far.
    """

    def __init__(self, text: ProgramText, table: SymbolTable) -> None:
        self.text = text
        self.table = table
        self.graphs: dict[str, fx.Graph] = {}
        self.branches: dict[str, fx.Graph] = {}
        self.cache: dict[Any, Any] = {}
        self.constants: dict[str, Any] = {}
        self.samples: Mapping[str, Any] = {}
        self._open: set[str] = set()

    def build(self, given: Mapping[str, torch.Tensor], samples: Mapping[str, Any]) -> None:
        """Build all graphs, branches when a graph first refers to them.

        Args:
            given: values of constants; their devices and strides are taken over.
            samples: inputs by name; the order of their dimensions in memory is taken over.

        Raises:
            TextError: with the place of the offence.
        """
        self.samples = samples
        self.constants = {
            name: self._fake_constant(each.place, each.type, given.get(name))
            for name, each in self.text.constants.items()
        }
        known: dict[str, Any] = {}
        for name, text in self.text.graphs.items():
            graph = self.graphs[name] = _GraphBuilder(self, text, known).build()
            known.update({str(node.target): node.meta["val"] for node in graph.find_nodes(op="placeholder")})
            results: Any = graph.output_node().args[0]
            known.update({name: node.meta.get("val") for name, node in results.items()})
        for name, text in self.text.branches.items():
            self.branch(name, text.place)
        # In the order of the text, whatever the order of use.
        self.branches = {name: self.branches[name] for name in self.text.branches}

    def branch(self, name: str, place: Place) -> fx.Graph:
        """Return the branch called `name`."""
        if name not in self.branches:
            text = self.text.branches.get(name)
            if text is None:
                raise place.error(f"unknown branch &{name}")
            if name in self._open:
                raise place.error(f"branch &{name} refers to itself")
            if len(self._open) == _DEEPEST:
                raise place.error(f"branches are nested more than {_DEEPEST} deep")
            self._open.add(name)
            self.branches[name] = _GraphBuilder(self, text, None).build()
            self._open.remove(name)
        return self.branches[name]

    def _fake_constant(self, place: Place, kind: Any, given: torch.Tensor | None) -> Any:
        if not isinstance(kind, TensorType) or not all(isinstance(size, int) for size in kind.shape):
            raise place.error("a constant is a tensor of fixed sizes")
        if given is not None and (given.dtype != kind.dtype or tuple(given.shape) != kind.shape):
            raise place.error(f"the constant given for it has type {format_type(given)}")
        return _guarded(place, "this type", lambda: self.table.intern(self.table.make(kind, given)))


class _GraphBuilder:
    def __init__(self, owner: Builder, text: GraphText, known: dict[str, Any] | None) -> None:
        self.owner = owner
        self.table = owner.table
        self.text = text
        # Values that earlier stages define, by name; None in a branch.
        self.known = known
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.attributes: dict[tuple[str, str], fx.Node] = {}

    def build(self) -> fx.Graph:
        for item in self.text.inputs:
            self._claim(item.name, item.place)
            known = (self.known or {}).get(item.name)
            if known is None:
                value = _guarded(item.place, "this type", functools.partial(self._input, item))
            else:
                value = self._checked(item.place, item.type, known, f"input %{item.name}")
            self._add("placeholder", item.name, item.name, (), {}, value, item.place)
        for call in self.text.calls:
            self._claim(call.name, call.place)
            self._call(call)
        assert self.text.result is not None
        self._return(self.text.result)
        return self.graph

    def _input(self, item: Input) -> Any:
        sample = None if self.known is None else self.owner.samples.get(item.name)
        return self.table.make(item.type, sample if isinstance(sample, torch.Tensor) else None)

    def _claim(self, name: str, place: Place) -> None:
        if name in self.values:
            raise place.error(f"%{name} is defined twice")

    def _add(self, op: str, name: str, target: Any, args: Any, kwargs: Any, value: Any, place: Place) -> None:
        node = self.graph.create_node(op, target, args, kwargs, name=_identifier(name))
        node.meta = {"val": value, "name": name}
        set_provenance(node, _provenance(place))
        self.values[name] = node

    def _call(self, call: Call) -> None:
        try:
            target = find_operator(call.operator)
        except BurnishError as error:
            raise TextError(
                str(error), source=call.place.source, line=call.place.line, column=call.operator_column
            ) from error
        positional = [self._value(item, call.place) for item in call.positional]
        keywords = {name: self._value(item, call.place) for name, item in call.keywords.items()}
        args, kwargs = _arranged(call, target, positional, keywords)
        value = _guarded(call.place, call.operator, lambda: self._propagate(call, target, args, kwargs))
        if call.type is not None:
            value = self._checked(call.place, call.type, value, f"%{call.name}")
        self._add("call_function", call.name, target, args, kwargs, value, call.place)

    def _checked(self, place: Place, kind: Any, value: Any, what: str) -> Any:
        try:
            return _guarded(place, "this type", lambda: self.table.reconcile(kind, value))
        except TypeMismatchError as error:
            raise place.error(f"{what} has type {format_type(value)}, not the one written") from error

    def _value(self, item: Any, place: Place) -> Any:
        """Replace the references in a parsed value by nodes."""
        if isinstance(item, Reference):
            return self._node(item, place)
        if type(item) in (list, tuple):
            return type(item)(self._value(each, place) for each in item)
        if isinstance(item, dict):
            return {key: self._value(each, place) for key, each in item.items()}
        if isinstance(item, slice):
            return slice(*(self._value(each, place) for each in (item.start, item.stop, item.step)))
        return item

    def _node(self, reference: Reference, place: Place) -> fx.Node:
        if reference.sigil == "%":
            found = self.values.get(reference.name)
            if found is None:
                later = any(call.name == reference.name for call in self.text.calls)
                reason = "is used before its definition" if later else "is not defined"
                raise place.error(f"%{reference.name} {reason}", reference.column)
            return found
        key = (reference.sigil, reference.name)
        if key not in self.attributes:
            node_meta = {"name": reference.name}
            if reference.sigil == "&":
                self.owner.branch(reference.name, place)
            elif reference.name not in self.owner.constants:
                raise place.error(f"unknown constant @{reference.name}", reference.column)
            else:
                node_meta["val"] = self.owner.constants[reference.name]
            node = self.graph.create_node("get_attr", reference.name, name=_identifier(reference.name))
            node.meta = node_meta
            set_provenance(node, _provenance(place))
            self.attributes[key] = node
        return self.attributes[key]

    def _propagate(self, call: Call, target: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(target, OpOverload):
            self._restrain(call, target, args, kwargs)
        fresh = _needs_fresh(target)
        key = None if fresh else (target, _key(args), _key(kwargs))
        if key is not None and key in self.owner.cache:
            return self.owner.cache[key]
        value = type_of(target, self._fakes(args, fresh), self._fakes(kwargs, fresh), self.table.environment)
        if fresh:
            return value
        value = self.table.intern(value)
        # A new data-dependent size is another one at the next call.
        if not _unbacked(value) - _unbacked([node.meta.get("val") for node in _nodes((args, kwargs))]):
            self.owner.cache[key] = value
        return value

    def _fakes(self, item: Any, fresh: bool) -> Any:
        def of(node: fx.Node) -> Any:
            if node.op == "get_attr" and "val" not in node.meta:
                return branch_module(self.owner.branches, str(node.target))
            value = node.meta["val"]
            if fresh and isinstance(value, torch.Tensor):
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            return value

        return fx.node.map_arg(item, of)

    def _restrain(self, call: Call, target: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse Python operators on anything but sizes, and getitem on anything but tuples."""
        name = operator_name(target)
        if name.startswith("higher_order."):
            return
        values = [item.meta.get("val") if isinstance(item, fx.Node) else item for item in args]
        if target is operator.getitem:
            if kwargs or len(values) != 2 or not isinstance(values[0], (tuple, list)) or type(values[1]) is not int:
                raise call.place.error("getitem takes a tuple and an index")
            return
        numbers = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
        flat = [part for value in values for part in (value if isinstance(value, (tuple, list)) else [value])]
        limit = _MAX_SHIFT if name in ("py.pow", "py.lshift", "py.rshift") else _MAX_LITERAL
        small = all(isinstance(value, numbers) for value in flat) and all(
            abs(value) <= limit for value in flat if isinstance(value, int)
        )
        if kwargs or not small or not _nodes(args):
            raise call.place.error(f"{name} takes sizes and small numbers, at least one of them a size")

    def _return(self, result: Return) -> None:
        values = [self._value(value, result.place) for value in result.values]
        if self.known is None:
            output: Any = values[0] if result.bare else tuple(values)
        else:
            output = self._named(result, values)
        node = self.graph.output(output)
        set_provenance(node, _provenance(result.place))

    def _named(self, result: Return, values: list[Any]) -> dict[str, fx.Node]:
        defaults = default_outputs(len(values))
        given = [name for name in result.names if name is not None]
        if given and len(given) != len(values):
            raise result.place.error("either every output is named or none")
        names = given or defaults
        if result.bare or len(set(names)) != len(names) or not all(isinstance(value, fx.Node) for value in values):
            raise result.place.error("a graph returns values, under names that differ")
        return dict(zip(names, values, strict=True))


def _arranged(
    call: Call, target: Operator, positional: list[Any], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put arguments where torch.export puts them: by position up to the last one given, gaps filled with defaults."""
    plan = schema_of(target)
    if plan is None:
        return tuple(positional), keywords
    if len(positional) > plan.positional:
        raise call.place.error(f"{call.operator} takes {plan.positional} arguments by position, not {len(positional)}")
    given = dict(zip(plan.names, positional, strict=False))
    for name, value in keywords.items():
        if name not in plan.names:
            raise call.place.error(f"{call.operator} has no argument {name!r}; it has {', '.join(plan.names)}")
        if name in given:
            raise call.place.error(f"argument {name!r} is given by position and by name")
        if name in plan.devices and isinstance(value, str):
            value = _guarded(call.place, f"the device {value!r}", functools.partial(torch.device, value))
        given[name] = value
    for name in plan.names:
        if name not in given and name not in plan.defaults:
            raise call.place.error(f"{call.operator} lacks its argument {name!r}")
    leading = plan.names[: plan.positional]
    count = max((index + 1 for index, name in enumerate(leading) if name in given), default=0)
    args = tuple(given[name] if name in given else plan.defaults[name] for name in leading[:count])
    return args, {name: given[name] for name in plan.names[plan.positional :] if name in given}


@functools.cache
def _needs_fresh(target: Operator) -> bool:
    return isinstance(target, OpOverload) and (is_mutating(target) or any(tag in target.tags for tag in _FRESH_TAGS))


def _key(item: Any) -> Any:
    """Return what propagation depends on, hashable; equal types share one fake tensor, so its id stands for them."""
    if isinstance(item, fx.Node):
        value = item.meta.get("val", item)
        return ("size", value.node.expr) if isinstance(value, torch.SymInt) else ("value", id(value))
    if isinstance(item, (list, tuple)):
        return (type(item), *[_key(each) for each in item])
    if isinstance(item, dict):
        return tuple((key, _key(each)) for key, each in item.items())
    if isinstance(item, slice):
        return (slice, _key(item.start), _key(item.stop), _key(item.step))
    return (type(item), repr(item))


def _nodes(item: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(item, found.append)
    return found


def _unbacked(value: Any) -> set[Any]:
    if isinstance(value, (tuple, list)):
        return set().union(*(_unbacked(item) for item in value))
    if isinstance(value, torch.Tensor):
        return _unbacked([size for size in value.shape if not isinstance(size, int)])
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return {symbol for symbol in value.node.expr.free_symbols if is_unbacked(symbol)}
    return set()


def _guarded(place: Place, what: str, work: Any) -> Any:
    """Run `work`; whatever PyTorch raises on impossible types becomes a TextError at `place`."""
    try:
        return work()
    except (TextError, TypeMismatchError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
        raise place.error(f"{what} is refused by PyTorch: {reason}") from error


def _provenance(place: Place) -> Provenance:
    return Provenance((Origin("", file="<text>", line=place.line),), "text")


def _identifier(name: str) -> str:
    return name.replace(".", "_") or "value"
