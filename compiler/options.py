"""Checks of the options of a backend: names and kinds, with messages that list what exists.

Cases not handled: relations between options; the backend checks those itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from burnish.compiler.errors import OptionError

__all__ = ["check_options"]


def check_options(backend: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of `backend`: those given, and the defaults of the rest.

    Args:
        backend: name of the backend, for messages.
        options: what the user gave.
        known: default value by name. A given value must be of the default's type; an integer may stand for a float.
            A default of None accepts any value, and an option may always be given its default.

    Raises:
        OptionError: an option is unknown, or its value is of another type.
    """
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"backend {backend!r} has no option {name!r}{hint} ({_offered(known)})")
        default = known[name]
        if default is None or value is default:
            continue
        kind = type(default)
        whole = kind is float and isinstance(value, int) and not isinstance(value, bool)
        # A bool is an int in Python, but `threads=True` is a mistake.
        if not whole and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
            raise OptionError(
                f"option {name!r} of backend {backend!r} must be of type {kind.__name__}, not {type(value).__name__}:"
                f" {value!r}"
            )
    return {**known, **options}


def _offered(known: Mapping[str, Any]) -> str:
    return f"there are {', '.join(known)}" if known else "it has none"
