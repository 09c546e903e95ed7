"""What is known of a partitioned model besides its stages: how it is called, and what goes from which stage to which.

Written as `manifest.json` into the folder of a partitioned model, beside a file for each stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from burnish.compiler.binding import Binding
from burnish.compiler.errors import FileFormatError, InputError
from burnish.compiler.expressions import is_unbacked
from burnish.compiler.graphs import output_of, placeholders
from burnish.compiler.program import Program
from burnish.compiler.sizes import expression
from burnish.compiler.structure import leaf_names

__all__ = ["MANIFEST", "Stage", "Stages"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "burnish stages", 1
# Of the name of a file.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage.

    Attributes:
        name: of its graph.
        file: where it is saved, in the folder.
        inputs: names of what it is called with, in order.
        outputs: names of what it returns, in order: a tuple.
    """

    name: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Stages:
    """All stages of a model, in order.

    Attributes:
        binding: how the whole is called.
        stages: the stages.
        batched: names of the inputs and outputs whose dimension 0 is the batch.
        tied: constants that several stages hold copies of, with these stages' numbers.
        data_dependent: names of values that go from stage to stage whose sizes depend on data.
    """

    binding: Binding
    stages: tuple[Stage, ...]
    batched: frozenset[str]
    tied: tuple[tuple[str, tuple[int, ...]], ...] = ()
    data_dependent: tuple[str, ...] = ()

    @staticmethod
    def of(program: Program, suffix: str) -> Stages:
        """Return what is known of a partitioned Program whose stages are saved in files with this ending."""
        graphs = program.graphs.items()
        stages = tuple(
            Stage(
                name,
                f"{name}{suffix}",
                tuple(str(node.target) for node in placeholders(graph)),
                tuple(output_of(graph).args[0]),  # type: ignore[arg-type]
            )
            for name, graph in graphs
        )
        values = {str(node.target): node.meta["val"] for _, graph in graphs for node in placeholders(graph)}
        for _, graph in graphs:
            results: Any = output_of(graph).args[0]
            values |= {name: node.meta["val"] for name, node in results.items()}
        sizes = {name: _batch_of(value) for name, value in values.items()}
        inputs = program.signature.input_names
        batch = next((sizes[name] for name in inputs if sizes.get(name) is not None), None)
        batched = frozenset(name for name, size in sizes.items() if batch is not None and size == batch)
        readers: dict[str, list[int]] = {}
        for index, (_, graph) in enumerate(graphs):
            for node in graph.find_nodes(op="get_attr"):
                if node.target in program.constants:
                    readers.setdefault(str(node.target), []).append(index)
        tied = tuple((name, tuple(found)) for name, found in readers.items() if len(found) > 1)
        return Stages(
            Binding.of(program), stages, batched, tied, tuple(name for name, each in values.items() if _depends(each))
        )

    @cached_property
    def last_readers(self) -> Mapping[str, int]:
        """The number of the last stage that reads a value, by name; that of outputs is the number of stages."""
        found = {name: index for index, stage in enumerate(self.stages) for name in stage.inputs}
        return found | dict.fromkeys(self.outputs, len(self.stages))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the whole."""
        return tuple(dict.fromkeys(leaf_names(self.binding.outputs)))

    def crossing(self, index: int) -> tuple[str, ...]:
        """Return the names of what goes from stage `index` to the next; the model's outputs from the last one.

        What a later stage reads, or the caller gets, is handed on by all between.
        """
        if index == len(self.stages) - 1:
            return self.outputs
        made = [*self.binding.types, *(name for stage in self.stages[: index + 1] for name in stage.outputs)]
        return tuple(name for name in dict.fromkeys(made) if self.last_readers.get(name, -1) > index)

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "binding": self.binding.to_json(),
            "batched": sorted(self.batched),
            "data_dependent": list(self.data_dependent),
            "tied": [[name, list(stages)] for name, stages in self.tied],
            "stages": [
                {"name": each.name, "file": each.file, "inputs": list(each.inputs), "outputs": list(each.outputs)}
                for each in self.stages
            ],
        }
        (folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Stages:
        """Read a manifest.

        Raises:
            InputError: there is none.
            FileFormatError: it is truncated or foreign.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(f"{folder}: no folder of a partitioned model: there is no {MANIFEST}")
        try:
            data = json.loads(path.read_text())
            if data.get("format") != _FORMAT or data.get("version") != _VERSION:
                raise ValueError(f"format {data.get('format')!r}, version {data.get('version')!r}")
            stages = tuple(
                Stage(str(each["name"]), _file(each["file"]), _names(each["inputs"]), _names(each["outputs"]))
                for each in data["stages"]
            )
            tied = tuple((str(name), tuple(int(each) for each in numbers)) for name, numbers in data["tied"])
            names = [_names(data[key]) for key in ("batched", "data_dependent")]
            found = Stages(Binding.from_json(data["binding"]), stages, frozenset(names[0]), tied, names[1])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileFormatError) as error:
            raise FileFormatError(f"{path}: cannot be read: {error}") from error
        if not stages:
            raise FileFormatError(f"{path}: has no stages")
        known = set(found.binding.types)
        for stage in stages:
            missing = set(stage.inputs) - known
            if missing:
                raise FileFormatError(f"{path}: no stage before {stage.name} makes {min(missing)!r}")
            known |= set(stage.outputs)
        missing = set(found.outputs) - known
        if missing:
            raise FileFormatError(f"{path}: no stage makes the output {min(missing)!r}")
        if not found.batched <= known or any(max(numbers, default=0) >= len(stages) for _, numbers in tied):
            raise FileFormatError(f"{path}: names values or stages that there are not")
        return found


def _batch_of(value: Any) -> Any:
    """Return the symbol that dimension 0 of a tensor is, or None."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return None
    size = expression(value.shape[0])
    return size if getattr(size, "is_Symbol", False) else None


def _depends(value: Any) -> bool:
    """Tell whether a size of a tensor depends on data."""
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    symbols = {symbol for size in sizes for symbol in getattr(expression(size), "free_symbols", ())}
    return any(map(is_unbacked, symbols))


def _names(value: Sequence[Any]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("names are a list of texts")
    return tuple(value)


def _file(value: Any) -> str:
    # A manifest names files of its own folder.
    if not isinstance(value, str) or Path(value).name != value or value in ("", "..") or len(value) > _LONGEST:
        raise ValueError(f"{value!r} is no name of a file")
    return value
