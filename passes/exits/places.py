"""Places for exits: some of the cut points, by number at equal cost, by name, or by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import fx

from burnish.compiler.cuts import Cut
from burnish.compiler.errors import OptionError
from burnish.compiler.graphs import name_of
from burnish.compiler.provenance import provenance_of

__all__ = ["by_layer", "by_name", "evenly"]

_LAYER = re.compile(r"(.*?)\.?(?<![^.])(\d+)(?:\.|$)")


def evenly(cuts: Sequence[Cut], count: int, flops: int) -> list[Cut]:
    """Return `count` cuts that leave parts of about equal cost.

    Args:
        cuts: all there are, in order.
        count: how many are wanted.
        flops: of the whole Program.

    Raises:
        OptionError: there are not so many.
    """
    if len(cuts) < count:
        raise OptionError(f"pass 'insert-exits': {count} exits are wanted, but there {_places(len(cuts))}")
    found: list[Cut] = []
    for index in range(count):
        # Enough have to be left for the exits that are still to come.
        first = cuts.index(found[-1]) + 1 if found else 0
        offered = cuts[first : len(cuts) - (count - index - 1)]
        wanted = flops * (index + 1) / (count + 1)
        found.append(min(offered, key=lambda cut: abs(cut.flops - wanted)))
    return found


def by_name(cuts: Sequence[Cut], patterns: Iterable[str]) -> list[Cut]:
    """Return for every pattern the last cut whose node, or whose module or a module around it, matches.

    Raises:
        OptionError: nothing matches.
    """
    found = []
    for pattern in patterns:
        matching = [cut for cut in cuts if any(fnmatchcase(name, pattern) for name in _names(cut.value))]
        if not matching:
            some = ", ".join(name_of(cut.value) for cut in cuts) or "none"
            raise OptionError(f"pass 'insert-exits': no cut point matches {pattern!r}: there are {some}")
        found.append(matching[-1])
    return sorted(dict.fromkeys(found), key=cuts.index)


def by_layer(cuts: Sequence[Cut], layers: Iterable[int]) -> list[Cut]:
    """Return for every number the last cut in that layer: of the list of modules that has most cuts in different ones.

    Raises:
        OptionError: there is no such layer, or no such list.
    """
    lists: dict[str, dict[int, Cut]] = {}
    for cut in cuts:
        for module in _names(cut.value):
            for match in _LAYER.finditer(module):
                lists.setdefault(module[: match.start(2)], {})[int(match.group(2))] = cut
    name, numbered = max(lists.items(), key=lambda item: len(item[1]), default=("", {}))
    found = []
    for layer in layers:
        if layer not in numbered:
            some = ", ".join(f"{name}{number}" for number in sorted(numbered)) or "none"
            raise OptionError(f"pass 'insert-exits': there is no cut point in layer {layer}: there are {some}")
        found.append(numbered[layer])
    return sorted(dict.fromkeys(found), key=cuts.index)


def _places(count: int) -> str:
    return f"are {count} places for them" if count != 1 else "is 1 place for them"


def _names(node: fx.Node) -> list[str]:
    """Return the name of a node, and of its modules with all that these are in."""
    provenance = provenance_of(node)
    paths = [origin.module for origin in provenance.origins if origin.module] if provenance else []
    around = [path[:end] for path in paths for end in _ends(path)]
    return list(dict.fromkeys([name_of(node), *around]))


def _ends(path: str) -> list[int]:
    return [index for index, letter in enumerate(path) if letter == "."] + [len(path)]
