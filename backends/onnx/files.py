"""Save and load: one `.onnx` file that any ONNX tool reads, with the calling convention in its metadata.

Above `MAX_INLINE` bytes, which protobuf cannot hold, the weights go to one file beside: `model.data` for `model.onnx`
(`model.1.data` where that is taken, so that the old pair stays whole until the new `.onnx` has replaced the old).
State inputs have their initial value as an initializer of the same name: an optional input, in ONNX's terms.

A file from elsewhere is loaded with its inputs as positional or named arguments, in the graph's order, and with a
tensor or a tuple of tensors as its result. Not handled there: inputs and outputs that are no tensors.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from burnish.backends.onnx.model import DTYPES, INLINE_BYTES, METADATA, RUNTIMES, Convention, Model
from burnish.compiler.atomic import atomic_path
from burnish.compiler.binding import Binding, InputType
from burnish.compiler.errors import BackendError, FileFormatError
from burnish.compiler.structure import Container, Leaf, Structure

__all__ = ["MAX_INLINE", "complete", "load_model", "read_unchecked", "save_model"]

MAX_INLINE = 2_000_000_000
"""Bytes of a file up to which the weights are inside it."""

_ALIGNMENT = 4096
# Key of the runtime in the metadata of a file that is not for the first of them.
_RUNTIME = "burnish.runtime"


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Write `model`; an interrupted save leaves the old file, and what it refers to, whole."""
    final = Path(path)
    old = _data_of(final)
    if model.bytes() <= MAX_INLINE:
        _write(complete(model), final)
    else:
        names = (f"{final.stem}.{index}.data" if index else f"{final.stem}.data" for index in itertools.count())
        data = next(each for each in map(final.with_name, names) if not each.exists())
        with atomic_path(data) as temporary:
            graph = _write_data(model, temporary, data.name)
        _write(graph, final)
    for each in old:
        each.unlink(missing_ok=True)


def complete(model: Model) -> onnx.ModelProto:
    """Return the whole model as one protobuf.

    Raises:
        BackendError: it is larger than protobuf can hold.
    """
    if model.bytes() > MAX_INLINE:
        raise BackendError(f"the model has {model.bytes()} bytes, more than one protobuf can hold")
    proto = _with_convention(model)
    for each in proto.graph.initializer:
        if each.name in model.weights:
            del each.external_data[:]
            each.ClearField("data_location")
            each.raw_data = _bytes(model.weights[each.name])
    return proto


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model; weights in a file beside are mapped, not read.

    Raises:
        FileFormatError: the file is truncated or not ONNX, or the file of its weights is missing or too short.
    """
    file = Path(path)
    proto = _proto(file)
    try:
        return _read(proto, file)
    except ValueError as error:  # text that is not UTF-8, a number that fits nowhere
        raise FileFormatError(f"{file}: damaged: {error}") from error


def read_unchecked(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, dict[str, torch.Tensor]]:
    """Read a graph that may break rules of ONNX, and the data of its large initializers, mapped where they can be.

    Raises:
        FileFormatError: the file is truncated or not ONNX, or the file of its weights is missing or too short.
    """
    file = Path(path)
    proto = _proto(file)
    try:
        return proto, _take_weights(proto, file)
    except ValueError as error:
        raise FileFormatError(f"{file}: damaged: {error}") from error


def _proto(file: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise FileFormatError(f"{file}: truncated, or not an ONNX file") from error
    except OSError as error:
        raise FileFormatError(f"{file}: cannot be read: {error}") from error
    if not proto.HasField("graph") or not proto.opset_import or not proto.graph.output:
        raise FileFormatError(f"{file}: truncated, or not an ONNX file: it has no graph with outputs")
    return proto


def _read(proto: onnx.ModelProto, file: Path) -> Model:
    entries = {each.key: each.value for each in proto.metadata_props}
    text = entries.pop(METADATA, None)
    if text is None and proto.producer_name == "burnish":
        raise FileFormatError(f"{file}: truncated: it lacks the calling convention that burnish writes")
    weights = _take_weights(proto, file)
    try:
        convention = _foreign(proto) if text is None else Convention.from_json(text)
        _consistent(proto, convention)
    except FileFormatError as error:
        raise FileFormatError(f"{file}: {error}") from error
    runtime = entries.get(_RUNTIME, RUNTIMES[0])
    if runtime not in RUNTIMES:
        raise FileFormatError(f"{file}: made for the runtime {runtime!r}: this burnish knows {', '.join(RUNTIMES)}")
    kept = [each for each in proto.metadata_props if each.key not in (METADATA, _RUNTIME)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    model = Model(proto, weights, convention, _take_initial(proto, weights, convention), runtime)
    try:
        model.check()
    except BackendError as error:
        raise FileFormatError(f"{file}: {error}") from error
    return model


def _with_convention(model: Model) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.graph)
    proto.metadata_props.add(key=METADATA, value=model.convention.to_json())
    if model.runtime != RUNTIMES[0]:
        proto.metadata_props.add(key=_RUNTIME, value=model.runtime)
    for name, value in model.initial.items():
        proto.graph.initializer.append(_tensor(model.convention.state[name][0], value))
    return proto


def _write(proto: onnx.ModelProto, final: Path) -> None:
    data = proto.SerializeToString(deterministic=True)
    with atomic_path(final) as temporary:
        temporary.write_bytes(data)


def _write_data(model: Model, file: Path, name: str) -> onnx.ModelProto:
    proto = _with_convention(model)
    with file.open("wb") as stream:
        for each in proto.graph.initializer:
            if each.name not in model.weights:
                continue
            data = _bytes(model.weights[each.name])
            stream.write(bytes(-stream.tell() % _ALIGNMENT))
            del each.external_data[:]
            place = {"location": name, "offset": str(stream.tell()), "length": str(len(data))}
            for key, value in place.items():
                each.external_data.add(key=key, value=value)
            stream.write(data)
    return proto


def _data_of(model: Path) -> list[Path]:
    """Return the files of weights that a burnish model at `model` refers to: nobody else's file is ever removed."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except (DecodeError, OSError):
        return []
    if proto.producer_name != "burnish":
        return []
    found = {e.value for each in proto.graph.initializer for e in each.external_data if e.key == "location"}
    return [model.with_name(name) for name in sorted(found) if Path(name).name == name]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _tensor(name: str, value: torch.Tensor) -> onnx.TensorProto:
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    return onnx.TensorProto(
        name=name, data_type=numbers[value.dtype], dims=list(value.shape), raw_data=_bytes(value.contiguous())
    )


def _take_weights(proto: onnx.ModelProto, file: Path) -> dict[str, torch.Tensor]:
    """Move the data of large initializers out of `proto`."""
    weights: dict[str, torch.Tensor] = {}
    maps: dict[str, torch.Tensor] = {}
    for each in proto.graph.initializer:
        external = each.data_location == onnx.TensorProto.EXTERNAL
        if not external and (len(each.raw_data) <= INLINE_BYTES or each.data_type not in DTYPES):
            continue
        raw = _external(each, file, maps) if external else torch.frombuffer(bytearray(each.raw_data), dtype=torch.uint8)
        dtype = DTYPES.get(each.data_type)
        if dtype is None:  # float8 and the like, which only ONNX Runtime needs to know
            each.raw_data = _bytes(raw)
            each.ClearField("data_location")
            del each.external_data[:]
            continue
        if raw.numel() != torch.Size(each.dims).numel() * dtype.itemsize:
            raise FileFormatError(f"{file}: the data of {each.name!r} do not have the size of its type: truncated?")
        # torch wants the first element at a multiple of the element's size.
        raw = raw if raw.data_ptr() % dtype.itemsize == 0 else raw.clone()
        weights[each.name] = raw.view(dtype).reshape(list(each.dims))
        each.ClearField("raw_data")
        each.data_location = onnx.TensorProto.EXTERNAL
        del each.external_data[:]
        each.external_data.add(key="location", value="weights")
    return weights


def _external(each: onnx.TensorProto, file: Path, maps: dict[str, torch.Tensor]) -> torch.Tensor:
    place = {entry.key: entry.value for entry in each.external_data}
    location = place.get("location", "")
    # Only a name in the model's own directory: a file must not make us read another.
    if not location or Path(location).name != location:
        raise FileFormatError(f"{file}: the data of {each.name!r} are at {location!r}, which is not beside the file")
    source = file.with_name(location)
    try:
        if location not in maps:
            maps[location] = torch.from_file(str(source), shared=False, size=source.stat().st_size, dtype=torch.uint8)
        start, whole = int(place.get("offset", 0)), maps[location].numel()
        length = int(place.get("length", whole - start))
    except (OSError, RuntimeError, ValueError) as error:
        raise FileFormatError(f"{file}: its weights in {source} cannot be read: {error}") from error
    if start < 0 or length < 0 or start + length > whole:
        raise FileFormatError(f"{file}: its weights in {source} are truncated: {each.name!r} lies beyond the end")
    return maps[location][start : start + length]


def _take_initial(
    proto: onnx.ModelProto, weights: dict[str, torch.Tensor], convention: Convention
) -> dict[str, torch.Tensor]:
    """Move the initial values of the state out of the initializers: the artifact feeds them."""
    names = {ends[0]: buffer for buffer, ends in convention.state.items()}
    initial: dict[str, torch.Tensor] = {}
    kept = []
    for each in proto.graph.initializer:
        if each.name not in names:
            kept.append(each)
            continue
        value = weights.pop(each.name, None)
        if value is None:
            # By its bytes: torch does not take numpy's bfloat16.
            data = onnx.numpy_helper.to_array(each).reshape(-1).view(np.uint8)
            value = torch.from_numpy(data.copy()).view(DTYPES[each.data_type])
        initial[names[each.name]] = value.reshape(list(each.dims))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    if len(initial) != len(names):
        raise FileFormatError("the initial value of a state input is missing")
    return initial


def _foreign(proto: onnx.ModelProto) -> Convention:
    given = {each.name for each in proto.graph.initializer}
    types = {each.name: _type(each) for each in proto.graph.input if each.name not in given}
    outputs = [each.name for each in proto.graph.output]
    for each in proto.graph.output:
        _type(each)
    leaves: list[Structure] = [Leaf(name) for name in outputs]
    result = leaves[0] if len(leaves) == 1 else Container("tuple", (), tuple(leaves))
    args = Container("tuple", (), tuple(Leaf(name) for name in types))
    inputs = Container("tuple", (), (args, Container("dict", (), ())))
    return Convention(Binding(inputs, result, tuple(types), types), {name: name for name in outputs})


def _type(value: onnx.ValueInfoProto) -> InputType:
    kind = value.type
    if not kind.HasField("tensor_type") or kind.tensor_type.elem_type not in DTYPES:
        raise FileFormatError(f"{value.name!r} is no tensor of a type that torch has")
    if not kind.tensor_type.HasField("shape"):
        raise FileFormatError(f"{value.name!r} has no shape")
    sizes = [each.dim_value if each.HasField("dim_value") else None for each in kind.tensor_type.shape.dim]
    return InputType(DTYPES[kind.tensor_type.elem_type], tuple(sizes))


def _consistent(proto: onnx.ModelProto, convention: Convention) -> None:
    """Refuse metadata that speak of inputs and outputs which the graph does not have."""
    inputs = {each.name for each in proto.graph.input}
    outputs = {each.name for each in proto.graph.output}
    state = convention.state.values()
    wanted = {*convention.binding.types, *(ends[0] for ends in state)}
    named = {*convention.outputs.values(), *(ends[1] for ends in state)}
    if not wanted <= inputs or not named <= outputs:
        missing = sorted((wanted - inputs) | (named - outputs))
        raise FileFormatError(f"its calling convention names {', '.join(missing)}, which the graph does not have")
