"""Save a Program in one file, and load it in a process that has no model source.

The file is a safetensors file: constants are tensors named `constant/NAME`, tensor samples `sample/NAME`; its metadata
hold the format's version, the text form, and as JSON the provenance, the other samples, the notes and warnings,
which names share a tensor, and the order of dimensions in memory of tensors that are not contiguous. Nothing in it is
ever executed.

Not handled: dtypes that safetensors cannot hold (complex128, quantized tensors); checksums of the weights; and
tensors that overlap in part are saved apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import fx

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import FileFormatError, TextError
from burnish.compiler.graphs import name_of
from burnish.compiler.parser import parse_with_samples
from burnish.compiler.printer import print_program
from burnish.compiler.program import Program
from burnish.compiler.provenance import Origin, Provenance, provenance_of, set_provenance
from burnish.compiler.text_types import memory_order

__all__ = ["load_program", "save_program"]

_VERSION = "1"
_KEY = "burnish"
_CONSTANT, _SAMPLE = "constant/", "sample/"
_NUMBERS = (bool, int, float, str, type(None))
_STORABLE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool}
    | {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu}
)


def save_program(program: Program, path: str | os.PathLike[str]) -> None:
    """Write `program` to `path`; an interrupted save leaves the old file whole.

    Raises:
        FileFormatError: a constant or sample cannot be stored; the message names it.
        InputError: the file cannot be written.
    """
    named = {f"{_CONSTANT}{name}": value for name, value in program.used_constants().items()}
    named |= {f"{_SAMPLE}{name}": each for name, each in program.samples.items() if isinstance(each, torch.Tensor)}
    numbers = {name: each for name, each in program.samples.items() if not isinstance(each, torch.Tensor)}
    for name, value in numbers.items():
        if not isinstance(value, _NUMBERS):
            raise FileFormatError(f"{path}: sample {name!r} is a {type(value).__name__}, which a file cannot hold")
    tensors, same, orders = _storable(named, path)
    metadata = {
        _KEY: _VERSION,
        "text": print_program(program),
        "provenance": json.dumps({name: _dump_provenance(graph) for name, graph in program.all_graphs()}),
        "samples": json.dumps(numbers),
        "notes": json.dumps(program.notes),
        "warnings": json.dumps(program.warnings),
        "same": json.dumps(same),
        "orders": json.dumps(orders),
    }
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # its own kind of error, for a full disk too
            raise OSError(str(error)) from error
        temporary.chmod(mode)  # safetensors makes files that only their owner may read


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a Program that `save_program` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, foreign, of an unknown version, or contradicts itself.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise FileFormatError(f"{path} is a safetensors file, but not of a burnish Program")
            if metadata[_KEY] != _VERSION:
                version = metadata[_KEY][:20]
                raise FileFormatError(f"{path} has format version {version!r}: this burnish reads {_VERSION!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return _assemble(metadata, tensors)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} is not a burnish file, or is truncated: {error}") from error
    except TextError as error:
        raise FileFormatError(f"{path}: the program in it cannot be read: {error}") from error
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileFormatError(f"{path} is damaged: {reason}") from error


def _storable(
    named: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, list[int]]]:
    """Return contiguous tensors of their own, the names that share one with an earlier name, and dimension orders."""
    tensors: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    orders: dict[str, list[int]] = {}
    first: dict[Any, str] = {}
    storages: set[int] = set()
    for name, value in named.items():
        if value.dtype not in _STORABLE or value.layout is not torch.strided:
            kind = f"{value.dtype}, {value.layout}"
            raise FileFormatError(f"{path}: {name} is a tensor of {kind}, which safetensors cannot hold: convert it")
        if value.device.type == "meta":
            raise FileFormatError(f"{path}: {name} has no data (device meta): load the weights before saving")
        plain = value.detach()
        address = plain.untyped_storage().data_ptr()
        if plain.numel():
            key = (plain.data_ptr(), plain.dtype, tuple(plain.shape), plain.stride())
            if first.setdefault(key, name) != name:
                same[name] = first[key]
                continue
        if not plain.is_contiguous():
            order = memory_order(plain)
            if order is not None:
                orders[name], plain = order, plain.permute(order)
        # Two tensors in one storage would be refused, so the second gets a copy.
        tensors[name] = (
            plain.contiguous() if address not in storages else plain.clone(memory_format=torch.contiguous_format)
        )
        storages.add(address)
    return tensors, same, orders


def _assemble(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Program:
    orders, same = _table(metadata, "orders"), _table(metadata, "same")
    for name, order in orders.items():
        tensors[name] = tensors[name].permute([order.index(index) for index in range(len(order))])
    for name, first in same.items():
        tensors[name] = tensors[first]
    constants = _named(tensors, _CONSTANT)
    samples: dict[str, Any] = _named(tensors, _SAMPLE)
    numbers = _table(metadata, "samples")
    if not all(isinstance(value, _NUMBERS) for value in numbers.values()):
        raise ValueError("a sample is neither a tensor nor a number")
    samples |= numbers
    program = parse_with_samples(metadata["text"], constants, samples)
    missing = [name for name in program.constants if name not in constants]
    if missing:
        raise ValueError(f"constant {missing[0]!r} is missing")
    unknown = [name for name in samples if name not in program.signature.input_names]
    if unknown:
        raise ValueError(f"sample {unknown[0]!r} is of no input")
    program.samples = {name: samples[name] for name in program.signature.input_names if name in samples}
    program.notes, program.warnings = (_lines(metadata, key) for key in ("notes", "warnings"))
    _check_samples(program)
    provenance = _table(metadata, "provenance")
    for name, graph in program.all_graphs():
        _load_provenance(graph, provenance[name])
    return program


def _lines(metadata: Mapping[str, str], key: str) -> tuple[str, ...]:
    found = json.loads(metadata.get(key, "[]"))
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"the {key} are not a list of strings")
    return tuple(found)


def _table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    found = json.loads(metadata[key])
    if not isinstance(found, dict):
        raise ValueError(f"{key!r} in the metadata is not a JSON object")
    return found


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_samples(program: Program) -> None:
    for graph in program.graphs.values():
        for node in graph.find_nodes(op="placeholder"):
            wanted, sample = node.meta["val"], program.samples.get(str(node.target))
            if sample is None:
                continue
            if isinstance(wanted, torch.Tensor) != isinstance(sample, torch.Tensor):
                raise ValueError(f"sample {node.target!r} is a {type(sample).__name__}")
            if isinstance(sample, torch.Tensor) and (
                sample.dtype != wanted.dtype
                or sample.dim() != wanted.dim()
                or any(
                    isinstance(size, int) and size != got for size, got in zip(wanted.shape, sample.shape, strict=True)
                )
            ):
                raise ValueError(f"sample {node.target!r} has another type than its input")


def _dump_provenance(graph: fx.Graph) -> dict[str, Any]:
    """Return a table of origins, and for every node its origins by index and its maker."""
    origins: dict[Origin, int] = {}
    nodes: dict[str, Any] = {}
    for node in graph.nodes:
        found = provenance_of(node)
        if found is not None:
            indices = [origins.setdefault(origin, len(origins)) for origin in found.origins]
            nodes[_key(node)] = [indices, found.made_by]
    table = [[each.module, each.kind, each.file, each.line, each.code] for each in origins]
    return {"origins": table, "nodes": nodes}


def _load_provenance(graph: fx.Graph, saved: dict[str, Any]) -> None:
    origins = [_origin(*row) for row in saved["origins"]]
    nodes = saved["nodes"]
    for node in graph.nodes:
        if _key(node) in nodes:
            indices, made_by = nodes[_key(node)]
            set_provenance(node, Provenance(tuple([origins[index] for index in indices]), str(made_by)))


def _origin(module: str, kind: str, file: str, line: int, code: str) -> Origin:
    return Origin(str(module), str(kind), str(file), int(line), str(code))


def _key(node: fx.Node) -> str:
    if node.op == "output":
        return "return"
    return (
        f"@{node.target}" if node.op == "get_attr" else f"%{node.target if node.op == 'placeholder' else name_of(node)}"
    )
