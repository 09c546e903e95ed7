"""What an engine became: its layers with their element types, and which pairs of quantize and dequantize fused.

The engine inspector's JSON tells; its form changed with 11 (`Format/Datatype` became two fields), and both are read.
A layer names the graph nodes that it stands for in `Metadata`, and mostly in its own name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from burnish.backends.onnx.model import Place

__all__ = ["Inspection", "Layer"]

_NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_WORDS = re.compile(r"[\w./]+")
_TYPES = (
    (re.compile(r"\b(bf16|bfloat16)\b", re.I), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.I), "fp16"),
    (re.compile(r"\b(fp8|float8)", re.I), "fp8"),
    (re.compile(r"\b(fp4|float4)", re.I), "fp4"),
    (re.compile(r"\b(fp32|float|float32|tf32)\b", re.I), "fp32"),
    (re.compile(r"\b(int4)\b", re.I), "int4"),
    (re.compile(r"\b(int8)\b", re.I), "int8"),
    (re.compile(r"\b(int32)\b", re.I), "int32"),
    (re.compile(r"\b(int64)\b", re.I), "int64"),
    (re.compile(r"\b(bool)\b", re.I), "bool"),
)
_FIELDS = ("DataType", "Format/Datatype", "Format")
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
# Layers that compute in integers where their inputs are: what pays for a pair.
_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: TensorRT's name for it.
        kind: what it is, "CaskConvolution"; "" where the inspector does not tell.
        inputs: element types of what it reads, "int8"; "" for one that is not told.
        nodes: the graph nodes that it stands for.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The layers of an engine, and where graph nodes come from."""

    layers: tuple[Layer, ...]
    places: Mapping[str, Place]

    @staticmethod
    def of(text: str, places: Mapping[str, Place]) -> Inspection:
        """Read what the engine inspector says, JSON of either form; what is not understood is left out."""
        try:
            found = json.loads(text).get("Layers", [])
        except (ValueError, AttributeError):
            found = []
        return Inspection(tuple(_layer(each, places) for each in found if isinstance(each, (str, dict))), places)

    def named(self, name: str) -> Layer:
        """Return the layer of a name; the profiler has some that the inspector has not, of which the name tells."""
        return self._by_name.get(name) or Layer(name, "", (), _nodes(name, "", self.places))

    @cached_property
    def _by_name(self) -> Mapping[str, Layer]:
        return {each.name: each for each in self.layers}

    def alone(self) -> list[Place]:
        """Return the quantizes and dequantizes that are layers of their own: they did not fuse, and take time."""
        found: dict[str, Place] = {}
        for layer in self.layers:
            places = [self.places[each] for each in layer.nodes]
            if places and all(each.operator in _PAIRS for each in places):
                found.update({each.name: each for each in places})
        return list(found.values())

    def data(self) -> dict[str, Any]:
        """Return the summary as JSON takes it."""
        return {
            "layers": len(self.layers),
            "precisions": dict(self._precisions()),
            "pairs": self._pair_count(),
            "pairs_alone": [{"node": each.name, "module": each.module} for each in self.alone()],
            "int8_layers": [each.name for each in self._integers()],
        }

    def summary(self) -> list[str]:
        """Return the summary as lines of text."""
        precisions = ", ".join(f"{count} {name}" for name, count in self._precisions().most_common())
        lines = [f"{len(self.layers)} layers{f', by what they read: {precisions}' if precisions else ''}"]
        pairs, alone = self._pair_count(), self.alone()
        if pairs:
            heavy = [each for each in self.places.values() if each.operator in _HEAVY]
            integers = {node for layer in self._integers() for node in layer.nodes}
            computed = sum(each.name in integers for each in heavy)
            lines.append(f"{computed} of {len(heavy)} convolutions and matrix products compute in int8")
            lines.append(f"{pairs - len(alone)} of {pairs} quantizes and dequantizes fused")
            lines += [f"{each.name} ({each.operator}) did not fuse: module {each.module or '<root>'}" for each in alone]
        return lines

    def _precisions(self) -> Counter[str]:
        found = (next((kind for kind in each.inputs if kind), "") for each in self.layers)
        return Counter(kind for kind in found if kind)

    def _pair_count(self) -> int:
        return sum(each.operator in _PAIRS for each in self.places.values())

    def _integers(self) -> list[Layer]:
        return [
            layer
            for layer in self.layers
            if layer.inputs[:1] == ("int8",) and any(self.places[each].operator in _HEAVY for each in layer.nodes)
        ]


def _layer(data: str | dict[str, Any], places: Mapping[str, Place]) -> Layer:
    if isinstance(data, str):
        return Layer(data, "", (), _nodes(data, "", places))
    name, metadata = str(data.get("Name", "")), str(data.get("Metadata", ""))
    inputs = data.get("Inputs", ())
    kinds = tuple(_type(each) for each in inputs) if isinstance(inputs, list) else ()
    return Layer(name, str(data.get("LayerType", "")), kinds, _nodes(name, metadata, places))


def _nodes(name: str, metadata: str, places: Mapping[str, Place]) -> tuple[str, ...]:
    words: Iterable[str] = _NODES.findall(metadata) or _WORDS.findall(name)
    return tuple(each for each in dict.fromkeys(words) if each in places)


def _type(tensor: Any) -> str:
    texts = [str(tensor[each]) for each in _FIELDS if each in tensor] if isinstance(tensor, dict) else []
    return next((name for text in texts for pattern, name in _TYPES if pattern.search(text)), "")
