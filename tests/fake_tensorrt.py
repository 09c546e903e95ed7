"""A `tensorrt` that runs ONNX Runtime on host memory: the API of the stub, held to what the documentation asks.

It comes in two forms: 10.x, whose networks are strongly typed by a flag, and 11, which has no such flag. It reads and
writes memory by address alone, as TensorRT does, so what is not bound is not seen.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

OLD, NEW = "10.13.2.6", "11.2.0.9"
_MAGIC = b"fake plan\n"
_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
}
_HEAVY = ("Conv", "Gemm", "MatMul")
_PAIRS = ("QuantizeLinear", "DequantizeLinear")


class _Named:
    """A member of an enumeration."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return self.name


def _enumeration(title: str, *names: str) -> type:
    members = {name: _Named(name, index) for index, name in enumerate(names)}
    return type(title, (), {**members, "__members__": MappingProxyType(members)})


class _Memory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Parts:
    """What one release consists of; tests steer it."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.unsupported: set[str] = set()
        self.refusal = ""
        self.capability = "fake gpu"
        self.builds: list[dict[str, Any]] = []
        self.runs: list[int] = []


def fake_tensorrt(release: str) -> Any:
    """Return the module, as it is imported, with its `parts` for the test."""
    parts = _Parts(release)
    old = release.startswith("10.")
    module: Any = ModuleType("tensorrt")
    module.parts, module.__version__ = parts, release

    severity = _enumeration("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    class ILogger:
        Severity = severity

        def __init__(self) -> None:
            self.is_ready = True

    class IOutputAllocator:
        def __init__(self) -> None:
            self.is_ready = True

    class IProfiler:
        def __init__(self) -> None:
            self.is_ready = True

    typed = ("STRONGLY_TYPED",) if old else ()
    network_flags = _enumeration("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", *typed, "PREFER_AOT")
    pools = _enumeration("MemoryPoolType", "WORKSPACE", "TACTIC_DRAM")
    modes = _enumeration("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    locations = _enumeration("TensorLocation", "DEVICE", "HOST")
    formats = _enumeration("LayerInformationFormat", "ONELINE", "JSON")
    kinds = {name: _Named(name, index) for index, name in enumerate(_TYPES.values())}
    # What neither release shares, precision flags, is not here.
    flags = _enumeration("BuilderFlag", "DEBUG", "REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN")

    class Tensor:
        def __init__(self, proto: onnx.ValueInfoProto) -> None:
            self.name, self.is_shape_tensor = proto.name, False

    class Network:
        def __init__(self) -> None:
            self.model: onnx.ModelProto | None = None

        @property
        def num_inputs(self) -> int:
            return len(self.model.graph.input)

        def get_input(self, index: int) -> Tensor:
            return Tensor(self.model.graph.input[index])

    class Error:
        def __init__(self, index: int, node: onnx.NodeProto) -> None:
            self._index, self._node = index, node

        def node(self) -> int:
            return self._index

        def node_name(self) -> str:
            return self._node.name

        def desc(self) -> str:
            return f"No importer registered for op: {self._node.op_type}"

    class Parser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self._network, self._logger, self._errors = network, logger, []

        def parse_from_file(self, file: str) -> bool:
            model = onnx.load(file)
            given = {each.name for each in model.graph.initializer}
            assert not given & {each.name for each in model.graph.input}, "a fed value would be a constant"
            assert {each.domain for each in model.opset_import} <= {""}, "operators of other domains"
            self._errors = [
                Error(index, node)
                for index, node in enumerate(model.graph.node)
                if node.op_type in parts.unsupported or not onnx.defs.has(node.op_type)
            ]
            self._network.model = model
            return not self._errors

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Error:
            return self._errors[index]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[list[int]]] = {}

        def set_shape(self, name: str, *shapes: Any) -> None:
            assert len(shapes) == 3 and all(all(a <= b <= c for a, b, c in zip(*shapes, strict=True)) for _ in [0])
            self.shapes[name] = [list(each) for each in shapes]

    class Cache:
        def __init__(self, text: bytes) -> None:
            self.text = text or f"timings of {parts.release} on {parts.capability};".encode()

        def serialize(self) -> _Memory:
            return _Memory(self.text)

    class Config:
        __slots__ = ("_flags", "_pools", "_profiles", "builder_optimization_level", "cache", "profiling_verbosity")

        def __init__(self) -> None:
            self._flags, self._pools, self._profiles = {"TF32"}, {}, []
            self.builder_optimization_level, self.profiling_verbosity, self.cache = 3, None, None

        def set_flag(self, flag: _Named) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: _Named) -> None:
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: _Named, size: int) -> None:
            self._pools[pool.name] = size

        def add_optimization_profile(self, profile: Profile) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, text: bytes) -> Cache | None:
            return None if text and not text.startswith(b"timings of ") else Cache(text)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            mine = f"timings of {parts.release} on {parts.capability};".encode()
            if cache.text.startswith(mine):
                self.cache = cache
            return cache.text.startswith(mine)

        def get_timing_cache(self) -> Cache | None:
            return self.cache

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            assert logger.is_ready
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            assert flags == (1 << int(network_flags.STRONGLY_TYPED) if old else 0), "the network is weakly typed"
            return Network()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> _Memory | None:
            model = network.model
            assert model is not None
            profiles = config._profiles[0].shapes if config._profiles else {}
            for each in model.graph.input:
                sizes = [dim.HasField("dim_value") for dim in each.type.tensor_type.shape.dim]
                if not all(sizes) and each.name not in profiles:
                    self._logger.log(severity.ERROR, f"{each.name}: dynamic, and no profile has been defined")
                    return None
            if parts.refusal:
                self._logger.log(severity.ERROR, parts.refusal)
                return None
            if config.cache is not None:
                config.cache.text += b" a kernel;"
            head = {"release": parts.release, "profiles": profiles, "host_code": "VERSION_COMPATIBLE" in config._flags}
            parts.builds.append(
                {
                    **head,
                    "flags": set(config._flags),
                    "pools": config._pools,
                    "level": config.builder_optimization_level,
                }
            )
            return _Memory(_MAGIC + json.dumps(head).encode() + b"\n" + model.SerializeToString())

    class Inspector:
        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model

        def get_engine_information(self, form: _Named) -> str:
            assert form is formats.JSON
            return json.dumps({"Layers": [_layer(nodes, self._model, old) for nodes in _fused(self._model)]})

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._allocators: dict[str, Any] = {}
            self.profiler: Any = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                return False
            self._shapes[name] = tuple(shape)
            return True

        def infer_shapes(self) -> list[str]:
            return [name for name in self._engine.inputs if name not in self._shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            known = {}
            for each, shape in self._shapes.items():
                dims = self._engine.inputs[each].type.tensor_type.shape.dim
                known.update({dim.dim_param: size for dim, size in zip(dims, shape, strict=True) if dim.dim_param})
            return tuple(_size(dim, known) for dim in self._engine.outputs[name].type.tensor_type.shape.dim)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            self._allocators.pop(name, None)
            return True

        def set_output_allocator(self, name: str, allocator: Any) -> bool:
            assert allocator.is_ready
            self._allocators[name] = allocator
            return True

        def execute_async_v3(self, stream: int) -> bool:
            parts.runs.append(stream)
            feeds = {}
            for name, proto in self._engine.inputs.items():
                assert self._addresses.get(name), f"{name} has no address"
                kind = onnx.helper.tensor_dtype_to_np_dtype(proto.type.tensor_type.elem_type)
                size = int(np.prod(self._shapes[name], dtype=np.int64)) * kind.itemsize
                data = ctypes.string_at(self._addresses[name], size)
                feeds[name] = np.frombuffer(data, kind).reshape(self._shapes[name])
            names = list(self._engine.outputs)
            for name, found in zip(names, self._engine.session.run(names, feeds), strict=True):
                if not self._write(name, np.ascontiguousarray(found), stream):
                    return False
            if self.profiler is not None:
                for nodes in _fused(self._engine.model):
                    self.profiler.report_layer_time(" + ".join(each.name for each in nodes), 0.5)
            return True

        def _write(self, name: str, found: np.ndarray, stream: int) -> bool:
            address = self._addresses.get(name, 0)
            if name in self._allocators:
                allocator = self._allocators[name]
                # What is asked for is an upper bound, and positive for an empty tensor too.
                address = allocator.reallocate_output_async(name, 0, 2 * found.nbytes + 1, 256, stream)
                if not address:
                    return False
                assert address % 256 == 0
                allocator.notify_shape(name, found.shape)
            else:
                assert found.shape == self.get_tensor_shape(name), name
            assert address, f"{name} has neither an address nor an allocator"
            ctypes.memmove(address, found.ctypes.data, found.nbytes)
            return True

    class Engine:
        def __init__(self, head: dict[str, Any], model: onnx.ModelProto) -> None:
            self.model, self._profiles = model, head["profiles"]
            self.inputs = {each.name: each for each in model.graph.input}
            self.outputs = {each.name: each for each in model.graph.output}
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            self.num_layers = len(_fused(model))

        @property
        def num_io_tensors(self) -> int:
            return len(self.inputs) + len(self.outputs)

        def get_tensor_name(self, index: int) -> str:
            return [*self.inputs, *self.outputs][index]

        def get_tensor_mode(self, name: str) -> _Named:
            return modes.INPUT if name in self.inputs else modes.OUTPUT

        def get_tensor_location(self, name: str) -> _Named:
            return locations.DEVICE

        def get_tensor_dtype(self, name: str) -> _Named:
            return kinds[_TYPES[{**self.inputs, **self.outputs}[name].type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(_size(dim, {}) for dim in {**self.inputs, **self.outputs}[name].type.tensor_type.shape.dim)

        def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
            assert index == 0 and name in self.inputs
            return self._profiles.get(name) or [self.get_tensor_shape(name)] * 3

        def create_execution_context(self) -> Context:
            return Context(self)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self.model)

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert logger.is_ready
            self._logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if not plan.startswith(_MAGIC):
                self._logger.log(severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None
            head, _, model = plan.removeprefix(_MAGIC).partition(b"\n")
            data = json.loads(head)
            assert not data["host_code"] or self.engine_host_code_allowed
            if data["release"] != parts.release and not data["host_code"]:
                self._logger.log(severity.ERROR, "Version tag does not match")
                return None
            return Engine(data, onnx.ModelProto.FromString(model))

    public = {
        "ILogger": ILogger, "IOutputAllocator": IOutputAllocator, "IProfiler": IProfiler, "Builder": Builder,
        "OnnxParser": Parser, "Runtime": Runtime, "NetworkDefinitionCreationFlag": network_flags,
        "BuilderFlag": flags, "MemoryPoolType": pools, "TensorIOMode": modes, "TensorLocation": locations,
        "LayerInformationFormat": formats,
        "ProfilingVerbosity": _enumeration("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED"),
    }  # fmt: skip
    # Only for annotations of what the product's modules define.
    rest = ("IOptimizationProfile", "IBuilderConfig", "INetworkDefinition", "ParserError", "ICudaEngine", "Dims")
    for name, value in {**public, **{each: type(each, (), {}) for each in rest}}.items():
        setattr(module, name, value)
    return module


def _size(dim: Any, known: dict[str, int]) -> int:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    words = set(re.findall(r"[A-Za-z_]\w*", dim.dim_param))
    return int(eval(dim.dim_param, {}, known)) if words and words <= known.keys() else -1


def _fused(model: onnx.ModelProto) -> list[list[onnx.NodeProto]]:
    """Return the nodes of each layer: activations join the layer before, pairs the product that they are made for."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers: list[list[onnx.NodeProto]] = []
    for node in model.graph.node:
        after = [each.op_type for each in readers.get(node.output[0], [])]
        if node.op_type in _PAIRS and any(each in (*_HEAVY, "DequantizeLinear") for each in after):
            further = itertools.chain(*(readers.get(each.output[0], []) for each in readers[node.output[0]]))
            if node.op_type == "DequantizeLinear" or any(each.op_type in _HEAVY for each in further):
                continue
        if node.op_type == "Relu" and layers and layers[-1][-1].output[0] == node.input[0]:
            layers[-1].append(node)
        else:
            layers.append([node])
    return layers


def _layer(nodes: list[onnx.NodeProto], model: onnx.ModelProto, old: bool) -> dict[str, Any]:
    made = {name: node for node in model.graph.node for name in node.output}
    first = nodes[0]
    source = made.get(first.input[0]) if first.input else None
    integer = source is not None and source.op_type == "DequantizeLinear" and first.op_type in _HEAVY
    words = ("Thirty-two wide channel vectorized row major Int8 format", "Int8")
    words = words if integer else ("Row major linear FP32", "Float")
    tensor = {"Name": "x", **({"Format/Datatype": words[0]} if old else {"Format": words[0], "DataType": words[1]})}
    return {
        "Name": " + ".join(each.name for each in nodes),
        "LayerType": "CaskConvolution" if first.op_type == "Conv" else first.op_type,
        "Inputs": [tensor],
        "Outputs": [],
        "Metadata": "\x1e".join(f"[ONNX Layer: {each.name}]" for each in nodes),
    }
