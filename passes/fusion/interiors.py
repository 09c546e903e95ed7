"""What lies between the input of a spelled-out operator and its result.

Not handled: patterns of several inputs; they name their nodes themselves.
"""

from __future__ import annotations

from torch import fx

from burnish.compiler.graphs import name_of
from burnish.passes.canonical.batch_norms import Refusal

__all__ = ["own_interior"]


def own_interior(node: fx.Node, source: fx.Node) -> list[fx.Node]:
    """Return what is computed between `source` and `node`, without both; `node` depends on it and constants alone.

    Raises:
        Refusal: something else reads a part of it, so that it would be computed all the same.
    """
    inner: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        for each in stack.pop().all_input_nodes:
            if each is not source and each.op == "call_function" and each not in inner:
                inner[each] = None
                stack.append(each)
    for each in inner:
        if any(user is not node and user not in inner for user in each.users):
            raise Refusal(f"%{name_of(each)} has {len(each.users)} users")
    return list(inner)
