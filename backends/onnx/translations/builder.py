"""Builder: makes ONNX nodes while torch's exporter translates an operator, any domain and without a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch.onnx._internal.exporter import _building, _tensors

__all__ = ["CONTRIB", "Builder"]

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes nodes in the graph that the exporter is building.

    Attributes:
        opset: version of the ONNX operator set.
        standard: no operators of ONNX Runtime's own.
        constants: the Program's constants by the names of their graph inputs.
    """

    opset: int
    standard: bool
    constants: Mapping[str, torch.Tensor]

    def __call__(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> Any:
        """Make a node with one result and return that; inputs that are None are left out."""
        return self.several(operator, *inputs, outputs=1, domain=domain, **attributes)[0]

    def several(
        self, operator: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[Any]:
        """Make a node with several results and return these."""
        recorder = onnxscript.evaluator.default()
        assert isinstance(recorder, _building.OpRecorder)
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        results = [_tensors.SymbolicTensor(recorder.opset) for _ in range(outputs)]
        named = ir.convenience.convert_attributes(
            {key: value for key, value in attributes.items() if value is not None}
        )
        recorder.nodes.append(ir.Node(domain, operator, given, named, outputs=results))
        return results

    def contrib(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> Any:
        """Make a node of one of ONNX Runtime's own operators."""
        return self(operator, *inputs, domain=CONTRIB, **attributes)

    def integers(self, *values: int) -> Any:
        """Return an int64 vector."""
        return self("Constant", value=ir.tensor(np.array(values, dtype=np.int64)))

    def number(self, value: float | int, dtype: ir.DataType) -> Any:
        """Return a number as a tensor without dimensions."""
        return self("Constant", value=ir.tensor(value, dtype=dtype))

    def filled(self, value: float, shape: Sequence[int], dtype: ir.DataType) -> Any:
        """Return a tensor of equal numbers."""
        return self("Constant", value=ir.tensor(np.full(tuple(shape), value, dtype=dtype.numpy()), dtype=dtype))

    def held(self, value: ir.Value) -> np.ndarray[Any, Any] | None:
        """Return what a constant holds, one of the Program's or of the translation's; None for other values."""
        constant = self.constants.get(str(value.name))
        if constant is not None:
            # numpy itself has no bfloat16.
            return TorchTensor(constant.detach()).numpy()
        node = value.producer()
        made = None if node is None or node.op_type != "Constant" else node.attributes.get("value")
        return None if made is None else made.as_tensor().numpy()

    def is_dequantized(self, value: ir.Value) -> bool:
        """Tell whether `value` comes from DequantizeLinear along a dimension."""
        node = value.producer()
        return node is not None and node.op_type == "DequantizeLinear" and "axis" in node.attributes

    def may_use_contrib(self, *values: ir.Value | None) -> bool:
        """Tell whether ONNX Runtime's own operators may be used on `values`: their CPU kernels are for float32."""
        return not self.standard and all(
            value is None or value.dtype in (ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64) for value in values
        )
