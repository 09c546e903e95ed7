"""The stub of TensorRT holds code to what 10.12 and later and 11 have in common, and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# One way through the API that both releases have: build, and run on the caller's stream.
COMMON = """
import tensorrt as trt


class Allocator(trt.IOutputAllocator):
    def __init__(self) -> None:
        trt.IOutputAllocator.__init__(self)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
        return memory

    def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
        self.shapes[tensor_name] = tuple(shape)


def build(model: bytes, cache: bytes) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    typed = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ValueError("; ".join(f"{error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.builder_optimization_level = 3
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_timing_cache(config.create_timing_cache(cache), ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (1, 3), (4, 3), (8, 3))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(memoryview(plan))


class Profiler(trt.IProfiler):
    def __init__(self) -> None:
        trt.IProfiler.__init__(self)

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        print(layer_name, ms)


def run(plan: bytes, address: int, stream: int) -> dict[str, tuple[int, ...]]:
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)
    assert engine is not None
    context = engine.create_execution_context()
    assert context is not None
    allocator = Allocator()
    context.profiler = Profiler()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, (2, 3))
            context.set_tensor_address(name, address)
        else:
            context.set_output_allocator(name, allocator)
    assert context.execute_async_v3(stream)
    return allocator.shapes
"""

SETTING = "def use(config: trt.IBuilderConfig, layer: trt.ILayer, builder: trt.Builder) -> None:\n    "

REMOVED = [
    ("config.set_flag(trt.BuilderFlag.FP16)", '"FP16"'),
    ("config.set_flag(trt.BuilderFlag.INT8)", '"INT8"'),
    ("config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)", '"OBEY_PRECISION_CONSTRAINTS"'),
    ("layer.precision = trt.DataType.HALF", '"precision"'),
    ("layer.set_output_type(0, trt.DataType.HALF)", '"set_output_type"'),
    ("config.int8_calibrator = None", '"int8_calibrator"'),
    ("builder.platform_has_fast_fp16", '"platform_has_fast_fp16"'),
    ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", '"EXPLICIT_BATCH"'),
    ("builder.build_engine", '"build_engine"'),
    ("config.max_workspace_size = 1 << 30", '"max_workspace_size"'),
]


def check(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = folder / "planted.py"
    file.write_text(source)
    # The settings of the repository, so that the stub is found where they say, and the file alone.
    settings = (ROOT / "pyproject.toml").read_text().replace('packages = ["burnish"]\n', "")
    (folder / "pyproject.toml").write_text(settings.replace('"src:typings"', f'"{ROOT}/typings"'))
    command = [sys.executable, "-m", "mypy", str(file)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_what_both_releases_have_passes(tmp_path: Path) -> None:
    result = check(tmp_path, COMMON)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_11_removed_fails(tmp_path: Path) -> None:
    source = "import tensorrt as trt\n\n\n" + "\n".join(
        SETTING.replace("use", f"use_{index}") + line for index, (line, _) in enumerate(REMOVED)
    )
    result = check(tmp_path, source)
    assert result.returncode == 1, result.stdout + result.stderr
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    for index, (_, name) in enumerate(REMOVED):
        line = 5 + 2 * index
        assert any(f"planted.py:{line}: error: " in each and name in each for each in errors), (name, errors)
    assert len(errors) == len(REMOVED)


@pytest.mark.parametrize("line", ["trt.BuilderFlag.FP16", "layer.precision"])
def test_each_removed_name_fails_by_itself(tmp_path: Path, line: str) -> None:
    result = check(tmp_path, f"import tensorrt as trt\n\n\ndef use(layer: trt.ILayer) -> object:\n    return {line}\n")
    assert result.returncode == 1
    assert "attr-defined" in result.stdout


def test_the_settings_of_the_repository_name_the_stub() -> None:
    assert 'mypy_path = "src:typings"' in (ROOT / "pyproject.toml").read_text()
