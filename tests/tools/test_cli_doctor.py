"""`burnish doctor`: this machine as it is, and machines that we do not have, from what their kernels say of them."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import pytest
import torch
from command_line import Command

from burnish import Pipeline
from burnish.tools.hardware_matrix import Runtime, advice, runtimes, tensorrt_reason
from burnish.tools.machine import LIBRARIES, Gpu, Machine, Processor

SAPPHIRE_RAPIDS = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 f16c avx avx2 avx512f avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_tile amx_int8
"""
HASWELL = "model name\t: Intel(R) Core(TM) i7-4770\nflags\t\t: fpu sse4_2 f16c avx avx2 fma\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp sve i8mm bf16\nCPU part\t: 0xd40\n"
H200 = Gpu("NVIDIA H200", (9, 0), 141 << 30)
TURING = Gpu("Tesla T4", (7, 5), 16 << 30)


def machine(cpuinfo: str, *gpus: Gpu) -> Machine:
    processor = Processor.parse(cpuinfo, 8, "AVX2")
    return Machine("Linux", "3.11", processor, 1 << 34, gpus, dict.fromkeys(LIBRARIES))


def table(
    found: Machine,
    providers: frozenset[str] = frozenset(),
    *,
    openvino: str = "FP32 INT8",
    tensorrt: str = "not installed",
) -> dict[str, Runtime]:
    devices = {"CPU": frozenset(openvino.split())} if openvino else {}
    return {each.name: each for each in runtimes(found, providers, devices, tensorrt)}


def test_this_machine(burnish: Command) -> None:
    found = json.loads(burnish("doctor", "--json").stdout)
    assert set(found["versions"]) == set(LIBRARIES)
    assert found["versions"]["torch"] == version("torch")
    assert found["processor"]["cores"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count()
    usable = {each["name"]: each["usable"] for each in found["runtimes"]}
    assert usable["ONNX Runtime, CPU"] and usable["TorchScript, CPU"]
    assert usable["OpenVINO, CPU"] is (found["versions"]["openvino"] is not None)
    assert all(each["purpose"] and each["options"] and each["reason"] for each in found["advice"])


def test_the_tables(burnish: Command) -> None:
    result = burnish("doctor")
    assert result.exit_code == 0
    for heading in ("machine", "library  ", "runtime  ", "for  "):
        assert any(line.startswith(heading) for line in result.stdout.splitlines()), heading
    assert "ONNX Runtime, CPU" in result.stdout and version("onnx") in result.stdout


@pytest.mark.parametrize(
    ("cpuinfo", "runtime", "kinds"),
    [
        (SAPPHIRE_RAPIDS, "ONNX Runtime, CPU", ("fast", "in float32", "no", "fast")),
        (SAPPHIRE_RAPIDS, "TorchScript, CPU", ("fast", "fast", "fast", "fast")),
        (SAPPHIRE_RAPIDS, "OpenVINO, CPU", ("fast", "in float32", "in float32", "fast")),
        (HASWELL, "ONNX Runtime, CPU", ("fast", "in float32", "no", "slow")),
        (HASWELL, "TorchScript, CPU", ("fast", "slow", "slow", "slow")),
        (HASWELL, "OpenVINO, CPU", ("fast", "in float32", "in float32", "slow")),
        (GRAVITON, "ONNX Runtime, CPU", ("fast", "fast", "no", "fast")),
        (GRAVITON, "TorchScript, CPU", ("fast", "fast", "fast", "fast")),
        ("", "ONNX Runtime, CPU", ("fast", "unknown", "no", "unknown")),
    ],
)
def test_processors(cpuinfo: str, runtime: str, kinds: tuple[str, ...]) -> None:
    found = table(machine(cpuinfo))[runtime]
    assert found.usable
    assert (found.float32, found.float16, found.bfloat16, found.int8) == kinds


def test_openvino_is_believed_about_half_precision() -> None:
    found = table(machine(SAPPHIRE_RAPIDS), openvino="FP32 FP16 BF16 INT8")["OpenVINO, CPU"]
    assert (found.float16, found.bfloat16) == ("fast", "fast")
    missing = table(machine(SAPPHIRE_RAPIDS), openvino="")["OpenVINO, CPU"]
    assert not missing.usable and "pip install 'burnish[openvino]'" in missing.reason


def test_gpus() -> None:
    cuda = frozenset({"CUDAExecutionProvider", "CPUExecutionProvider"})
    found = table(machine(SAPPHIRE_RAPIDS, H200), cuda, tensorrt="")
    assert found["TensorRT"].usable and found["TensorRT"].bfloat16 == found["TensorRT"].int8 == "fast"
    assert found["ONNX Runtime, CUDA"].usable
    turing = table(machine(SAPPHIRE_RAPIDS, TURING), cuda, tensorrt="")["TensorRT"]
    assert (turing.bfloat16, turing.int8) == ("slow", "fast")
    without = table(machine(SAPPHIRE_RAPIDS, H200))
    assert "onnxruntime-gpu" in without["ONNX Runtime, CUDA"].reason
    assert not without["TensorRT"].usable and without["TensorRT"].reason == "not installed"
    bare = table(machine(SAPPHIRE_RAPIDS), cuda, tensorrt="")
    assert not bare["TensorRT"].usable and not bare["ONNX Runtime, CUDA"].usable
    assert "no GPU" in bare["TensorRT"].reason


@pytest.mark.parametrize(
    ("cpuinfo", "openvino", "part"),
    [
        (SAPPHIRE_RAPIDS, "FP32 INT8", "-b 'onnx{runtime=openvino}' -p default,quantize"),
        (SAPPHIRE_RAPIDS, "", "-b 'onnx' -p default,quantize"),
        (GRAVITON, "", "-b 'onnx' -p default,quantize"),
        (HASWELL, "FP32 INT8", "quantize{bits=7}"),
    ],
)
def test_advice_for_int8(cpuinfo: str, openvino: str, part: str) -> None:
    here = machine(cpuinfo)
    (found,) = [each for each in advice(here, list(table(here, openvino=openvino).values())) if each.purpose == "int8"]
    assert part in found.options
    assert ("not time" in found.reason) is (cpuinfo == HASWELL)


def test_advice_follows_the_machine() -> None:
    rich, poor = machine(SAPPHIRE_RAPIDS, H200), machine("")
    found = {each.purpose for each in advice(rich, list(table(rich, openvino="BF16 INT8", tensorrt="").values()))}
    assert {"int8", "bfloat16", "TensorRT"} <= found
    found = {each.purpose for each in advice(poor, list(table(poor).values()))}
    assert found.isdisjoint({"int8", "bfloat16", "TensorRT"}) and "TensorRT elsewhere" in found


def test_recommended_options_are_options() -> None:
    import re

    from burnish.compiler.loading import parse_backend

    rich, poor = machine(SAPPHIRE_RAPIDS, H200), machine(HASWELL)
    given = [
        *advice(rich, list(table(rich, openvino="BF16 INT8", tensorrt="").values())),
        *advice(poor, list(table(poor).values())),
    ]
    for each in given:
        for text in re.findall(r"-b '([^']*)'", each.options):
            backend, options = parse_backend(text)
            backend.target(options)
        for text in re.findall(r"-p '?([^' ]+)", each.options):
            Pipeline.parse(text, Pipeline.parse("canonicalize"))


def test_a_package_of_the_name_without_a_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    assert "no Builder" in tensorrt_reason()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert tensorrt_reason() == "not installed"


def test_versions_are_found_under_the_other_names_of_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt-cu12": "11.4.0", "onnxruntime-gpu": "1.31.0"}

    def found(name: str) -> str:
        if name in installed:
            return installed[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr("burnish.tools.machine.version", found)
    versions = Machine.here().versions
    assert (versions["tensorrt"], versions["onnxruntime"]) == ("11.4.0", "1.31.0")
    assert versions["openvino"] is None
