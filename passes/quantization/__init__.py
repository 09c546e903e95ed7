"""Passes that make arithmetic integer: explicit pairs of quantize and dequantize, which backends turn into kernels."""

from burnish.passes.quantization.dynamic import QuantizeDynamic
from burnish.passes.quantization.equalize import Equalize
from burnish.passes.quantization.smooth_quant import SmoothQuant
from burnish.passes.quantization.static import Quantize

__all__ = ["Equalize", "Quantize", "QuantizeDynamic", "SmoothQuant"]
