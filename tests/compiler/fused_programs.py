"""One program for every operator of the `burnish` namespace and every shape of its arguments, with a batch B."""

from __future__ import annotations

from burnish.compiler.program import Program

_CONSTANTS = {
    "w": "f32[4, 3, 3, 3]", "b": "f32[4]", "wt": "f32[3, 2, 3, 3]", "w1": "f32[4, 2, 3]", "fc": "f32[8, 8]",
    "v": "f32[8]", "qkv": "f32[24, 8]", "qkv.bias": "f32[24]", "gqa": "f32[16, 8]", "cos": "f32[5, 2]",
    "words": "f32[50, 8]", "places": "f32[5, 8]", "mask": "b1[5, 5]",
}  # fmt: skip
_INPUTS = {
    "image": "f32[B, 3, 8, 8]", "same": "f32[B, 4, 6, 6]", "wide": "f32[B, 4, 9]", "h": "f32[B, 5, 8]",
    "k": "f32[B, T, 4]", "a": "f32[B, 1, 5, 5]", "ids": "i64[B, 5]", "flat": "f32[B, 8]",
}  # fmt: skip
_PLAIN = "stride=[1, 1], padding=[0, 0], dilation=[1, 1]"

CALLS: dict[str, str] = {
    "conv": f"burnish.conv_act(%image, @w, @b, {_PLAIN}, activation='relu')",
    "conv residual": f"burnish.conv_act(%image, @w, None, {_PLAIN}, residual=%same, activation='hardswish')",
    "conv sum": f"burnish.conv_act(%image, @w, @b, {_PLAIN}, residual=%same)",
    "conv transposed": "burnish.conv_act(%image, @wt, None, stride=[2, 2], padding=[1, 1], dilation=[1, 1],"
    " transposed=True, output_padding=[1, 1], activation='leaky_relu', parameters=[0.1])",
    "conv1d": "burnish.conv_act(%wide, @w1, @b, stride=[2], padding=[1], dilation=[1], groups=2, activation='clamp',"
    " parameters=[0.0, 6.0])",
    "linear": "burnish.linear_act(%h, @fc, @v, activation='gelu')",
    "linear residual": "burnish.linear_act(%h, @fc, residual=%h, activation='gelu_tanh')",
    "linear of a matrix": "burnish.linear_act(%flat, @fc, @v, residual=%flat)",
    "attention": "burnish.multi_head_attention(%h, %h, %h, heads=2, kv_heads=2, scale=0.5)",
    "attention masked": "burnish.multi_head_attention(%h, %h, %h, @mask, heads=2, kv_heads=2, scale=0.5, causal=True)",
    "attention biased": "burnish.multi_head_attention(%h, %h, %h, %a, heads=2, kv_heads=2, scale=0.5, causal=True)",
    "attention causal": "burnish.multi_head_attention(%h, %h, %h, heads=4, kv_heads=4, scale=0.5, causal=True)",
    "attention grouped": "burnish.multi_head_attention(%h, %k, %k, heads=2, kv_heads=1, scale=0.5)",
    "self attention": "burnish.self_attention(%h, @qkv, @qkv.bias, heads=2, kv_heads=2, scale=0.5)",
    "self attention grouped": "burnish.self_attention(%h, @gqa, heads=2, kv_heads=1, scale=0.5, causal=True)",
    "rotary": "burnish.rotary_embedding(%h, @cos, @cos, heads=2)",
    "rotary in part": "burnish.rotary_embedding(%h, @cos, @cos, heads=1)",
    "rotary interleaved": "burnish.rotary_embedding(%h, @cos, @cos, heads=1, interleaved=True)",
    "skip layer norm": "burnish.skip_layer_norm(%h, %h, @v, normalized_shape=[8], weight=@v, bias=@v)",
    "skip layer norm plain": "burnish.skip_layer_norm(%h, %h, None, normalized_shape=[8])",
    "skip rms norm": "burnish.skip_rms_norm(%h, %h, @v, normalized_shape=[8], weight=@v)",
    "skip rms norm plain": "burnish.skip_rms_norm(%h, %h, None, normalized_shape=[8])",
    "embeddings": "burnish.embedding_layer_norm([%ids, %ids], [@words, @words], @places, normalized_shape=[8],"
    " weight=@v, bias=@v)",
    "embedding": "burnish.embedding_layer_norm([%ids], [@words], None, normalized_shape=[8])",
    "quick gelu": "burnish.quick_gelu(%h, alpha=1.5)",
}
"""The calls by what is special to them."""


def program_of(name: str) -> Program:
    """Return the Program that makes one of `CALLS`."""
    call = CALLS[name].replace("'", '"')
    constants = "".join(f"constant @{each}: {kind}\n" for each, kind in _CONSTANTS.items() if _reads(call, f"@{each}"))
    inputs = ", ".join(f"%{each}: {kind}" for each, kind in _INPUTS.items() if _reads(call, f"%{each}"))
    body, results = f"  %out = {call}\n", "%out"
    if call.startswith("burnish.skip"):
        body, results = f"  %both = {call}\n  %one = getitem(%both, 0)\n  %two = getitem(%both, 1)\n", "%one, %two"
    return Program.parse(f"# burnish 1\n{constants}graph main({inputs}) {{\n{body}  return {results}\n}}\n")


def _reads(call: str, name: str) -> bool:
    return any(f"{name}{end}" in call for end in (",", "]", ")"))
