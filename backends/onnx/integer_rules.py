"""Where pairs of quantize and dequantize must stand for each reader of ONNX files to use its integer kernels.

- ort: ONNX Runtime on x86 joins a Conv with its pairs only where the result has one too, of the same type; sums and
  products want pairs on both sides; uint8 with int8 weights is the fast combination (onnxruntime
  core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc). DequantizeLinear runs on one thread: a large silu
  takes two integer kernels in less time (1.31, `python -m benchmarks.kernels --filter silu`).
- openvino: what operators read; its graph compiler joins an activation and the quantization behind it with the layer.
  Its kernel for whole attentions multiplies queries and keys in integers where they are signed (2026.4).
  Pairs of what a roll gives, a Concat in the file, it would move before that, and not find again (2026.4).
- tensorrt: int8 with zero point 0; what layers read, not what they give; of a sum only the shortcut; operands of Concat
  share a scale; layers with fewer than 16 features stay float (TensorRT documentation, "Working with quantized types").
"""

from __future__ import annotations

import torch

from burnish.compiler.integers import IntegerRules

__all__ = ["INTEGER_RULES"]

INTEGER_RULES = {
    "ort": IntegerRules(again=True, large_silu=1 << 18),
    "standard": IntegerRules(again=True),
    "openvino": IntegerRules(results=False, attention=True, behind_rolls=True),
    "tensorrt": IntegerRules(
        activations=torch.int8,
        symmetric=True,
        results=False,
        skip_only=True,
        operators=frozenset({"add", "average-pool", "concat"}),
        shared=frozenset({"concat"}),
        smallest=16,
    ),
}
"""By dialect."""
