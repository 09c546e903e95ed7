"""The targets of `burnish check` by name, what each finds in a graph, and how a Program is lowered for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
import torch

from burnish.backends.onnx.check import findings as onnx_findings
from burnish.backends.onnx.emit import lower
from burnish.backends.onnx.files import read_unchecked
from burnish.backends.onnx.model import model_of
from burnish.backends.onnx.settings import DEFAULT_OPSETS, OPSETS
from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.runtimes import onnxruntime_findings, openvino_findings
from burnish.backends.readiness.standard import opset_findings, standard_findings
from burnish.backends.readiness.table import Table, releases, table_of
from burnish.backends.readiness.tensorrt import tensorrt_findings
from burnish.backends.readiness.tensorrt_shapes import Range
from burnish.compiler.backend import Finding
from burnish.compiler.binding import Binding
from burnish.compiler.errors import OptionError
from burnish.compiler.program import Program

__all__ = ["Target", "graph_of_file", "sample_ranges", "target_names"]

_TENSORRT, _OPSET = "tensorrt-", re.compile(r"opset-(\d+)")
_DIALECTS = {"onnxruntime": "ort", "openvino": "openvino"}
_OLDEST_OPSET = 7
_NEWEST_OPSET = onnx.defs.onnx_opset_version()


def target_names() -> list[str]:
    """Return the names that `Target.parse` takes; of opsets only the form."""
    return [*(f"{_TENSORRT}{each}" for each in (*releases(), "11")), *_DIALECTS, "opset-N"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a graph shall run.

    Attributes:
        name: as the user gave it.
        table: what a release of TensorRT takes; None for other targets.
        opset: the newest opset of a plain reader; None for other targets.
    """

    name: str
    table: Table | None = None
    opset: int | None = None

    @staticmethod
    def parse(name: str) -> Target:
        """Return the target called `name`.

        Raises:
            OptionError: there is none; the message lists them.
        """
        opset = _OPSET.fullmatch(name)
        if opset is not None and _OLDEST_OPSET <= int(opset[1]) <= _NEWEST_OPSET:
            return Target(name, opset=int(opset[1]))
        if name.startswith(_TENSORRT):
            return Target(name, table=table_of(name.removeprefix(_TENSORRT)))
        if name in _DIALECTS:
            return Target(name)
        raise OptionError(
            f"no target is called {name!r}; there are {', '.join(target_names())} (N from {_OLDEST_OPSET} to"
            f" {_NEWEST_OPSET})"
        )

    def findings(self, graph: Graph, ranges: Mapping[str, Range]) -> list[Finding]:
        """Return what the target does not take of `graph`, in the order of its nodes within each rule.

        Where nodes break rules of ONNX itself these are all: nothing else can be said of such a graph.

        Args:
            graph: what to look at.
            ranges: sizes of dynamic dimensions by symbol; TensorRT's optimization profile.

        Raises:
            OptionError: `ranges` names no size of the graph, or the target has no profiles.
            MissingDependencyError: the runtime that must be asked is not installed.
        """
        if ranges and self.table is None:
            raise OptionError(f"--profile: {self.name} takes every size; only TensorRT has profiles")
        found = list(standard_findings(graph))
        if any(each.rule == "onnx" for each in found):
            return found
        if self.table is not None:
            return [*found, *tensorrt_findings(graph, self.table, ranges)]
        if self.opset is not None:
            return [*found, *opset_findings(graph, self.opset)]
        return [*found, *(onnxruntime_findings if self.name == "onnxruntime" else openvino_findings)(graph)]

    def lowered(self, program: Program, name: str) -> tuple[Graph | None, list[Finding]]:
        """Return the ONNX graph of `program` for this target, or what ONNX cannot express of it.

        Args:
            program: what to lower; it is not changed, and no pass runs.
            name: of its file, for messages.

        Raises:
            OptionError: burnish does not write the target's opset.
            BackendError: the program cannot be lowered; names the node.
        """
        opset, standard = self._written()
        missing = list(onnx_findings(program, opset))
        if missing:
            return None, [replace(each, rule="onnx") for each in missing]
        with torch.no_grad():
            model = model_of(lower(program, opset, standard), Binding.of(program), program.constants)
        return Graph.of(model.graph, model.weights, name), []

    def _written(self) -> tuple[int, bool]:
        """Return the opset in which a Program is written for this target, and whether without contrib operators."""
        if self.table is not None:
            return DEFAULT_OPSETS["tensorrt"], True
        if self.opset is not None:
            if self.opset not in OPSETS:
                raise OptionError(
                    f"{self.name}: a program is lowered to opsets {OPSETS[0]} to {OPSETS[-1]}; an .onnx from elsewhere"
                    " can be checked for any"
                )
            return self.opset, True
        dialect = _DIALECTS[self.name]
        return DEFAULT_OPSETS[dialect], dialect != "ort"


def graph_of_file(path: str) -> Graph:
    """Read an ONNX file, whatever rules of ONNX it breaks.

    Raises:
        FileFormatError: the file is truncated, foreign, or no graph at all.
    """
    model, weights = read_unchecked(path)
    return Graph.of(model, weights, path)


def sample_ranges(program: Program, graph: Graph) -> dict[str, Range]:
    """Return a profile from the sizes of a Program's example inputs: up to those, tuned for those; {} without any."""
    found: dict[str, Range] = {}
    for name in graph.main.inputs():
        sample = program.samples.get(name)
        for index, size in enumerate(graph.main.shape(name) or ()):
            symbol = f"{name}.{index}" if size == "" else str(size)
            if isinstance(size, int) or not (size == "" or size.isidentifier()):
                continue
            if isinstance(sample, torch.Tensor) and sample.dim() > index:
                usual = int(sample.shape[index])
                found.setdefault(symbol, Range(min(1, usual), usual, usual))
    return found
