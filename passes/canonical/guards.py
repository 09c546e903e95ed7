"""Rules that drop what only checks: assertions, constraints on sizes, and the sizes that nothing else uses.

What export checked at capture stands in the signature and in the symbols' bounds, which stay.
"""

from __future__ import annotations

from torch import fx

from burnish.compiler.rewriter import Rewriter, rule

__all__ = ["RULES"]

_COMPARISONS = tuple(f"py.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"))
_ARITHMETIC = tuple(f"py.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg"))


@rule(
    "aten._assert_tensor_metadata",
    "aten._assert_async",
    "aten._assert_async.msg",
    "aten._assert_scalar",
    "aten.sym_constrain_range",
    "aten.sym_constrain_range_for_size",
)
def drop_assertion(node: fx.Node, rewriter: Rewriter) -> None:
    """Assertions have no result."""
    if node.users:
        rewriter.skip(node, "its result is used")
        return
    rewriter.erase(node)


@rule("aten.sym_size.int", "sym.not", "sym.max", "sym.min", "sym.ite", *_COMPARISONS, *_ARITHMETIC)
def drop_unused_size(node: fx.Node, rewriter: Rewriter) -> None:
    """Sizes and comparisons that only an assertion, or a view of another form, has used."""
    if not node.users:
        rewriter.erase(node)


RULES = (drop_assertion, drop_unused_size)
