"""What this machine has: processor, GPUs, and the versions of the libraries that matter to burnish.

Processor features are read from /proc/cpuinfo. Where there is none (macOS, Windows) they are unknown, and PyTorch's own
word for the processor ("AVX2") is all there is.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["LIBRARIES", "Gpu", "Machine", "Processor"]

LIBRARIES = ("burnish", "torch", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "openvino", "tensorrt")
"""The packages whose versions are told."""

_CPUINFO, _CPU_LIMIT = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
# Other distributions of the same module.
_ALSO = {"onnxruntime": ("onnxruntime-gpu",), "tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor.

    Attributes:
        name: its model.
        cores: those that this process may use.
        features: instruction sets in the words of /proc/cpuinfo, "avx512_vnni"; None where they are unknown.
        capability: PyTorch's word for the widest vectors.
    """

    name: str
    cores: int
    features: frozenset[str] | None
    capability: str

    @staticmethod
    def parse(cpuinfo: str, cores: int, capability: str) -> Processor:
        """Read what /proc/cpuinfo says ("" where there is none)."""
        lines = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", cpuinfo, re.MULTILINE))
        words = lines.get("flags", lines.get("Features"))
        name = lines.get("model name") or lines.get("Model") or platform.processor() or platform.machine()
        return Processor(name.strip(), cores, None if words is None else frozenset(words.split()), capability)

    def has(self, *names: str) -> bool:
        """Tell whether one of these features is known to be there."""
        return self.features is not None and not self.features.isdisjoint(names)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that PyTorch sees: its name, its compute capability (8, 9), and its memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine.

    Attributes:
        system: operating system and architecture.
        python: version.
        processor: the CPU.
        memory: bytes of main memory, 0 where it is unknown.
        gpus: what PyTorch sees.
        versions: of `LIBRARIES`; None for one that is not installed.
    """

    system: str
    python: str
    processor: Processor
    memory: int
    gpus: tuple[Gpu, ...]
    versions: Mapping[str, str | None]

    @staticmethod
    def here() -> Machine:
        """Look at this machine."""
        import torch

        text = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
        processor = Processor.parse(text, _cores(), torch.backends.cpu.get_cpu_capability())
        return Machine(
            system=f"{platform.system()} {platform.release()}, {platform.machine()}",
            python=platform.python_version(),
            processor=processor,
            memory=_memory(),
            gpus=_gpus(),
            versions={name: _version(name) for name in LIBRARIES},
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return what there is to say, as pairs of a heading and a text."""
        features = self.processor.features
        known = "unknown" if features is None else " ".join(sorted(each for each in features if _matters(each))) or "-"
        gpus = [
            f"{each.name}, compute capability {'.'.join(map(str, each.capability))}, {each.memory / _GIB:.0f} GiB"
            for each in self.gpus
        ]
        return [
            ("system", f"{self.system}; Python {self.python}"),
            ("processor", f"{self.processor.name}, {self.processor.cores} cores, {self.processor.capability}"),
            ("features", known),
            ("memory", f"{self.memory / _GIB:.1f} GiB" if self.memory else "unknown"),
            *(("GPU", each) for each in gpus or ["none that PyTorch sees"]),
        ]


def _matters(feature: str) -> bool:
    """Tell whether a feature has to do with vectors, integers of 8 bits or half precision."""
    return feature.startswith(("avx", "amx", "f16c", "asimd", "sve", "i8mm", "bf16", "fphp"))


def _cores() -> int:
    """Return the cores that this process may use: a container often has fewer than the machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        limit = max(int(quota) // int(period), 1)
    except (OSError, ValueError):  # no such file, or "max"
        return usable
    return min(usable, limit)


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(each.name, (each.major, each.minor), each.total_memory) for each in found)


def _version(name: str) -> str | None:
    for each in (name, *_ALSO.get(name, ())):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None
