"""The shape of a model's inputs and outputs: nested containers whose leaves are named values or literals.

A `Structure` is what `torch.utils._pytree.TreeSpec` is, with three differences: its leaves have names, it can hold
literals (an input that export specialized, an output that is None), and it survives in a process where the container
class (a Hugging Face `ModelOutput`, say) is not importable: there a dict of the same keys stands in for it.

Cases not handled: containers whose class is not registered with PyTorch's pytree are leaves, as in torch.export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree

from burnish.compiler.errors import InputError

__all__ = ["Container", "Leaf", "Literal", "Structure", "leaf_names", "rename_leaves", "structure_of"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: None, bool, int, float or str."""

    value: bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Container:
    """A tuple, list, dict, or a registered class.

    Attributes:
        kind: "tuple", "list", "dict", or the serialized type name that the class is registered under.
        keys: keys of the children; empty for tuples and lists.
        children: the parts, in order.
        context: for a registered class, what its unflatten function needs, as JSON.
    """

    kind: str
    keys: tuple[str, ...]
    children: tuple[Structure, ...]
    context: str = ""


Structure = Leaf | Literal | Container

# Classes seen in this process, with the contexts that cannot be written down (a namedtuple's own class, for one).
_LIVE: dict[tuple[str, str], tuple[Any, Any]] = {}


def leaf_names(structure: Structure) -> Iterator[str]:
    """Yield the names of the leaves from left to right."""
    if isinstance(structure, Leaf):
        yield structure.name
    elif isinstance(structure, Container):
        for child in structure.children:
            yield from leaf_names(child)


def rename_leaves(structure: Structure, names: Mapping[str, str]) -> Structure:
    """Return `structure` with its leaves renamed; leaves that `names` lacks stay."""
    if isinstance(structure, Leaf):
        return Leaf(names.get(structure.name, structure.name))
    if isinstance(structure, Container):
        children = tuple(rename_leaves(child, names) for child in structure.children)
        return Container(structure.kind, structure.keys, children, structure.context)
    return structure


def structure_of(value: Any, leaves: Iterator[Leaf | Literal]) -> Structure:
    """Describe `value` (a pytree), taking its leaves in order from `leaves`."""
    kind = pytree._get_node_type(value)
    if kind not in pytree.SUPPORTED_NODES:
        return next(leaves)
    parts, context = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    children = tuple(structure_of(part, leaves) for part in parts)
    if kind in (tuple, list):
        return Container(kind.__name__, (), children)
    if kind is dict and all(isinstance(key, str) for key in context):
        return Container("dict", tuple(context), children)
    container = Container(_type_name(value), _keys(value, parts), children, _dump_context(kind, context))
    _LIVE[container.kind, container.context] = (kind, context)
    return container


def flatten(structure: Structure, value: Any, where: str = "inputs") -> dict[str, Any]:
    """Return the leaves of `value` by name.

    Raises:
        InputError: `value` does not have this structure; the message gives the path of the first difference.
    """
    found: dict[str, Any] = {}
    _flatten(structure, value, where, found)
    return found


def unflatten(structure: Structure, values: Mapping[str, Any]) -> Any:
    """Build the pytree that `structure` describes from its leaves' values."""
    if isinstance(structure, Leaf):
        return values[structure.name]
    if isinstance(structure, Literal):
        return structure.value
    parts = [unflatten(child, values) for child in structure.children]
    if structure.kind == "tuple":
        return tuple(parts)
    if structure.kind == "list":
        return parts
    if structure.kind == "dict":
        return dict(zip(structure.keys, parts, strict=True))
    found = _LIVE.get((structure.kind, structure.context)) or _registered(structure)
    if found is not None:
        kind, context = found
        return pytree.SUPPORTED_NODES[kind].unflatten_fn(parts, context)
    return dict(zip(structure.keys, parts, strict=True)) if structure.keys else tuple(parts)


def _flatten(structure: Structure, value: Any, where: str, found: dict[str, Any]) -> None:
    if isinstance(structure, Leaf):
        found[structure.name] = value
        return
    if isinstance(structure, Literal):
        if value != structure.value:
            raise InputError(f"{where} was {structure.value!r} at capture and is {value!r} now: capture again with it")
        return
    keys, parts = _take_apart(structure, value, where)
    if list(keys) != list(structure.keys) or len(parts) != len(structure.children):
        wanted = list(structure.keys) or f"{len(structure.children)} items"
        raise InputError(f"{where} must have {wanted}, but has {list(keys) or f'{len(parts)} items'}")
    for index, (child, part) in enumerate(zip(structure.children, parts, strict=True)):
        label = f"[{keys[index]!r}]" if keys else f"[{index}]"
        _flatten(child, part, where + label, found)


def _take_apart(structure: Container, value: Any, where: str) -> tuple[tuple[str, ...], list[Any]]:
    if structure.kind in ("tuple", "list"):
        if not isinstance(value, (tuple, list)):
            raise InputError(f"{where} must be a {structure.kind}, but is {type(value).__name__}")
        return (), list(value)
    if isinstance(value, Mapping) and (structure.keys or structure.kind == "dict"):
        # The order of keys carries no meaning to the caller, and a ModelOutput leaves out the fields that are None.
        pairs = zip(structure.keys, structure.children, strict=True)
        needed = {key for key, child in pairs if child != Literal(None)}
        if needed <= set(value) <= set(structure.keys):
            return structure.keys, [value.get(key) for key in structure.keys]
        return tuple(str(key) for key in value), list(value.values())
    kind = pytree._get_node_type(value)
    if structure.kind == "dict" or kind not in pytree.SUPPORTED_NODES:
        raise InputError(f"{where} must be a {structure.kind}, but is {type(value).__name__}")
    parts, _ = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    return _keys(value, parts), list(parts)


def _keys(value: Any, parts: Any) -> tuple[str, ...]:
    kind = pytree._get_node_type(value)
    with_keys = pytree.SUPPORTED_NODES[kind].flatten_with_keys_fn
    if with_keys is None:
        return ()
    keys = [key for key, _ in with_keys(value)[0]]
    names = [getattr(key, "key", getattr(key, "name", None)) for key in keys]
    return tuple(str(name) for name in names) if all(name is not None for name in names) else ()


def _type_name(value: Any) -> str:
    registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(type(value))
    name = registered.serialized_type_name if registered is not None else None
    if not isinstance(name, str) or name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
    return name


def _dump_context(kind: Any, context: Any) -> str:
    registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    dump = registered.to_dumpable_context if registered is not None else None
    try:
        return json.dumps(dump(context) if dump else context)
    except (TypeError, ValueError, NotImplementedError):
        return ""


def _registered(structure: Container) -> tuple[Any, Any] | None:
    # Only classes that this process registered already: a file never makes us import a module.
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(structure.kind)
    if kind not in pytree.SUPPORTED_NODES:
        return None
    try:
        context = json.loads(structure.context)
        load = pytree.SUPPORTED_SERIALIZED_TYPES[kind].from_dumpable_context
        return kind, load(context) if load else context
    except (TypeError, ValueError, NotImplementedError):
        return None
