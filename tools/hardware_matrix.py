"""Which runtimes can be used on a machine, in which element types they compute fast, and what follows from it.

What a runtime says of itself counts: ONNX Runtime's providers, the capabilities that OpenVINO's plugins report. Where
it says nothing, the instruction sets do: VNNI, AMX and their ARM counterparts multiply 8-bit integers in one step.

Not handled: what a particular model gains. `burnish bench` measures that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from burnish.tools.machine import Machine, Processor

__all__ = ["Advice", "Runtime", "advice", "openvino_capabilities", "providers", "runtimes", "tensorrt_reason"]

_INTEGERS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
_BRAIN = ("avx512_bf16", "amx_bf16", "bf16")
_HALF = ("avx512_fp16", "amx_fp16", "asimdhp")
_FAST, _SLOW, _WIDE, _NO, _UNKNOWN = "fast", "slow", "in float32", "no", "unknown"
# Compute capabilities: tensor cores for int8, bfloat16 (NVIDIA CUDA programming guide, table of compute capabilities).
_GPU_INT8, _GPU_BRAIN = (7, 5), (8, 0)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that burnish writes for.

    Attributes:
        name: as people call it, with its device.
        options: how burnish is told to use it.
        usable: whether it can be used here.
        reason: why not.
        float32: how it computes: "fast", "slow", "in float32", "no", or "unknown" where the processor is.
        float16: likewise.
        bfloat16: likewise.
        int8: likewise.
    """

    name: str
    options: str
    usable: bool
    reason: str = ""
    float32: str = _FAST
    float16: str = _NO
    bfloat16: str = _NO
    int8: str = _NO


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do here: for which end, with which options, and why."""

    purpose: str
    options: str
    reason: str


def runtimes(
    machine: Machine, providers: frozenset[str], openvino: Mapping[str, frozenset[str]], tensorrt: str
) -> list[Runtime]:
    """Return every runtime, those that cannot be used here too.

    Args:
        machine: where.
        providers: ONNX Runtime's execution providers.
        openvino: capabilities by device that OpenVINO reports; {} where it is not installed.
        tensorrt: why TensorRT cannot be imported, "" where it can.
    """
    return [
        _onnxruntime(machine.processor),
        *_onnxruntime_cuda(machine, providers),
        *_openvino(machine.processor, openvino),
        _torchscript(machine.processor),
        _tensorrt(machine, tensorrt),
    ]


def advice(machine: Machine, found: list[Runtime]) -> list[Advice]:
    """Return what pays on this machine, given its runtimes."""
    return [*_threads(machine), *_int8(machine, found), *_brain(found), *_gpu(found)]


def providers() -> frozenset[str]:
    """Return ONNX Runtime's execution providers."""
    import onnxruntime

    return frozenset(onnxruntime.get_available_providers())


def openvino_capabilities() -> dict[str, frozenset[str]]:
    """Return what each device of OpenVINO reports that it is good at, "INT8" for one; {} where it is not installed."""
    from burnish.backends.onnx.openvino_session import import_openvino
    from burnish.compiler.errors import MissingDependencyError

    try:
        core = import_openvino()[1]
    except MissingDependencyError:
        return {}
    return {
        device: frozenset(map(str, core.get_property(device, "OPTIMIZATION_CAPABILITIES")))
        for device in core.available_devices
    }


def tensorrt_reason() -> str:
    """Return why TensorRT cannot build engines here, as far as its package tells; "" where it can."""
    from burnish.backends.tensorrt.library import package_reason

    return package_reason()


def _onnxruntime(processor: Processor) -> Runtime:
    return Runtime(
        "ONNX Runtime, CPU",
        "onnx",
        usable=True,
        float16=_if_any(processor, ("asimdhp",), _WIDE),
        int8=_if_any(processor, _INTEGERS, _SLOW),
    )


def _onnxruntime_cuda(machine: Machine, providers: frozenset[str]) -> Iterator[Runtime]:
    options = "onnx{providers=[CUDAExecutionProvider,CPUExecutionProvider]}"
    if "CUDAExecutionProvider" not in providers:
        reason = "this onnxruntime has no CUDA provider: install onnxruntime-gpu"
        if machine.gpus:
            yield Runtime("ONNX Runtime, CUDA", options, False, reason, _NO)
        return
    reason = "" if machine.gpus else "no GPU that PyTorch sees"
    yield Runtime("ONNX Runtime, CUDA", options, bool(machine.gpus), reason, _FAST, _FAST, _on_gpu(machine, _GPU_BRAIN))


def _openvino(processor: Processor, devices: Mapping[str, frozenset[str]]) -> Iterator[Runtime]:
    options = "onnx{runtime=openvino}"
    if "CPU" not in devices:
        reason = "not installed: pip install 'burnish[openvino]'"
        yield Runtime("OpenVINO, CPU", options, False, reason, _NO)
        return
    able = devices["CPU"]
    half, brain = "FP16" in able, "BF16" in able
    yield Runtime(
        "OpenVINO, CPU",
        options,
        usable=True,
        float16=_FAST if half else _WIDE,
        bfloat16=_FAST if brain else _WIDE,
        # It reports INT8 on every processor, whether that has the instructions or not.
        int8=_if_any(processor, _INTEGERS, _SLOW),
    )


def _torchscript(processor: Processor) -> Runtime:
    return Runtime(
        "TorchScript, CPU",
        "torchscript",
        usable=True,
        float16=_if_any(processor, _HALF, _SLOW),
        bfloat16=_if_any(processor, _BRAIN, _SLOW),
        int8=_if_any(processor, _INTEGERS, _SLOW),
    )


def _tensorrt(machine: Machine, missing: str) -> Runtime:
    reasons = [missing] if missing else []
    reasons += [] if machine.gpus else ["no GPU that PyTorch sees"]
    options = "tensorrt"
    if reasons:
        return Runtime("TensorRT", options, False, "; ".join(reasons), _NO)
    brain, integers = _on_gpu(machine, _GPU_BRAIN), _on_gpu(machine, _GPU_INT8)
    return Runtime("TensorRT", options, True, "", _FAST, _FAST, brain, integers)


def _if_any(processor: Processor, features: tuple[str, ...], otherwise: str) -> str:
    if processor.features is None:
        return _UNKNOWN
    return _FAST if processor.has(*features) else otherwise


def _on_gpu(machine: Machine, least: tuple[int, int]) -> str:
    return _FAST if machine.gpus and all(each.capability >= least for each in machine.gpus) else _SLOW


def _threads(machine: Machine) -> Iterator[Advice]:
    cores = machine.processor.cores
    if cores < (os.cpu_count() or cores):
        reason = f"this process may use {cores} of {os.cpu_count()} cores, and a thread a core is the default"
        yield Advice("threads", f"-b 'onnx{{threads={cores}}}'", reason)


def _int8(machine: Machine, found: list[Runtime]) -> Iterator[Advice]:
    on_cpu = [each for each in found if each.usable and each.int8 == _FAST and each.name.endswith("CPU")]
    if on_cpu:
        # Where both have the instructions OpenVINO is the faster of the two (docs/quantization.md).
        best = next((each for each in on_cpu if "openvino" in each.options), on_cpu[0])
        known = sorted((machine.processor.features or frozenset()) & set(_INTEGERS))
        reason = f"the processor multiplies 8-bit integers in one step ({', '.join(known)})"
        yield Advice("int8", f"-b '{best.options}' -p default,quantize --calibration FILE.npz", reason)
    elif machine.processor.features is not None:
        reason = "the processor has neither VNNI nor AMX, nor their ARM counterparts: int8 saves memory, not time"
        yield Advice("int8", "-p 'default,quantize{bits=7}' --calibration FILE.npz, for memory alone", reason)


def _brain(found: list[Runtime]) -> Iterator[Advice]:
    if any("openvino" in each.options and each.usable and each.bfloat16 == _FAST for each in found):
        options = "-b 'onnx{runtime=openvino}' -p 'default,precision{dtype=bf16}'"
        yield Advice(
            "bfloat16", options, "OpenVINO reports BF16 kernels; expect differences of 1e-2, or give max_drift"
        )


def _gpu(found: list[Runtime]) -> Iterator[Advice]:
    tensorrt = next(each for each in found if each.name == "TensorRT")
    if tensorrt.usable:
        yield Advice("TensorRT", f"-b {tensorrt.options} -o FILE.engine", "a GPU and TensorRT are here")
    else:
        reason = f"no engine can be built here ({tensorrt.reason}); there, `burnish build-trt FILE.trtbundle` does it"
        yield Advice("TensorRT elsewhere", f"-b {tensorrt.options} -o FILE.trtbundle", reason)
