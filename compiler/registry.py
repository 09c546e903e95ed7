"""Passes and backends by name: registered by a call, or found through entry points of installed packages."""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import entry_points
from typing import Any, TypeVar

from burnish.compiler.backend import Backend
from burnish.compiler.errors import BackendError, BurnishError, PipelineError
from burnish.compiler.pass_base import Pass

__all__ = ["backend_names", "find_backend", "find_pass", "pass_names", "register_backend", "register_pass"]

_passes: dict[str, type[Pass]] = {}
_backends: dict[str, Backend] = {}
_PassType = TypeVar("_PassType", bound=type[Pass])
_BackendType = TypeVar("_BackendType")


def register_pass(cls: _PassType) -> _PassType:
    """Make a pass known by its `name` (usable as a decorator).

    Raises:
        BurnishError: it is no Pass, has no name, or another pass has the name.
    """
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise BurnishError(f"{cls!r} is not a subclass of burnish.Pass")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise BurnishError(f"{cls.__name__} needs a class attribute `name`")
    other = _passes.get(name)
    if other is not None and f"{other.__module__}.{other.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
        raise BurnishError(f"pass {name!r} is registered already, by {other.__module__}.{other.__qualname__}")
    _passes[name] = cls
    return cls


def register_backend(cls: type[_BackendType]) -> type[_BackendType]:
    """Make a backend known by its `name` (usable as a decorator); it is instantiated without arguments.

    Raises:
        BurnishError: another backend has the name.
    """
    backend: Any = cls()
    if not isinstance(backend, Backend):
        raise BurnishError(f"{cls.__name__} is not a backend: it lacks a part of burnish.compiler.backend.Backend")
    other = _backends.get(backend.name)
    if other is not None and type(other).__qualname__ != cls.__qualname__:
        raise BurnishError(f"backend {backend.name!r} is registered already, by {type(other).__qualname__}")
    _backends[backend.name] = backend
    return cls


def find_pass(name: str) -> type[Pass]:
    """Return the pass called `name`.

    Raises:
        PipelineError: there is none; the message offers the nearest names.
    """
    known = _entry_points("burnish.passes")
    if name not in _passes and name in known:
        register_pass(known[name].load())
    if name not in _passes:
        raise PipelineError(f"no pass is called {name!r}{_nearest(name, pass_names())}")
    return _passes[name]


def find_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        BackendError: there is none; the message offers the nearest names.
    """
    known = _entry_points("burnish.backends")
    if name not in _backends and name in known:
        register_backend(known[name].load())
    if name not in _backends:
        raise BackendError(f"no backend is called {name!r}{_nearest(name, backend_names())}")
    return _backends[name]


def pass_names() -> list[str]:
    """Return the names of all passes, sorted."""
    return sorted({*_passes, *_entry_points("burnish.passes")})


def backend_names() -> list[str]:
    """Return the names of all backends, sorted."""
    return sorted({*_backends, *_entry_points("burnish.backends")})


@functools.cache
def _entry_points(group: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=group)}


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else f"; there are {', '.join(names)}"
