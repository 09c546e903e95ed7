"""Passes that make arithmetic integer: explicit pairs of quantize and dequantize, which backends turn into kernels."""

from burnish.passes.quantization.dynamic import QuantizeDynamic

__all__ = ["QuantizeDynamic"]
