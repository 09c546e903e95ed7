"""Make classes that models take or return known to PyTorch's pytree: dataclasses, and plain objects that hold tensors.

`torch.export` refuses an unregistered class. A plain object (a key-value cache of transformers, say) is taken apart by
attribute: those that hold tensors are its children, the others are its context. Registration lasts for the process.

Cases not handled: objects with `__slots__`, objects that refer to themselves, and tensors in sets or in closures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree

__all__ = ["register_containers", "register_known_containers"]

# Modules whose classes models return, and the bases of those classes.
_KNOWN = {"transformers.cache_utils": ("Cache", "CacheLayerMixin", "LinearAttentionCacheLayerMixin", "DummyLayer")}
_PLAIN = (type(None), bool, int, float, str)


def register_known_containers() -> None:
    """Register the containers of the libraries that are imported already."""
    for module_name, bases in _KNOWN.items():
        module = sys.modules.get(module_name)
        for base in bases if module is not None else ():
            for cls in _family(getattr(module, base, None)):
                _register(cls)


def register_containers(value: Any) -> bool:
    """Register the class of every leaf of `value` that holds tensors; tell whether there was one."""
    found = False
    # A registered object may hold others. Parameters and other kinds of tensors are leaves themselves.
    while unknown := {
        type(leaf) for leaf in pytree.tree_leaves(value) if not isinstance(leaf, torch.Tensor) and _holds_tensor(leaf)
    }:
        found = True
        for cls in unknown:
            _register(cls)
    return found


def _family(cls: Any) -> Iterator[type]:
    if cls is not None:
        yield cls
        for each in cls.__subclasses__():
            yield from _family(each)


def _register(cls: type) -> None:
    if cls in pytree.SUPPORTED_NODES:
        return
    name = f"{cls.__module__}.{cls.__qualname__}"
    if dataclasses.is_dataclass(cls):
        torch.export.register_dataclass(cls, serialized_type_name=name)
        return
    pytree.register_pytree_node(
        cls,
        _flatten,
        lambda parts, context: _unflatten(cls, parts, context),
        serialized_type_name=name,
        to_dumpable_context=_dump,
        from_dumpable_context=_load,
        flatten_with_keys_fn=_flatten_with_keys,
    )


def _holds_tensor(value: Any, seen: tuple[int, ...] = ()) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, (*_PLAIN, type, torch.dtype, torch.device)) or id(value) in seen:
        return False
    seen = (*seen, id(value))
    parts: Iterable[Any]
    if type(value) in pytree.SUPPORTED_NODES:
        parts = pytree.tree_leaves(value)
    else:
        parts = getattr(value, "__dict__", {}).values()
    return any(_holds_tensor(part, seen) for part in parts)


def _flatten(value: Any) -> tuple[list[Any], Any]:
    pairs, context = _flatten_with_keys(value)
    return [part for _, part in pairs], context


def _flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
    held = {name: part for name, part in vars(value).items() if _holds_tensor(part)}
    rest = tuple((name, part) for name, part in vars(value).items() if name not in held)
    return [(pytree.GetAttrKey(name), part) for name, part in held.items()], (tuple(held), rest)


def _unflatten(cls: type, parts: Iterable[Any], context: Any) -> Any:
    held, rest = context
    made: Any = object.__new__(cls)
    vars(made).update(rest)
    vars(made).update(zip(held, parts, strict=True))
    return made


def _dump(context: Any) -> Any:
    held, rest = context
    return [list(held), [[name, _encode(value)] for name, value in rest]]


def _load(data: Any) -> Any:
    held, rest = data
    return tuple(held), tuple((name, _decode(value)) for name, value in rest)


def _encode(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return {"torch": str(value)}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(each)] for key, each in value.items()]}
    return {"unknown": type(value).__name__}


def _decode(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "torch":
        found = getattr(torch, str(value)[6:], None) if str(value).startswith("torch.") else torch.device(value)
        if isinstance(found, (torch.dtype, torch.device)):
            return found
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode(each) for each in value)
    if kind == "dict":
        return {_decode(key): _decode(each) for key, each in value}
    raise ValueError(f"a {kind} cannot be read back")
