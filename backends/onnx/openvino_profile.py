"""What OpenVINO made of a graph: its kernels, their times, and the nodes of the ONNX graph that they stand for.

Cases not handled: kernels within branches of a conditional, which count as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from burnish.backends.onnx.model import Place
from burnish.backends.onnx.trace import Kernel, work_of

__all__ = ["count_kernels", "kernels_of", "names_of", "origins_of", "own_places", "text_of"]

# What the CPU plugin calls the ends of the graph and what it computed beforehand.
_NO_KERNELS = frozenset({"Input", "Const", "Output"})
# Kernels whose kind does not contain the ONNX operator.
_OPERATORS = {"FullyConnected": "MatMul, Gemm"}
# Appended by OpenVINO's ONNX reader where it makes several operators of a node.
_PART = "/WithoutBiases"


def count_kernels(compiled: Any) -> Counter[str]:
    """Return how many kernels of each kind a compiled model has."""
    kinds = Counter(text_of(node, "layerType") for node in compiled.get_runtime_model().get_ordered_ops())
    return Counter({kind: count for kind, count in kinds.items() if kind not in _NO_KERNELS})


def kernels_of(
    compiled: Any, runs: Sequence[Sequence[Any]], graph: onnx.GraphProto, places: Mapping[str, Place]
) -> list[Kernel]:
    """Return the kernels that ran.

    Args:
        compiled: the compiled model.
        runs: OpenVINO's profiling information of each run.
        graph: what was compiled.
        places: where each of its nodes comes from.
    """
    times: dict[tuple[str, str], float] = {}
    for run in runs:
        for info in run:
            if info.status == info.EXECUTED:
                key = (info.node_name, info.node_type)
                times[key] = times.get(key, 0.0) + info.real_time.total_seconds()
    origins = origins_of(compiled, graph, places)
    return [
        Kernel(name, operator, seconds / len(runs), origins.get(name, ()))
        for (name, operator), seconds in times.items()
    ]


def names_of(graph: onnx.GraphProto, places: Mapping[str, Place]) -> dict[str, str]:
    """Return the node for every name that OpenVINO may have for it: one that gives an output is renamed to that."""
    return {value: node.name for node in graph.node for value in node.output} | {name: name for name in places}


def own_places(node: Any, names: Mapping[str, str], places: Mapping[str, Place]) -> tuple[Place, ...]:
    """Return the places that a kernel itself names, those that do its work first; none of one that OpenVINO inserted.

    Args:
        node: of the compiled model.
        names: see `names_of`.
        places: where each node of the graph comes from.
    """
    known = [names.get(each.removesuffix(_PART)) for each in text_of(node, "originalLayersNames").split(",")]
    own = tuple(places[each] for each in known if each is not None)
    # Of what OpenVINO fused it may name only the last (batch norm, activation): the work is that of one before.
    kind = text_of(node, "layerType")
    return (*(work_of(place, _OPERATORS.get(kind, kind), places) for place in own), *own)


def origins_of(compiled: Any, graph: onnx.GraphProto, places: Mapping[str, Place]) -> dict[str, tuple[Place, ...]]:
    """Return the places of every kernel; one that OpenVINO inserted has those of the first that reads its result."""
    names = names_of(graph, places)
    found: dict[str, tuple[Place, ...]] = {}
    readers: dict[str, tuple[Place, ...]] = {}
    for node in reversed(compiled.get_runtime_model().get_ordered_ops()):
        name = node.get_friendly_name()
        own = own_places(node, names, places) or readers.get(name, ())
        found[name] = own
        for port in node.inputs() if own else ():
            readers.setdefault(port.get_source_output().get_node().get_friendly_name(), own)
    return found


def text_of(node: Any, key: str) -> str:
    """Return what OpenVINO says of a kernel."""
    return str(node.get_rt_info()[key].astype(str))
