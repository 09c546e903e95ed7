"""The graph as OpenVINO reads it: weights by their address, and spellings without which it would give wrong numbers.

Cases not handled: operators within branches of a conditional are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch

from burnish.compiler.errors import BackendError

__all__ = ["graph_for_openvino"]

# The name of the file, in OpenVINO's ONNX reader, for data at an address of this process: `offset` is the address.
_MEMORY = "*/_ORT_MEM_ADDR_/*"
# Of DFT, from this opset on.
_AXIS_IS_INPUT = 20


def graph_for_openvino(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """Return a copy of `model` for OpenVINO.

    That a file names an address itself, `load_model` has refused: it takes no data that lie in no file.

    Args:
        weights: the data of large initializers, which the copy refers to by address.

    Raises:
        BackendError: OpenVINO (2026.4) would give wrong results.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for each in found.graph.initializer:
        if each.name in weights:
            _refer(each, weights[each.name])
    constants = {each.name: each for each in found.graph.initializer if each.name not in weights}
    opset = max((each.version for each in found.opset_import if not each.domain), default=0)
    for node in found.graph.node:
        if node.op_type == "DFT" and not node.domain:
            if any(each.name == "onesided" and each.i for each in node.attribute):
                reason = f"its one-sided DFT has another shape (node {node.name!r})"
                raise BackendError(f"OpenVINO cannot load the graph: {reason}")
            if opset >= _AXIS_IS_INPUT:
                _name_axis(node, constants)
    if any(node.op_type == "Shape" for node in found.graph.node):
        _add_biases(found.graph)
    return found


def _refer(initializer: onnx.TensorProto, weight: torch.Tensor) -> None:
    del initializer.external_data[:]
    if not weight.numel():
        initializer.ClearField("data_location")
        return
    place = {"location": _MEMORY, "offset": str(weight.data_ptr()), "length": str(weight.nbytes)}
    for key, value in place.items():
        initializer.external_data.add(key=key, value=value)


def _add_biases(graph: onnx.GraphProto) -> None:
    """Add the bias of every Conv behind it, in a shape that is known here.

    OpenVINO finds that shape from the size of the result without bias. It takes sizes that the graph asks for of other
    values from there too, and then loses the bias where the result is quantized (2026.4).
    """
    dims = {each.name: len(each.dims) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in dims:
            dims[node.output[0]] = dims[node.input[0]]
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or len(node.input) < 3 or not node.input[2] or node.input[1] not in dims:
            continue
        result, bias = node.output[0], node.input[2]
        shape = np.array([1, -1, *[1] * (dims[node.input[1]] - 2)], dtype=np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(shape, f"{result}.bias.shape"))
        # The name that OpenVINO gives it.
        node.output[0] = f"{result}/WithoutBiases"
        del node.input[2]
        nodes.append(onnx.helper.make_node("Reshape", [bias, f"{result}.bias.shape"], [f"{result}.bias"]))
        nodes.append(onnx.helper.make_node("Add", [node.output[0], f"{result}.bias"], [result]))
    del graph.node[:]
    graph.node.extend(nodes)


def _name_axis(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
    """Name the axis as an attribute: OpenVINO does not read the input that opset 20 made of it, and takes 1."""
    axis = -2
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in constants:
            raise BackendError(f"OpenVINO cannot load the graph: a DFT's axis must be constant (node {node.name!r})")
        axis = int(onnx.numpy_helper.to_array(constants[node.input[2]]).item())
    # ONNX counts the dimension of real and imaginary parts too, OpenVINO does not.
    node.attribute.append(onnx.helper.make_attribute("axis", axis if axis >= 0 else axis + 1))
