"""What ONNX Runtime and OpenVINO lack, asked of those that are installed: node by node, each kind of node once.

Each node is given to the runtime as a graph of its own, with the element types, ranks and small constants that it has
where it stands. The tables are the runtimes' own: no copy of them can be out of date.

Not handled: nodes of which an element type is unknown, and nodes with branches of their own (their insides are asked).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from burnish.backends.onnx.openvino_session import import_openvino
from burnish.backends.onnx.quiet import quiet
from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.nodes import Node
from burnish.backends.readiness.standard import is_known
from burnish.compiler.backend import Finding

__all__ = ["onnxruntime_findings", "openvino_findings"]

_INLINE_BYTES = 1024
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_UNCONVERTED = re.compile(r"No conversion rule found for operations: (?P<names>.*)")
_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)
# Half of the range: a slice to the end is written as a number near the greatest.
_SENTINEL = _INT64.max // 2

_Probe = Callable[[onnx.ModelProto], str]


def onnxruntime_findings(graph: Graph) -> Iterator[Finding]:
    """Yield the nodes for which the installed ONNX Runtime has no kernel on the CPU, in its own words."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Its optimizer would evaluate a node of constants; its log goes past Python.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1

    def probe(model: onnx.ModelProto) -> str:
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            return _STATUS.sub("", str(error).splitlines()[0])
        return ""

    newest = onnx.defs.onnx_opset_version()
    for node, reason in _probed(graph, probe, contrib=True):
        fix = "lower for a runtime that has it, or with `onnx{dialect=standard}`" if not node.is_standard else ""
        yield node.finding("operator", f"ONNX Runtime {ort.__version__}: {reason}", fix or _type_fix(node))
    if graph.opset > newest:
        yield Finding("opset", "model", f"opset {graph.opset}; {newest} is the newest known here", "", "opset")


def openvino_findings(graph: Graph) -> Iterator[Finding]:
    """Yield the nodes that the installed OpenVINO cannot convert, and what it computes in narrower types.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    openvino, core = import_openvino()

    def probe(model: onnx.ModelProto) -> str:
        try:
            core.compile_model(core.read_model(model.SerializeToString()), "CPU")
        except Exception as error:
            return _openvino_reason(str(error))
        return ""

    for node, reason in _probed(graph, probe, contrib=False):
        fix = "" if node.is_standard else "lower with `onnx{dialect=openvino}`"
        yield node.finding("operator", f"OpenVINO {openvino.__version__.split('-')[0]}: {reason}", fix)
    yield from _narrow_findings(graph)


def _probed(graph: Graph, probe: _Probe, *, contrib: bool) -> Iterator[tuple[Node, str]]:
    """Yield the nodes that `probe` refuses, with its reason.

    Args:
        graph: whose nodes to ask for.
        probe: returns what is wrong with a graph, "" for nothing.
        contrib: whether the runtime may have operators of other domains.
    """
    answers: dict[bytes, str] = {}
    with quiet():
        for node in graph.nodes():
            if node.is_standard and not is_known(node, graph.opset):
                continue  # named by ONNX's own rules
            model = _alone(node, graph)
            if model is None:
                continue
            key = model.graph.SerializeToString(deterministic=True)
            if not node.is_standard and not contrib:
                answers[key] = f"the domain {node.proto.domain!r} is not part of the standard"
            if key not in answers:
                answers[key] = probe(model)
            if answers[key]:
                yield node, answers[key]


def _alone(node: Node, graph: Graph) -> onnx.ModelProto | None:
    """Return a graph of `node` alone, named neutrally; None where its types are not known."""
    if any(attribute.HasField("g") for attribute in node.proto.attribute):
        return None
    copy = onnx.NodeProto()
    copy.CopyFrom(node.proto)
    copy.name = "node"
    del copy.metadata_props[:]
    inputs, constants = [], []
    for index, name in enumerate(node.proto.input):
        dtype, shape = node.dtype(index), node.shape(index)
        if not name:
            continue
        copy.input[index] = f"x{list(node.proto.input).index(name)}"
        if node.proto.input[:index].count(name):
            continue
        held = node.constant(index)
        if held is not None and held.nbytes <= _INLINE_BYTES and dtype:
            constants.append(_constant(copy.input[index], held, dtype))
            continue
        if not dtype:
            return None
        sizes = None if shape is None else [size if isinstance(size, int) else None for size in shape]
        inputs.append(onnx.helper.make_tensor_value_info(copy.input[index], _number(dtype), sizes))
    outputs = []
    for index, name in enumerate(node.proto.output):
        if name:
            copy.output[index] = f"y{index}"
            dtype = node.scope.dtype(name)
            # ONNX Runtime infers a type itself, and that is how results of contrib operators get theirs.
            kind = onnx.helper.make_tensor_type_proto(_number(dtype), None) if dtype else onnx.TypeProto()
            outputs.append(onnx.helper.make_value_info(f"y{index}", kind))
    made = onnx.helper.make_graph([copy], "node", inputs, outputs, constants)
    return onnx.helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)


def _constant(name: str, held: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: str) -> onnx.TensorProto:
    if dtype == "bfloat16" and held.dtype == np.float32:
        return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, held.shape, held.reshape(-1))
    return onnx.numpy_helper.from_array(np.ascontiguousarray(held), name)


def _number(dtype: str) -> int:
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return int(onnx.TensorProto.DataType.Value(names.get(dtype, dtype.upper())))


def _type_fix(node: Node) -> str:
    narrow = {node.dtype(index) for index in range(len(node.proto.input))} & {"bfloat16", "float16"}
    return "compute it in float32: the CPU has few kernels for half precision" if narrow else ""


def _openvino_reason(message: str) -> str:
    found = _UNCONVERTED.search(message)
    if found is not None:
        return f"no conversion for {found['names'].strip()}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return (telling or lines or ["it is refused"])[0]


def _narrow_findings(graph: Graph) -> Iterator[Finding]:
    for name in graph.main.inputs():
        if graph.main.dtype(name) == "float64":
            fix = "convert the model to float32 before its capture: `model.float()`"
            yield Finding(name, "input", "OpenVINO computes float64 in float32", "", "type", fix)
    for node in graph.nodes():
        read = {node.dtype(index) for index in range(len(node.proto.input))}
        if any(node.scope.dtype(value) == "float64" for value in node.proto.output) and "float64" not in read:
            fix = "compute it in float32 in the model"
            yield node.finding("type", "OpenVINO computes float64 in float32", fix)
        for index in range(len(node.proto.input)):
            held = node.constant(index) if node.dtype(index) == "int64" else None
            if held is not None and _is_wide(held):
                yield node.finding("type", "a constant does not fit 32 bits, in which OpenVINO computes int64")


def _is_wide(held: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    values = held.astype(np.int64).reshape(-1)
    ends = (values > _SENTINEL) | (values < -_SENTINEL)
    return bool(np.any(((values > _INT32.max) | (values < _INT32.min)) & ~ends))
