"""FLOPs of the `burnish` operators: the same as of their reference decompositions, by formula."""

from __future__ import annotations

from burnish.compiler.cost_numbers import Number, Shape, product, total
from burnish.compiler.cost_rules import Call, Work, flop_rule

__all__: list[str] = []


@flop_rule("burnish.conv_act", "burnish.linear_act")
def _layer(call: Call) -> Work:
    """Count the products of the layer, then its bias, the residual and the activation."""
    out, weight = call.output(), call.shape("weight")
    places = call.shape("input") if call.arguments.get("transposed", False) else out
    each = call.given("bias") + call.given("residual") + (call.arguments["activation"] != "none")
    return Work(product((*places, *weight[1:])), each * product(out))


@flop_rule("burnish.quick_gelu")
def _quick_gelu(call: Call) -> Work:
    return Work(0, 3 * product(call.output()))


@flop_rule("burnish.multi_head_attention")
def _multi_head_attention(call: Call) -> Work:
    return _attention(call, call.shape("query"), call.shape("key")[1])


@flop_rule("burnish.self_attention")
def _self_attention(call: Call) -> Work:
    tokens, weight = call.shape("input"), call.shape("weight")
    projected = product((*tokens[:-1], weight[0]))
    attended = _attention(call, call.output(), tokens[1])
    other = total([projected if call.given("bias") else 0, attended.other])
    return Work(total([product((*tokens, weight[0])), attended.macs]), other)


@flop_rule("burnish.rotary_embedding")
def _rotary_embedding(call: Call) -> Work:
    # For each pair of features 4 products, a difference and a sum.
    return Work(0, 6 * product((*call.shape("input")[:-1], call.arguments["heads"], call.shape("cos")[-1])))


@flop_rule("burnish.skip_layer_norm")
def _skip_layer_norm(call: Call) -> Work:
    return Work(0, (5 + call.given("input_bias") + call.given("weight")) * product(call.output()))


@flop_rule("burnish.skip_rms_norm")
def _skip_rms_norm(call: Call) -> Work:
    return Work(0, (4 + call.given("input_bias") + call.given("weight")) * product(call.output()))


@flop_rule("burnish.embedding_layer_norm")
def _embedding_layer_norm(call: Call) -> Work:
    sums = len(call.arguments["tables"]) - 1 + call.given("added")
    return Work(0, (sums + 4 + call.given("weight")) * product(call.output()))


def _attention(call: Call, query: Shape, keys: Number) -> Work:
    """Return the work of attention of `query`, [B, S, heads * D], to this number of keys; see `cost_rules`."""
    batch, length, width = query
    scores = product((batch, call.arguments["heads"], length, keys))
    # Products with the keys, as wide as the query, and with the values, as wide as the result.
    macs = total([product((batch, length, keys, width)), product((batch, length, keys, call.output()[-1]))])
    masked, causal = call.given("mask"), bool(call.arguments["causal"])
    joining: Number = 0
    if masked and causal:
        # One mask for both: of booleans by "and", of numbers by filling what the complement of the causal one hides.
        mask = call.shape("mask")
        rows = (1,) * (2 - len(mask)) + mask
        joined = product((*rows[:-2], length, keys))
        is_boolean = not call.arguments["mask"].meta["val"].is_floating_point()
        joining = joined if is_boolean else total([joined, product((length, keys))])
    return Work(macs, total([(6 + (masked or causal)) * scores, joining]))
