"""FLOPs by operator. A multiply-add counts as 2 FLOPs (1 MAC).

- matrix products, convolutions, recurrent layers, attention: multiply-adds, plus 1 FLOP per bias addition;
- elementwise operators: 1 FLOP per output element, transcendental functions too;
- reductions, scans and sorting: 1 FLOP per input element; pooling: 1 per window element (adaptive: per input element);
- normalization: 2 per element for batch norm at inference, else 4 (RMS norm 3), plus 1 for the affine part;
- softmax: 5 per element (maximum, subtract, exp, sum, divide); interpolation: 2 per source element that is blended;
- data movement, casts and factories: 0.

Attention counts the full score matrix, causal or not. An operator without a rule counts 1 per output element if torch
tags it pointwise, 1 per input element if torch tags it a reduction, and is unknown otherwise.

Not handled: sparse and quantized storage (they count as dense), convolutions by other algorithms (Winograd, FFT).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

from burnish.compiler.cost_memory import tensors_of
from burnish.compiler.cost_numbers import Number, Shape, number, product, shape_of, total
from burnish.compiler.operators import arguments, operator_name

__all__ = ["Call", "Rule", "Work", "flop_rule", "work_of"]


class Work(NamedTuple):
    """What a node computes: multiply-adds, and FLOPs beside those."""

    macs: Number = 0
    other: Number = 0

    @property
    def flops(self) -> Number:
        """Return all floating-point operations."""
        return total([2 * self.macs, self.other])


class Call:
    """An operator node as rules see it: arguments by schema name, and shapes."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.arguments = arguments(node)

    def given(self, name: str) -> bool:
        """Tell whether an optional tensor is given."""
        return self.arguments.get(name) is not None

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor argument; () for a number."""
        return _shape(self.arguments[name])

    def shapes(self, name: str) -> list[Shape]:
        """Return the shapes of a list of tensors."""
        return [_shape(each) for each in self.arguments[name]]

    def first(self) -> Shape:
        """Return the shape of the first tensor argument."""
        return next((_shape(each) for each in self.node.all_input_nodes if _has_tensor(each)), ())

    def output(self) -> Shape:
        """Return the shape of the result, of the first one where there are several."""
        return next((shape_of(tensor) for tensor in tensors_of(self.node.meta.get("val"))), ())


Rule: TypeAlias = Callable[[Call], Work]
_RULES: dict[str, Rule] = {}


def flop_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name: `aten.conv2d` covers every overload, `aten.conv2d.padding` that one.

    Packages that bring operators of their own use it too; a later rule for the same name replaces the earlier one.
    """

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def work_of(node: fx.Node) -> Work | None:
    """Return what an operator node computes, or None when no rule knows it."""
    target: Any = node.target
    if not isinstance(target, OpOverload):
        # Python's operators on sizes, and getitem.
        return None if isinstance(target, torch._ops.HigherOrderOperator) else Work()
    name = operator_name(target)
    rule = _RULES.get(name) or _RULES.get(".".join(name.split(".")[:2]))
    if rule is not None:
        return rule(Call(node))
    if not _has_tensor(node):
        return Work()
    if torch.Tag.pointwise in target.tags:
        return _pointwise(Call(node))
    if torch.Tag.reduction in target.tags:
        return _per_input(Call(node))
    return None


def _shape(value: Any) -> Shape:
    found = value.meta.get("val") if isinstance(value, fx.Node) else value
    return shape_of(found) if isinstance(found, torch.Tensor) else ()


def _has_tensor(node: fx.Node) -> bool:
    return next(tensors_of(node.meta.get("val")), None) is not None


def _names(text: str) -> list[str]:
    return [f"aten.{name}" for name in text.split()]


@flop_rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def _convolution(call: Call) -> Work:
    out, weight = call.output(), call.shape("weight")
    return Work(product((*out, *weight[1:])), product(out) if call.given("bias") else 0)


@flop_rule(*_names("conv_transpose1d conv_transpose2d conv_transpose3d"))
def _transposed_convolution(call: Call) -> Work:
    weight = call.shape("weight")
    return Work(product((*call.shape("input"), *weight[1:])), product(call.output()) if call.given("bias") else 0)


@flop_rule(*_names("convolution _convolution"))
def _any_convolution(call: Call) -> Work:
    return _transposed_convolution(call) if call.arguments["transposed"] else _convolution(call)


@flop_rule("aten.linear")
def _linear(call: Call) -> Work:
    out = call.output()
    return Work(product((*out, call.shape("weight")[-1])), product(out) if call.given("bias") else 0)


@flop_rule(*_names("matmul mm bmm mv dot vdot inner"))
def _matmul(call: Call) -> Work:
    return Work(product((*call.output(), call.first()[-1])))


@flop_rule(*_names("addmm baddbmm addmv addbmm"))
def _matmul_plus(call: Call) -> Work:
    factor = next(name for name in ("mat1", "batch1", "mat") if name in call.arguments)
    left, out = call.shape(factor), call.output()
    depth = (left[0], left[-1]) if operator_name(call.node.target) == "aten.addbmm" else left[-1:]
    return Work(product((*out, *depth)), product(out))


@flop_rule("aten.bilinear")
def _bilinear(call: Call) -> Work:
    out, (_, left, right) = call.output(), call.shape("weight")
    macs = total([product((*out, left, right)), product((*out, right))])
    return Work(macs, product(out) if call.given("bias") else 0)


@flop_rule("aten.einsum")
def _einsum(call: Call) -> Work:
    """Contract the operands from left to right, as eager PyTorch does without opt_einsum."""
    shapes = call.shapes("tensors")
    left, arrow, result = str(call.arguments["equation"]).replace(" ", "").partition("->")
    operands = [_labels(text, len(shape)) for text, shape in zip(left.split(","), shapes, strict=True)]
    sizes: dict[str, Number] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    everything = [label for labels in operands for label in labels]
    if arrow:
        wanted = set(_labels(result, len(call.output())))
    else:
        wanted = {label for label in everything if everything.count(label) == 1 or label.isdigit()}
    current, macs = set(operands[0]), []
    for index, labels in enumerate(operands[1:], 1):
        macs.append(product(tuple(sizes[label] for label in sorted(current | set(labels)))))
        later = wanted.union(*operands[index + 1 :])
        current = (current | set(labels)) & later
    if macs:
        return Work(total(macs))
    return Work(0, product(shapes[0]) if set(operands[0]) - wanted else 0)


def _labels(text: str, rank: int) -> list[str]:
    """Return one label per dimension; those of an ellipsis are digits, counted from the right."""
    before, dots, after = text.partition("...")
    hidden = range(rank - len(before) - len(after) - 1, -1, -1) if dots else ()
    return [*before, *map(str, hidden), *after]


@flop_rule("aten.scaled_dot_product_attention")
def _attention(call: Call) -> Work:
    query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
    scores = (*call.output()[:-2], query[-2], key[-2])
    each = product(scores)
    macs = total([product((*scores, query[-1])), product((*scores, value[-1]))])
    # Scaling and softmax, and the addition of the mask.
    return Work(macs, (6 + (call.given("attn_mask") or bool(call.arguments["is_causal"]))) * each)


@flop_rule(*_names("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"))
def _recurrent(call: Call) -> Work:
    """Every token meets every weight of every layer and direction once."""
    given = call.arguments
    listed = call.shapes("params") if "params" in given else []
    listed += [call.shape(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call.given(name)]
    steps = call.first()[:-1]
    macs = total(product((*steps, *shape)) for shape in listed if len(shape) == 2)
    biases = total(product((*steps, *shape)) for shape in listed if len(shape) == 1)
    # For each row of the gates an addition and an activation, and for each hidden unit 5 for the new state.
    kind = operator_name(call.node.target).split(".")[1].removesuffix("_cell")
    gates = {"lstm": 4, "gru": 3}.get(kind, 1)
    blocks = given.get("num_layers", 1) * (2 if given.get("bidirectional") else 1)
    rows = total(shape[0] for shape in listed[:: len(listed) // blocks])
    state = 5 * (rows // gates) if gates > 1 else 0
    return Work(macs, total([biases, product((*steps, 2 * rows + state))]))


@flop_rule("aten.batch_norm", *_names("_native_batch_norm_legit_no_training cudnn_batch_norm"))
def _batch_norm(call: Call) -> Work:
    training = bool(call.arguments.get("training", False))
    return Work(0, (2 if not training else 4 + call.given("weight")) * product(call.shape("input")))


@flop_rule(*_names("native_batch_norm _native_batch_norm_legit layer_norm native_layer_norm group_norm"),
           *_names("native_group_norm instance_norm"))  # fmt: skip
def _norm(call: Call) -> Work:
    return Work(0, (4 + call.given("weight")) * product(call.first()))


@flop_rule(*_names("rms_norm _fused_rms_norm"))
def _rms_norm(call: Call) -> Work:
    return Work(0, (3 + call.given("weight")) * product(call.first()))


@flop_rule(*_names("softmax _softmax log_softmax _log_softmax _safe_softmax special_softmax special_log_softmax"))
def _softmax(call: Call) -> Work:
    return Work(0, 5 * product(call.output()))


@flop_rule(*_names("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
           *_names("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"))  # fmt: skip
def _pool(call: Call) -> Work:
    window = tuple(number(size) for size in _sizes(call.arguments["kernel_size"]))
    rank = int(operator_name(call.node.target).split("_pool")[1][0])
    return Work(0, product((*call.output(), *(window if len(window) == rank else window * rank))))


def _sizes(value: Any) -> list[Any]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [each.meta["val"] if isinstance(each, fx.Node) else each for each in items]


@flop_rule(
    *_names("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"),
    *_names("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    *_names("max.dim min.dim median mode cumsum cumprod cummax cummin logcumsumexp topk sort argsort kthvalue unique"),
    *_names("_unique2 norm linalg_vector_norm frobenius_norm count_nonzero bincount std_mean var_mean argmax argmin"),
    *_names("normalize nanmean nansum trace"),
)
def _per_input(call: Call) -> Work:
    return Work(0, product(call.first()))


@flop_rule(
    *_names(
        "hardswish prelu _prelu_kernel rsub multiply subtract divide floor_divide glu log_sigmoid absolute greater"
    ),
    *_names("less greater_equal less_equal not_equal arctan2 negative pairwise_distance outer ger addr cross one_hot"),
    *_names("__and__ __or__ __xor__"),
    *(f"quantized_decomposed.quantize_per_{what}" for what in ("tensor", "channel", "token", "channel_group")),
    *(f"quantized_decomposed.dequantize_per_{what}" for what in ("tensor", "channel", "token", "channel_group")),
)
def _pointwise(call: Call) -> Work:
    return Work(0, product(call.output()))


@flop_rule(
    *_names("upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d"),
    *_names("upsample_bicubic2d _upsample_bicubic2d_aa grid_sampler grid_sampler_2d grid_sampler_3d"),
)
def _interpolate(call: Call) -> Work:
    out = call.output()
    taps = 4 if "bicubic" in operator_name(call.node.target) else 2
    return Work(0, 2 * taps ** (len(out) - 2) * product(out))


@flop_rule(
    *_names("cat concat concatenate stack hstack vstack clone copy copy_ pad constant_pad_nd reflection_pad1d"),
    *_names("reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d repeat tile roll"),
    *_names("flip rot90 repeat_interleave embedding index index_select gather take take_along_dim index_put scatter"),
    *_names("slice_scatter select_scatter diagonal_scatter masked_select nonzero nonzero_numpy tril triu tril_indices"),
    *_names(
        "triu_indices pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col upsample_nearest1d"
    ),
    *_names("upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d to _to_copy type_as lift_fresh_copy"),
    *_names(
        "zeros ones full empty rand randn randint arange linspace eye scalar_tensor zeros_like ones_like full_like"
    ),
    *_names("empty_like rand_like randn_like new_zeros new_ones new_full new_empty fill empty_strided tensor meshgrid"),
    *_names("broadcast_tensors unsafe_split unsafe_chunk split_with_sizes_copy unfold_copy block_diag diag diag_embed"),
    *_names("dropout feature_dropout alpha_dropout bernoulli multinomial normal item _local_scalar_dense"),
    *_names("_assert_async _assert_scalar _assert_tensor_metadata sym_size sym_numel searchsorted bucketize"),
    *_names("reshape reshape_as flatten contiguous _unsafe_view masked_scatter atleast_1d atleast_2d atleast_3d"),
    *_names("resolve_conj resolve_neg"),
)
def _movement(call: Call) -> Work:
    return Work()
