"""What an operator is to mixed precision: one that gains by half precision, one that may be in either, or an island.

low: layers and products of matrices, which have kernels of their own; they accumulate in float32.
free: element-wise operators, selections and rearrangements: in half precision or float32, whichever saves casts.
shape: the free operators that give elements of what they read, and perhaps a number.
like: reads of a tensor its sizes alone.
island: must stay float32. Which operators these are follows PyTorch's list for autocast (the page "Automatic Mixed
Precision package", ops that autocast to float32).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.operators import arguments, is_random, operator_name

__all__ = ["Kind", "bounds", "is_cast", "island_reason", "kind_of", "literals", "mask_of"]

Kind = Literal["low", "free", "shape", "like", "island"]

_LOW = (
    "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "convolution", "einsum", "embedding", "linear", "matmul", "mm",
    "scaled_dot_product_attention",
)  # fmt: skip
_LOW_FUSED = ("conv_act", "linear_act", "multi_head_attention", "self_attention")
_SHAPE = (
    "alias", "broadcast_to", "cat", "channel_shuffle", "chunk", "clone", "constant_pad_nd", "contiguous", "detach",
    "diagonal", "dropout", "expand", "expand_as", "feature_dropout", "flatten", "flip", "gather", "index",
    "index_copy", "index_select", "masked_fill", "movedim", "narrow", "pad", "permute", "pixel_shuffle",
    "pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "roll", "select", "select_scatter", "slice",
    "slice_scatter", "split", "split_with_sizes", "squeeze", "stack", "t", "tile", "to", "transpose", "tril", "triu",
    "unbind", "unflatten", "unfold", "unsqueeze", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "view", "view_as", "where",
)  # fmt: skip
_FREE = (
    "abs", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "add", "addcmul", "amax", "amin",
    "argmax", "argmin", "argsort", "avg_pool1d", "avg_pool2d", "avg_pool3d", "celu", "clamp", "clamp_max",
    "clamp_min", "div", "elu", "eq", "erf", "fill", "ge", "gelu", "glu", "gt", "hardsigmoid", "hardswish", "hardtanh",
    "index_put", "isfinite", "isinf", "isnan", "le", "leaky_relu", "lerp", "logical_and", "logical_not", "logical_or",
    "lt", "max", "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d", "maximum", "min", "minimum",
    "mish", "mul", "ne", "neg", "nonzero", "prelu", "relu", "relu6", "rsub", "selu", "sigmoid", "sign", "silu", "sort",
    "sub", "tanh", "threshold", "topk", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d",
    "upsample_trilinear3d",
)  # fmt: skip
_FREE_FUSED = ("quick_gelu", "rotary_embedding")
_LIKE = (
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like",
)  # fmt: skip
_KINDS: dict[str, Kind] = {
    **{f"aten.{name}": "low" for name in _LOW},
    **{f"burnish.{name}": "low" for name in _LOW_FUSED},
    **{f"aten.{name}": "shape" for name in _SHAPE},
    **{f"aten.{name}": "free" for name in _FREE},
    **{f"burnish.{name}": "free" for name in _FREE_FUSED},
    **{f"aten.{name}": "like" for name in _LIKE},
}
_NORM, _REDUCTION = "norms stay in float32", "reductions stay in float32"
_SOFTMAX, _FUNCTION = "softmax stays in float32", "it magnifies what rounding leaves"
_REASONS = {
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "logsumexp"), _SOFTMAX),
    **dict.fromkeys(
        ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm", "local_response_norm",
         "native_layer_norm", "native_group_norm", "skip_layer_norm", "skip_rms_norm", "embedding_layer_norm"),
        _NORM,
    ),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "cumprod", "cumsum", "frobenius_norm",
         "index_add", "linalg_vector_norm", "mean", "norm", "prod", "scatter_add", "scatter_reduce", "std", "std_mean",
         "sum", "var", "var_mean"),
        _REDUCTION,
    ),
    **dict.fromkeys(
        ("acos", "asin", "ceil", "cos", "cosh", "erfinv", "exp", "exp2", "expm1", "floor", "fmod", "grid_sampler",
         "log", "log10", "log1p", "log2", "log_sigmoid", "pow", "reciprocal", "remainder", "round", "rsqrt", "sin",
         "sinh", "softplus", "sqrt", "tan", "trunc", "cdist", "cosine_similarity"),
        _FUNCTION,
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "errors of a recurrent layer add up over its steps"),
    "copy_": "it updates a buffer, which keeps its type",
}  # fmt: skip
_COMPARISONS = frozenset(f"aten.{name}" for name in ("eq", "ge", "gt", "le", "lt", "ne"))
_AVERAGES = frozenset(f"aten.avg_pool{rank}d" for rank in (1, 2, 3))
# What an average may add up, and still be none of the reductions over large dimensions.
_WINDOW = 64
# The result is bounded whatever is read.
_BOUNDED = frozenset(
    f"aten.{name}" for name in ("erf", "hardsigmoid", "hardtanh", "relu6", "sigmoid", "sign", "tanh", *_COMPARISONS)
)
_MASKS = {"aten.scaled_dot_product_attention": "attn_mask"} | {
    f"burnish.{name}": "mask" for name in ("multi_head_attention", "self_attention")
}
_NUMBERS = ("number", "Scalar", "float", "Tensor")


def kind_of(node: fx.Node) -> Kind:
    """Return the kind of an operator that reads or gives float32 tensors."""
    name = _base_name(node.target)
    kind = _KINDS.get(name, "island")
    if name in _AVERAGES and _window(arguments(node)["kernel_size"], node) > _WINDOW:
        return "island"
    if name == "aten.index_put" and arguments(node)["accumulate"]:
        return "island"
    return "island" if is_random(node) else kind


def island_reason(node: fx.Node) -> str:
    """Return why an operator whose kind is island stays in float32."""
    name = _base_name(node.target)
    if name.startswith("quantized_decomposed."):
        return "the scales of integers are float32"
    if name in _AVERAGES or name == "aten.index_put":
        return _REDUCTION
    return _REASONS.get(name.partition(".")[2], "the pass has no rule for it")


def mask_of(node: fx.Node) -> Any:
    """Return what an attention adds to its scores; None for every other operator."""
    slot = _MASKS.get(_base_name(node.target))
    return arguments(node)[slot] if slot is not None else None


def is_cast(node: fx.Node) -> bool:
    """Tell whether `node` is a cast, in canonical form."""
    return node.target is torch.ops.aten.to.dtype


def bounds(node: fx.Node) -> bool:
    """Tell whether the result of `node` is small whatever it reads."""
    if _base_name(node.target) == "aten.clamp":
        given = arguments(node)
        return given["min"] is not None and given["max"] is not None
    return _base_name(node.target) in _BOUNDED


def literals(node: fx.Node) -> Iterator[tuple[float, bool]]:
    """Yield the numbers that `node` computes with, and of each whether it is compared with."""
    compared = _base_name(node.target) in _COMPARISONS
    given = arguments(node)
    for name in _numeric(node.target):
        value = given.get(name)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                yield float(each), compared


@functools.cache
def _base_name(target: Any) -> str:
    """Return an operator's name without its overload."""
    return ".".join(operator_name(target).split(".")[:2])


@functools.cache
def _numeric(target: Any) -> tuple[str, ...]:
    """Return the names of the arguments that are numbers to compute with, not sizes or dimensions."""
    if not isinstance(target, OpOverload):
        return ()
    return tuple(each.name for each in target._schema.arguments if any(kind in str(each.type) for kind in _NUMBERS))


def _window(sizes: Any, node: fx.Node) -> float:
    given = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
    spatial = int(_base_name(node.target)[-2])
    given = given * spatial if len(given) == 1 else given
    total = 1.0
    for each in given:
        total *= each if isinstance(each, int) else float("inf")
    return total
