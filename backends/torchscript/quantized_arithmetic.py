"""Quantize and dequantize operators as TorchScript methods: plain arithmetic, as their definitions in PyTorch have it.

They stand where no integer kernel takes a pair: int8 activations, narrow ranges, ranges by row or by group. The names
and the order of the parameters are those of the operators' schemas.

Not handled: the checks that the definitions make of shapes and dtypes, which capture has made.
"""

from __future__ import annotations

__all__ = ["ARITHMETIC"]

_LIMITS = "quant_min: int, quant_max: int, dtype: int"
_ROWS = f"input: Tensor, scales: Tensor, zero_points: Tensor, {_LIMITS}"
_TENSOR_LIMITS = "quant_min: Tensor, quant_max: Tensor, dtype: int"
_OUT = "out_dtype: Optional[int] = None"
_RANGE = "input: Tensor, quant_min: int, quant_max: int, eps: float, dtype: int"

_QUANTIZE = """\
  steps = torch.round(input.to(torch.float32) * (1.0 / {scale})) + {zero_point}
  return torch.clamp(steps, {low}, {high}).to(dtype)
"""
_DEQUANTIZE = """\
  kind = torch.float32 if out_dtype is None else out_dtype
  return (input.to(kind) - {zero_point}) * {scale}
"""
_NUMBERS = {"scale": "scale", "zero_point": "zero_point", "low": "quant_min", "high": "quant_max"}
_TENSORS = {**_NUMBERS, "scale": "float(scale)", "zero_point": "int(zero_point)"}
_ALL_TENSORS = {**_TENSORS, "low": "int(quant_min)", "high": "int(quant_max)"}

_BY_AXIS = """\
  shape = [1] * input.dim()
  shape[axis] = scales.size(0)
  steps = scales.view(shape)
"""
_EXTREMES = """\
  lowest, highest = torch.aminmax(input.to(torch.float32))
  low, high = min(float(lowest), 0.0), max(float(highest), 0.0)
"""
_TOKEN_EXTREMES = """\
  low = torch.clamp(torch.amin(input, [-1], True), max=0)
  high = torch.clamp(torch.amax(input, [-1], True), min=0)
  scale = torch.clamp((high - low) / 255.0, min=1.1920928955078125e-07)
  below, above = low / scale, high / scale
  point = torch.where(below + above > 1, -128 - below, 127 - above)
  return scale.to(torch.float64), torch.round(torch.clamp(point, -128, 127)).to(torch.int64)
"""

# Header and body, by operator.
_SOURCES: dict[str, tuple[str, str]] = {
    "quantize_per_tensor": (f"input: Tensor, scale: float, zero_point: int, {_LIMITS}", _QUANTIZE.format(**_NUMBERS)),
    "quantize_per_tensor.tensor": (
        f"input: Tensor, scale: Tensor, zero_point: Tensor, {_LIMITS}",
        _QUANTIZE.format(**_TENSORS),
    ),
    "quantize_per_tensor.tensor2": (
        f"input: Tensor, scale: Tensor, zero_point: Tensor, {_TENSOR_LIMITS}",
        _QUANTIZE.format(**_ALL_TENSORS),
    ),
    "dequantize_per_tensor": (
        f"input: Tensor, scale: float, zero_point: int, {_LIMITS}, {_OUT}",
        _DEQUANTIZE.format(**_NUMBERS),
    ),
    "dequantize_per_tensor.tensor": (
        f"input: Tensor, scale: Tensor, zero_point: Tensor, {_LIMITS}, {_OUT}",
        _DEQUANTIZE.format(**_TENSORS),
    ),
    "dequantize_per_tensor.tensor2": (
        f"input: Tensor, scale: Tensor, zero_point: Tensor, {_TENSOR_LIMITS}, {_OUT}",
        _DEQUANTIZE.format(**_TENSORS),
    ),
    "choose_qparams.tensor": (
        _RANGE,
        f"""\
{_EXTREMES}  scale = max((high - low) / float(quant_max - quant_min), eps)
  point = torch.clamp(quant_min - torch.round(torch.tensor([low / scale])), quant_min, quant_max)
  return torch.tensor([scale], dtype=torch.float64), point.to(torch.int64)
""",
    ),
    "choose_qparams_symmetric.tensor": (
        _RANGE,
        f"""\
{_EXTREMES}  scale = max(max(-low, high) / (float(quant_max - quant_min) / 2), eps)
  point = 128 if dtype == torch.uint8 else 0
  return torch.tensor([scale], dtype=torch.float64), torch.tensor([point])
""",
    ),
    "quantize_per_channel": (
        f"input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, {_LIMITS}",
        _BY_AXIS
        + _QUANTIZE.replace("steps =", "result =")
        .replace("(steps,", "(result,")
        .format(scale="steps", zero_point="zero_points.view(shape)", low="quant_min", high="quant_max"),
    ),
    "dequantize_per_channel": (
        f"input: Tensor, scales: Tensor, zero_points: Optional[Tensor], axis: int, {_LIMITS}, {_OUT}",
        f"""\
{_BY_AXIS}  result = input if zero_points is None else input - zero_points.view(shape)
  return (result * steps).to(torch.float32 if out_dtype is None else out_dtype)
""",
    ),
    "fake_quant_per_channel": (
        "input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int",
        f"""\
{_BY_AXIS}  steps, points = steps.to(torch.float32), zero_points.view(shape).to(torch.int32)
  return (torch.clamp(torch.round(input * (1.0 / steps)) + points, quant_min, quant_max) - points) * steps
""",
    ),
    "choose_qparams_per_token": (
        "input: Tensor, dtype: int",
        """\
  scales = input.abs().amax([-1], True)
  scales = scales.float() if scales.dtype == torch.float16 else scales
  scales = scales.clamp(min=1e-5).div(127)
  return scales, torch.zeros_like(scales)
""",
    ),
    "choose_qparams_per_token_asymmetric": ("input: Tensor, dtype: int", _TOKEN_EXTREMES),
    "_choose_qparams_per_token_asymmetric_impl": ("input: Tensor, dtype: int", _TOKEN_EXTREMES),
    "quantize_per_token": (
        _ROWS,
        "  return input.mul(1.0 / scales).add(zero_points).round().clamp(quant_min, quant_max).to(dtype)\n",
    ),
    "dequantize_per_token": (
        f"{_ROWS}, output_dtype: int",
        "  return ((input - zero_points) * scales).to(output_dtype)\n",
    ),
    "quantize_per_channel_group": (
        f"{_ROWS}, group_size: int",
        """\
  rows = input.reshape([scales.numel(), -1])
  rows = rows.mul(1.0 / scales.reshape([-1, 1])).add(zero_points.reshape([-1, 1]))
  return rows.round().clamp(quant_min, quant_max).to(dtype).reshape_as(input)
""",
    ),
    "dequantize_per_channel_group": (
        f"input: Tensor, scales: Tensor, zero_points: Optional[Tensor], {_LIMITS}, group_size: int, output_dtype: int",
        """\
  rows = input.reshape([scales.numel(), -1])
  if zero_points is not None:
    rows = rows.sub(zero_points.reshape([-1, 1]))
  return rows.mul(scales.reshape([-1, 1])).reshape_as(input).to(output_dtype)
""",
    ),
    "convert_element_type.no_fuse": ("input: Tensor, dtype: int", "  return input.to(dtype)\n"),
}


def _method(name: str) -> tuple[str, str]:
    parameters, body = _SOURCES[name]
    method = name.lstrip("_").replace(".", "_")
    return method, f"def {method}(self, {parameters}):\n{body}"


ARITHMETIC: dict[str, tuple[str, str]] = {f"quantized_decomposed::{name}": _method(name) for name in _SOURCES}
"""Name and source of the method, by operator."""
