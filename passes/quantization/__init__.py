"""Passes that make arithmetic integer: explicit pairs of quantize and dequantize, which backends turn into kernels."""

from burnish.passes.quantization.dynamic import QuantizeDynamic
from burnish.passes.quantization.static import Quantize

__all__ = ["Quantize", "QuantizeDynamic"]
