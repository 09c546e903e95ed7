"""A bundle: all that a machine with TensorRT needs to build an engine and to see that it is right.

A `.trtbundle` is an archive: `model.onnx` (above 2 GB with `model.data` beside), `samples.safetensors` (example inputs
and what the Program made of them), and as JSON options, profiles, tolerance, source lines and versions.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.backends.onnx.files import load_model, save_model
from burnish.backends.onnx.model import Model
from burnish.backends.readiness import Range
from burnish.backends.tensorrt.archive import Archive, pack, unpack, write_archive
from burnish.backends.tensorrt.settings import Settings
from burnish.compiler import interpreter, structure
from burnish.compiler.errors import FileFormatError, OptionError
from burnish.compiler.graphs import calls, name_of
from burnish.compiler.numerics import tolerance, worst_drift
from burnish.compiler.operators import is_random
from burnish.compiler.provenance import provenance_of
from burnish.compiler.reproducer import versions

if TYPE_CHECKING:
    from burnish.compiler.program import Program

__all__ = ["SUFFIX", "Bundle"]

SUFFIX = ".trtbundle"
_KIND = "burnish TensorRT bundle"
_FILES = ("model.onnx", "model.data")
_SAMPLES = "samples.safetensors"
_INPUT, _OUTPUT = "input/", "output/"
_NUMBERS = (bool, int, float)
# Kernels of two runtimes round to different steps.
_QUANTIZED = 1e-1


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        model: graph, weights and calling convention.
        settings: the backend's options.
        ranges: sizes of the graph's symbols, the optimization profile.
        sources: module and source line of every node of the Program, by name.
        tolerance: how far outputs may be from the expected ones, as `numerics.drift` measures it.
        device: index of the GPU that it is meant for.
        samples: an example of every input by name; may be empty.
        expected: what the Program made of them, by name; empty where nothing can be expected.
        versions: of the libraries that made it.
    """

    model: Model
    settings: Settings
    ranges: Mapping[str, Range]
    sources: Mapping[str, str]
    tolerance: float
    device: int = 0
    samples: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, model: Model, settings: Settings, ranges: Mapping[str, Range], device: int) -> Bundle:
        """Return the bundle of a Program of one graph, but for what is expected; see `with_expected`."""
        found = {}
        for _, graph in program.all_graphs():
            for node in graph.nodes:
                provenance = provenance_of(node)
                if provenance is not None:
                    found[name_of(node)] = ", ".join(map(str, provenance.origins))
        allowed = max(tolerance(program), _QUANTIZED if model.is_quantized() else 0.0)
        return Bundle(model, settings, ranges, found, allowed, device, dict(program.samples), {}, versions())

    def with_expected(self, program: Program) -> Bundle:
        """Return it with what the Program makes of the samples; itself where it has none, or draws random numbers."""
        random = any(is_random(node) for _, graph in program.all_graphs() for node in calls(graph))
        if not program.samples or random:
            return self
        outputs = interpreter.run(program, program.samples)[0]
        return replace(self, expected=structure.flatten(program.signature.outputs, outputs, "outputs"))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the samples as a call takes them."""
        args, kwargs = structure.unflatten(self.model.convention.binding.inputs, self.samples)
        return args, kwargs

    def drift(self, result: Any) -> float:
        """Return how far the result of a call on the samples is from what is expected."""
        found = structure.flatten(self.model.convention.binding.outputs, result, "outputs")
        return worst_drift([found[name] for name in self.expected], self.expected.values())

    def blame(self, node: str) -> str:
        """Describe a node of the graph: its operator, the Program's node, and where that came from."""
        place = self.model.places().get(node)
        if place is None:
            return node or "the graph"
        origin = self.sources.get(place.node) or place.module
        return f"{node} ({place.operator}){f' from {origin}' if origin else ''}"

    def size(self) -> int:
        """Return the bytes of the bundle when saved, to within the samples and metadata."""
        return self.model.bytes()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.trtbundle`; an interrupted save leaves an old file whole.

        Raises:
            InputError: it cannot be written.
        """
        groups = {_INPUT: self.samples, _OUTPUT: self.expected}
        values = {f"{prefix}{name}": each for prefix, group in groups.items() for name, each in group.items()}
        metadata = {
            "settings": self.settings.portable(),
            "ranges": {name: [each.least, each.usual, each.most] for name, each in self.ranges.items()},
            "sources": dict(self.sources),
            "tolerance": self.tolerance,
            "device": self.device,
            "numbers": {name: each for name, each in values.items() if not isinstance(each, torch.Tensor)},
            "versions": dict(self.versions),
        }
        tensors = {name: each for name, each in values.items() if isinstance(each, torch.Tensor)}
        with tempfile.TemporaryDirectory() as folder:
            save_model(self.model, Path(folder) / _FILES[0])
            parts: dict[str, bytes | Path] = {each.name: each for each in sorted(Path(folder).iterdir())}
            write_archive(path, _KIND, metadata, {**parts, _SAMPLES: pack(tensors)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Bundle:
        """Read a `.trtbundle`.

        Raises:
            FileFormatError: it is truncated, damaged, foreign, or contradicts itself.
        """
        with Archive.open(path, _KIND) as archive:
            data = archive.metadata
            # What is mapped stays readable when the folder is gone.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                archive.extract(Path(folder), _FILES)
                try:
                    model = load_model(Path(folder) / _FILES[0])
                except FileFormatError as error:
                    raise FileFormatError(f"{path}: {str(error).replace(f'{folder}{os.sep}', '')}") from error
            tensors = unpack(archive.read(_SAMPLES))
            numbers = dict(data["numbers"])
            if not all(isinstance(each, _NUMBERS) for each in numbers.values()):
                raise ValueError("a sample is neither a tensor nor a number")
            samples, expected = (_named({**tensors, **numbers}, prefix) for prefix in (_INPUT, _OUTPUT))
            binding = model.convention.binding
            if samples and set(samples) != set(binding.types):
                raise ValueError("its samples are not those of its inputs")
            if not set(expected) <= set(structure.leaf_names(binding.outputs)):
                raise ValueError("it expects outputs that there are not")
            allowed = float(data["tolerance"])
            if not math.isfinite(allowed) or allowed < 0:
                raise ValueError("its tolerance is no number")
            return Bundle(
                model,
                _settings(data["settings"]),
                {str(name): _range(each) for name, each in data["ranges"].items()},
                {str(name): str(each) for name, each in data["sources"].items()},
                allowed,
                int(data["device"]),
                samples,
                expected,
                {str(name): str(each) for name, each in data["versions"].items()},
            )


def _settings(data: Mapping[str, Any]) -> Settings:
    try:
        return Settings.parse(data)
    except OptionError as error:
        raise ValueError(str(error)) from error


def _range(sizes: Any) -> Range:
    least, usual, most = (int(each) for each in sizes)
    if not 0 <= least <= usual <= most:
        raise ValueError("the sizes of a profile fall")
    return Range(least, usual, most)


def _named(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): each for name, each in values.items() if name.startswith(prefix)}
