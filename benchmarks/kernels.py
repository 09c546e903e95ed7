"""Which of ONNX Runtime's CPU kernels is the fastest for a pattern: what burnish's ONNX lowering chooses by.

python -m benchmarks.kernels [--filter norm] [--blocks 9]

Each candidate is a chain of 12 equal layers, fp32, 2 threads, and they take turns. Printed: time per layer, and the
ratio to the first candidate of the group with half the distance between its quartiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.timing import interleave

THREADS = 2
LAYERS = 12
_OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]


@dataclass
class Chain:
    """Writes the nodes of a chain of layers over hidden states [batch, tokens, width]."""

    width: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    result_type: int = TensorProto.FLOAT

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, own: bool = False, **attributes: Any) -> Any:
        """Add a node; return its result, or the list of them."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        domain = "com.microsoft" if own else ""
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int) -> str:
        """Add small random numbers."""
        values = np.random.default_rng(len(self.constants)).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        return self._constant(values)

    def number(self, value: float) -> str:
        """Add a float32 number."""
        return self._constant(np.array(value, dtype=np.float32))

    def zero_point(self, value: int) -> str:
        """Add a uint8 number."""
        return self._constant(np.array(value, dtype=np.uint8))

    def integers(self, *values: int) -> str:
        """Add an int64 vector."""
        return self._constant(np.array(values, dtype=np.int64))

    def _constant(self, values: np.ndarray[Any, Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def session(self, result: str) -> ort.InferenceSession:
        """Load the chain that ends in `result`."""
        shape = ("batch", "tokens", self.width)
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        made = helper.make_tensor_value_info(result, self.result_type, shape)
        graph = helper.make_graph(self.nodes, "chain", [given], [made], self.constants)
        model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        return ort.InferenceSession(model.SerializeToString(), options)


Layer = Callable[[Chain, str], str]
"""Adds one layer after the hidden states of the given name."""


def skip_norm(kind: str, *, rms: bool) -> Layer:
    """A sum and its norm."""

    def layer(chain: Chain, x: str) -> str:
        scales = [chain.weight(chain.width) for _ in range(1 if rms else 2)]
        if kind == "skip":
            operator = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
            return str(chain(operator, x, x, *scales, outputs=4, own=True, epsilon=1e-5)[0])
        total = chain(kind, x, x)
        return str(chain("SimplifiedLayerNormalization" if rms else "LayerNormalization", total, *scales, epsilon=1e-5))

    return layer


def feed_forward(kind: str) -> Layer:
    """A projection to four times the width, gelu, and back."""

    def layer(chain: Chain, x: str) -> str:
        hidden = chain("MatMul", x, chain.weight(chain.width, 4 * chain.width))
        bias = chain.weight(4 * chain.width)
        if kind == "BiasGelu":
            hidden = chain("BiasGelu", hidden, bias, own=True)
        else:
            # ONNX Runtime joins Add and Gelu into BiasGelu; not so Sum and Gelu.
            hidden = chain("Gelu", chain(kind, hidden, bias))
        return str(chain("MatMul", hidden, chain.weight(4 * chain.width, chain.width)))

    return layer


def attention(kind: str, heads: int) -> Layer:
    """Self-attention over one projection of queries, keys and values."""

    def layer(chain: Chain, x: str) -> str:
        width = chain.width
        weight, bias = chain.weight(width, 3 * width), chain.weight(3 * width)
        if kind == "Attention":
            return str(chain("Attention", x, weight, bias, own=True, num_heads=heads))
        projected = chain("Add", chain("MatMul", x, weight), bias)
        parts = chain("Split", projected, outputs=3, axis=-1, num_outputs=3)
        if kind == "MultiHeadAttention":
            return str(chain("MultiHeadAttention", *parts, own=True, num_heads=heads))
        split = chain.integers(0, 0, heads, width // heads)
        query, key, value = (chain("Reshape", each, split) for each in parts)
        query, value = (chain("Transpose", each, perm=[0, 2, 1, 3]) for each in (query, value))
        key = chain("Transpose", key, perm=[0, 2, 3, 1])
        scores = chain("Mul", chain("MatMul", query, key), chain.number((width // heads) ** -0.5))
        mixed = chain("MatMul", chain("Softmax", scores, axis=-1), value)
        return str(chain("Reshape", chain("Transpose", mixed, perm=[0, 2, 1, 3]), chain.integers(0, 0, width)))

    return layer


def channel_factor(kind: str, tokens: int) -> Layer:
    """A quantized product with one factor for each sample and channel, channels last."""

    def layer(chain: Chain, x: str) -> str:
        chain.result_type = TensorProto.UINT8
        numbers = chain.number(0.05), chain.zero_point(0)
        if x == "x":
            x = chain("QuantizeLinear", x, *numbers)
        factor = chain("Slice", x, *(chain.integers(each) for each in (0, 1, 1)))
        if kind == "Tile":
            factor = chain("Tile", factor, chain.integers(1, tokens, 1))
        return str(chain("QLinearMul", x, *numbers, factor, *numbers, *numbers, own=True))

    return layer


def quantized_silu(kind: str) -> Layer:
    """Silu from uint8 to uint8."""

    def layer(chain: Chain, x: str) -> str:
        chain.result_type = TensorProto.UINT8
        numbers, gates = (chain.number(0.05), chain.zero_point(100)), (chain.number(1 / 256), chain.zero_point(0))
        if x == "x":
            x = chain("QuantizeLinear", x, *numbers)
        if kind == "integers":
            gate = chain("QLinearSigmoid", x, *numbers, *gates, own=True)
            return str(chain("QLinearMul", x, *numbers, gate, *gates, *numbers, own=True))
        y = chain("QuickGelu", chain("DequantizeLinear", x, *numbers), own=True, alpha=1.0)
        return str(chain("QuantizeLinear", y, *numbers))

    return layer


@dataclass(frozen=True)
class Group:
    """Candidates for one pattern at one size."""

    name: str
    batch: int
    tokens: int
    width: int
    layers: dict[str, Layer]


def groups() -> Iterator[Group]:
    """Yield every pattern at every size."""
    for batch, tokens, width in ((1, 16, 384), (1, 128, 768), (8, 128, 768)):
        for name, rms in (("layer norm of a sum", False), ("rms norm of a sum", True)):
            yield Group(name, batch, tokens, width, {kind: skip_norm(kind, rms=rms) for kind in ("skip", "Add", "Sum")})
    for batch, tokens in ((1, 128), (8, 128)):
        yield Group("gelu", batch, tokens, 768, {kind: feed_forward(kind) for kind in ("BiasGelu", "Add", "Sum")})
    kinds = ("spelled out", "Attention", "MultiHeadAttention")
    for batch, tokens in ((1, 16), (1, 128), (8, 128), (1, 384), (1, 512), (1, 768), (1, 1500)):
        yield Group("attention", batch, tokens, 384, {kind: attention(kind, 6) for kind in kinds})
    for batch, tokens, width in ((1, 12544, 32), (1, 784, 240), (1, 49, 1152), (8, 784, 240)):
        made = {kind: channel_factor(kind, tokens) for kind in ("broadcast", "Tile")}
        yield Group("factor for each channel", batch, tokens, width, made)
    for batch, tokens, width in ((1, 12544, 96), (1, 784, 240), (1, 49, 1152), (8, 12544, 96), (8, 784, 240)):
        kinds = ("integers", "floats")
        yield Group("silu of integers", batch, tokens, width, {kind: quantized_silu(kind) for kind in kinds})


def measure(group: Group, blocks: int) -> None:
    """Time the candidates of a group and print them."""
    calls = {}
    x = np.random.default_rng(0).standard_normal((group.batch, group.tokens, group.width), dtype=np.float32)
    for name, layer in group.layers.items():
        chain, hidden = Chain(group.width), "x"
        for _ in range(LAYERS):
            hidden = layer(chain, hidden)
        session = chain.session(hidden)
        calls[name] = lambda session=session: session.run(None, {"x": x})
    print(f"{group.name}, batch {group.batch}, {group.tokens} tokens, width {group.width}")
    for name, found in interleave(calls, blocks=blocks).items():
        print(f"    {name:20}{found.median / LAYERS * 1e6:9.0f} us   {found.ratio:.3f} +- {found.spread:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only patterns whose name contains this")
    parser.add_argument("--blocks", type=int, default=9)
    chosen = parser.parse_args()
    for group in groups():
        if chosen.filter in group.name:
            measure(group, chosen.blocks)


if __name__ == "__main__":
    main()
