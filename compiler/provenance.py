"""Where a node came from: module path, source line, and the pass and rule that made it.

Provenance is kept in `node.meta["provenance"]`. It is never semantics: two Programs that differ only here
are structurally equal. A node that replaces several others keeps the union of their origins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

__all__ = ["Origin", "Provenance", "merged", "module_of", "provenance_of", "set_provenance"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)(?:\n\s*(.*))?')


@dataclass(frozen=True, order=True, slots=True)
class Origin:
    """One place in the user's model.

    Attributes:
        module: dotted path of the submodule, "" for the root.
        kind: class name of that submodule, "" when unknown.
        file: source file, "" when unknown.
        line: 1-based source line, 0 when unknown.
        code: text of that line.
    """

    module: str
    kind: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "unknown source"
        return f"{self.module or '<root>'} ({place})"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origins of a node (sorted, without repetition) and who made it: "capture" or "pass:rule"."""

    origins: tuple[Origin, ...]
    made_by: str


def provenance_of(node: fx.Node) -> Provenance | None:
    """Return the provenance of `node`, or None when it has none (which the verifier refuses)."""
    found = node.meta.get("provenance")
    return found if isinstance(found, Provenance) else None


def module_of(node: fx.Node) -> str:
    """Return the module paths that `node` came from, joined by commas; "" for the root."""
    provenance = provenance_of(node)
    paths = dict.fromkeys(origin.module for origin in provenance.origins) if provenance is not None else {}
    return ", ".join(path for path in paths if path)


def set_provenance(node: fx.Node, provenance: Provenance) -> None:
    """Record where `node` came from."""
    node.meta["provenance"] = provenance


def merged(nodes: Iterable[fx.Node], made_by: str) -> Provenance:
    """Return the union of the origins of `nodes`, made by `made_by`."""
    origins: set[Origin] = set()
    for node in nodes:
        known = provenance_of(node)
        if known is not None:
            origins.update(known.origins)
    return Provenance(tuple(sorted(origins)), made_by)


def from_export(node: fx.Node) -> Provenance:
    """Read the module path and source line that `torch.export` left on `node`."""
    module, kind = "", ""
    stack = node.meta.get("nn_module_stack") or {}
    for path, module_type in stack.values():
        if path != "_empty_nn_module_stack_from_metadata_hook":
            module, kind = str(path), str(module_type).rsplit(".", 1)[-1]
    file, line, code = "", 0, ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    if frames:
        # The innermost frame outside torch is the line that the user wrote.
        own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
        file, number, _, code = own[-1]
        line = int(number)
    return Provenance((Origin(module, kind, file, line, code.strip()),), "capture")
