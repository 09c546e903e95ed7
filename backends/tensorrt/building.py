"""Build an engine: one code path for TensorRT 10.12 and later and for 11, strongly typed.

What a layer computes in is what the network says: there are no precision flags. TF32 is off, so that float32 means it.
Imported only where `library.reason` has nothing to say.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tensorrt as trt

from burnish.backends.onnx.files import save_model
from burnish.backends.tensorrt import device
from burnish.backends.tensorrt.bundle import Bundle
from burnish.backends.tensorrt.settings import Settings
from burnish.backends.tensorrt.sizes import profile_shapes
from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import BackendError

__all__ = ["Built", "Log", "build"]

_MIB = 1 << 20
_MOST = 3
_ERRORS = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)


@dataclass(frozen=True, slots=True)
class Built:
    """An engine as bytes.

    Attributes:
        plan: what a runtime of the same TensorRT on the same GPU deserializes.
        seconds: that the builder took.
        notes: what the user should know of the build.
    """

    plan: bytes
    seconds: float
    notes: tuple[str, ...]


class Log(trt.ILogger):
    """Keeps what TensorRT says of errors, which its calls do not raise."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Keep a message; called by TensorRT."""
        if severity in _ERRORS:
            self.errors.append(msg)

    def text(self) -> str:
        """Return the errors so far."""
        more = f" (and {len(self.errors) - _MOST} more)" if len(self.errors) > _MOST else ""
        return "; ".join(self.errors[:_MOST]) + more if self.errors else "TensorRT gives no reason"


def build(bundle: Bundle, index: int) -> Built:
    """Build the engine of a bundle on the GPU `index`.

    Raises:
        BackendError: TensorRT refuses the graph, or cannot build it; names node, module and source line.
        InputError: the timing cache cannot be written.
    """
    log = Log()
    with device.use(index), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # State is fed: an initial value in the file would make a constant of it.
        save_model(replace(bundle.model, initial={}, convention=replace(bundle.model.convention, state={})), file)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed())
        # It holds the weights until the engine is built.
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(file)):
            errors = [parser.get_error(number) for number in range(parser.num_errors)]
            raise BackendError(f"TensorRT {trt.__version__} cannot parse {_parse_errors(errors, bundle) or log.text()}")
        config = _configured(builder, bundle.settings)
        profile = _profile(builder, network, bundle)
        if profile is not None and config.add_optimization_profile(profile) < 0:
            raise BackendError(f"TensorRT {trt.__version__} refuses the profiles: {log.text()}")
        notes = _load_timings(config, bundle.settings.timing_cache)
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if plan is None:
            raise BackendError(f"TensorRT {trt.__version__} cannot build the engine: {_located(log.text(), bundle)}")
        _save_timings(config, bundle.settings.timing_cache)
        return Built(bytes(memoryview(plan)), seconds, tuple(notes))


def _strongly_typed() -> int:
    """Return the flags of a network; 11 has no other networks, and a release may do without the flag."""
    flag = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 0 if flag is None else 1 << int(flag)


def _configured(builder: trt.Builder, settings: Settings) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.optimization_level
    # What the inspector tells of layers, and their names in messages.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace * _MIB)
    if settings.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def _profile(builder: trt.Builder, network: trt.INetworkDefinition, bundle: Bundle) -> trt.IOptimizationProfile | None:
    """Return the profile; None where every size is a number."""
    declared = {each.name: each for each in bundle.model.graph.graph.input}
    profile, used = builder.create_optimization_profile(), False
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        sizes = [
            each.dim_value if each.HasField("dim_value") else each.dim_param
            for each in declared[tensor.name].type.tensor_type.shape.dim
        ]
        if any(isinstance(size, str) for size in sizes):
            profile.set_shape(tensor.name, *profile_shapes(tensor.name, sizes, bundle.ranges))
            used = True
        if tensor.is_shape_tensor:
            # Its values become sizes: the range stands under the input's own name.
            ends, count = bundle.ranges.get(tensor.name), int(sizes[0]) if sizes else 1
            if ends is None:
                remedy = f'give its values a range, the option profiles=["{tensor.name}=1:8:32"]'
                raise BackendError(f"the values of input {tensor.name!r} become sizes: {remedy}")
            profile.set_shape_input(tensor.name, [ends.least] * count, [ends.usual] * count, [ends.most] * count)
            used = True
    return profile if used else None


def _load_timings(config: trt.IBuilderConfig, file: str) -> list[str]:
    """Give the builder the timings that are kept; of another GPU or release, or damaged, they count for nothing."""
    if not file:
        return []
    kept = Path(file).read_bytes() if Path(file).exists() else b""
    cache = config.create_timing_cache(kept)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return [f"timing cache {file}: {len(kept)} bytes of earlier builds"] if kept else []
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return [f"timing cache {file}: of another GPU or TensorRT, or damaged; it is replaced"]


def _save_timings(config: trt.IBuilderConfig, file: str) -> None:
    cache = config.get_timing_cache() if file else None
    if cache is not None:
        with atomic_path(file) as temporary:
            temporary.write_bytes(bytes(memoryview(cache.serialize())))


def _parse_errors(errors: Sequence[trt.ParserError], bundle: Bundle) -> str:
    nodes = [each.name for each in bundle.model.graph.graph.node]
    texts = []
    for each in errors[:_MOST]:
        # Within a branch the number is that of the branch's own node, and only the name tells.
        name = each.node_name() or (nodes[each.node()] if 0 <= each.node() < len(nodes) else "")
        texts.append(f"{bundle.blame(name)}: {each.desc()}")
    more = f" (and {len(errors) - _MOST} more)" if len(errors) > _MOST else ""
    return "; ".join(texts) + more


def _located(text: str, bundle: Bundle) -> str:
    """Add to a message where the nodes that it names come from."""
    places: Mapping[str, object] = bundle.model.places()
    named = [each for each in dict.fromkeys(re.findall(r"[\w./]+", text)) if each in places]
    return f"{text}; {', '.join(map(bundle.blame, named[:_MOST]))}" if named else text
