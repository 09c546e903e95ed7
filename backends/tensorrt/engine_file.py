"""An engine in a file, `.engine`: the plan, what it was built with and for, and how it is called.

An engine runs in the TensorRT that built it and on the GPU that it was built on: a file from elsewhere is refused
before TensorRT sees it. A version-compatible one also runs in later versions of the same major version, and one of 10
in 11 (NVIDIA, "Engine Compatibility", 11.1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from burnish.backends.onnx.model import DTYPES, Convention, Place
from burnish.backends.tensorrt import device, library
from burnish.backends.tensorrt.archive import Archive, pack, unpack, write_archive
from burnish.backends.tensorrt.bundle import Bundle
from burnish.backends.tensorrt.sizes import Ends, Port
from burnish.compiler.errors import BackendError

__all__ = ["SUFFIX", "EngineFile"]

SUFFIX = ".engine"
_KIND = "burnish TensorRT engine"
_PLAN, _STATE = "engine.plan", "state.safetensors"


@dataclass(frozen=True, slots=True)
class EngineFile:
    """What the file holds.

    Attributes:
        plan: TensorRT's serialized engine.
        tensorrt: the version that built it.
        gpu: name of the GPU that it was built on.
        capability: that GPU's compute capability.
        device: that GPU's index.
        host_code: it is version-compatible, and brings a runtime of its own.
        profiles: the sizes that it takes, as an option would say it.
        convention: how it is called.
        ends: its inputs and outputs.
        places: where the graph's nodes come from.
        initial: values of the buffers that a run updates.
    """

    plan: bytes
    tensorrt: str
    gpu: str
    capability: tuple[int, int]
    device: int
    host_code: bool
    profiles: tuple[str, ...]
    convention: Convention
    ends: Ends
    places: Mapping[str, Place] = field(default_factory=dict)
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of(bundle: Bundle, plan: bytes, index: int) -> EngineFile:
        """Return the file of an engine that was just built here, on the GPU `index`."""
        profiles = tuple(f"{name}={each.least}:{each.usual}:{each.most}" for name, each in bundle.ranges.items())
        return EngineFile(
            plan,
            library.version(),
            device.name(index),
            device.capability(index),
            index,
            bundle.settings.version_compatible,
            profiles,
            bundle.model.convention,
            Ends.of(bundle.model.graph.graph),
            bundle.model.places(),
            bundle.model.initial,
        )

    def check_here(self, index: int, name: str | os.PathLike[str]) -> None:
        """Check that the engine can run here, on the GPU `index`.

        Raises:
            BackendError: it was built by another TensorRT, or on another GPU; says which, and what to do.
        """
        remedy = "build it again here, from its .trtbundle: `burnish build-trt`"
        here = library.version()
        if here != self.tensorrt and not self._is_later(here):
            hint = "" if self.host_code else ", or with version_compatible=true where it was built"
            raise BackendError(f"{name}: built by TensorRT {self.tensorrt}, and this is {here}: {remedy}{hint}")
        found = device.capability(index)
        if (device.name(index), found) != (self.gpu, self.capability):
            made, gpu = (f"{kind} (compute capability {each[0]}.{each[1]})" for kind, each in (
                (self.gpu, self.capability), (device.name(index), found)
            ))  # fmt: skip
            raise BackendError(f"{name}: built on {made}, and this GPU is {gpu}: {remedy}")

    def _is_later(self, here: str) -> bool:
        mine, other = library.release_of(self.tensorrt), library.release_of(here)
        return self.host_code and other >= mine and (other[0] == mine[0] or (mine[0], other[0]) == (10, 11))

    def size(self) -> int:
        """Return the bytes of the file, to within its metadata."""
        return len(self.plan) + sum(each.nbytes for each in self.initial.values())

    def save(self, path: str | os.PathLike[str], state: Mapping[str, torch.Tensor]) -> None:
        """Write it with buffers as they are in `state`; an interrupted save leaves an old file whole.

        Raises:
            InputError: it cannot be written.
        """
        metadata = {
            "tensorrt": self.tensorrt,
            "gpu": self.gpu,
            "capability": list(self.capability),
            "device": self.device,
            "host_code": self.host_code,
            "profiles": list(self.profiles),
            "convention": self.convention.to_json(),
            "inputs": _ports_to_json(self.ends.inputs),
            "outputs": _ports_to_json(self.ends.outputs),
            "places": {name: [each.module, each.node, each.operator] for name, each in self.places.items()},
        }
        write_archive(path, _KIND, metadata, {_PLAN: self.plan, _STATE: pack(state)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> EngineFile:
        """Read an `.engine`; TensorRT is not needed.

        Raises:
            FileFormatError: it is truncated, damaged or foreign.
        """
        with Archive.open(path, _KIND) as archive:
            data = archive.metadata
            convention = Convention.from_json(str(data["convention"]))
            ends = Ends(_ports(data["inputs"]), _ports(data["outputs"]))
            state = unpack(archive.read(_STATE))
            wanted = {*convention.binding.types, *(each[0] for each in convention.state.values())}
            made = {*convention.outputs.values(), *(each[1] for each in convention.state.values())}
            if set(ends.inputs) != wanted or not made <= set(ends.outputs) or set(state) != set(convention.state):
                raise ValueError("its calling convention is of another engine")
            major, minor = (int(each) for each in data["capability"])
            return EngineFile(
                archive.read(_PLAN),
                str(data["tensorrt"]),
                str(data["gpu"]),
                (major, minor),
                int(data["device"]),
                bool(data["host_code"]),
                tuple(str(each) for each in data["profiles"]),
                convention,
                ends,
                {str(name): _place(name, each) for name, each in data["places"].items()},
                state,
            )


def _ports_to_json(ports: Mapping[str, Port]) -> dict[str, Any]:
    return {name: [str(each.dtype).removeprefix("torch."), list(each.sizes)] for name, each in ports.items()}


def _ports(data: Mapping[str, Any]) -> dict[str, Port]:
    known = {str(each).removeprefix("torch."): each for each in DTYPES.values()}
    return {
        str(name): Port(known[dtype], tuple(each if isinstance(each, str) else int(each) for each in sizes))
        for name, (dtype, sizes) in data.items()
    }


def _place(name: str, data: Any) -> Place:
    module, node, operator = (str(each) for each in data)
    return Place(module, node, operator, (), name)
