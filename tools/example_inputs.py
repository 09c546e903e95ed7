"""Inputs for a run that the user did not write in Python: `--input TYPE`, a `.npz`, or the calling convention.

Values are seeded and depend on the name of the input, floats normal, integers 0 or 1 (most are indices).
NumPy has no bfloat16: a `.npz` holds such tensors as float32.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.compiler.atomic import atomic_path
from burnish.compiler.binding import Binding, InputType
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import FileFormatError, InputError, OptionError
from burnish.compiler.text_data import random_sample
from burnish.compiler.types_text import DTYPES

__all__ = ["example_inputs", "inputs_for", "read_arrays", "read_npz", "write_npz"]

_SPEC = re.compile(r"(?:(?P<name>[^:\[\]\s]+):)?(?P<dtype>\w+)\[(?P<sizes>\s*(?:\d+\s*(?:,\s*\d+\s*)*)?)\]")
_DYNAMIC_SIZE = 2


@dataclass(frozen=True, slots=True)
class _Spec:
    """One `--input`: the name where given, element type and sizes."""

    name: str | None
    dtype: torch.dtype
    shape: tuple[int, ...]

    @staticmethod
    def parse(text: str) -> _Spec:
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise OptionError(f"--input {text!r} is no type: write 'f32[2,3,224,224]' or 'input_ids:i64[2,16]'")
        if match["dtype"] not in DTYPES:
            raise OptionError(f"--input {text!r}: no dtype is called {match['dtype']!r} (f32, f16, i64, b1, ...)")
        sizes = tuple(int(size) for size in match["sizes"].split(",") if size.strip())
        return _Spec(match["name"], DTYPES[match["dtype"]], sizes)

    def value(self, name: str, seed: int) -> torch.Tensor:
        try:
            return random_sample(name, self.dtype, self.shape, seed)
        except (RuntimeError, NotImplementedError) as error:
            raise OptionError(f"--input: cannot make random values of {self.dtype}: {error}") from error


def example_inputs(texts: Sequence[str], seed: int) -> Inputs | None:
    """Return the example inputs that `--input` options describe: a dict when they are named; None without any.

    Raises:
        OptionError: one is no type, or some are named and some are not.
    """
    specs = [_Spec.parse(text) for text in texts]
    if not specs:
        return None
    named = [spec.name for spec in specs if spec.name is not None]
    if named and len(named) < len(specs):
        raise OptionError("--input: name all inputs, or none")
    if len(set(named)) < len(named):
        raise OptionError("--input: two inputs have the same name")
    if named:
        return {str(spec.name): spec.value(str(spec.name), seed) for spec in specs}
    return tuple(spec.value(f"input_{index}", seed) for index, spec in enumerate(specs))


def inputs_for(
    binding: Binding, texts: Sequence[str], seed: int, samples: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return seeded random inputs by name for something that is called as `binding` says.

    Args:
        binding: the calling convention.
        texts: `--input` options; they give the sizes of dynamic dimensions, by name or in order.
        seed: of the random values.
        samples: example inputs, whose sizes stand in for dynamic ones; otherwise those are 2.

    Raises:
        OptionError: an option is no type, or there is no such input.
    """
    names = list(binding.types)
    given: dict[str, _Spec] = {}
    for index, spec in enumerate(map(_Spec.parse, texts)):
        name = spec.name if spec.name is not None else names[index] if index < len(names) else f"number {index + 1}"
        if name not in binding.types:
            raise OptionError(f"--input: there is no input {name!r}; the inputs are {', '.join(names)}")
        given[name] = spec
    samples = samples or {}
    return {
        name: given[name].value(name, seed) if name in given else _value(name, each, seed, samples.get(name))
        for name, each in binding.types.items()
    }


def read_npz(path: Path, binding: Binding) -> dict[str, Any]:
    """Read the inputs by name from a `.npz`.

    Raises:
        InputError: an input is missing or unknown.
        FileFormatError: the file is truncated or foreign, or holds Python objects.
    """
    arrays = read_arrays(path)
    wanted = list(binding.types)
    if set(arrays) != set(wanted):
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}, and the inputs are {', '.join(wanted)}")
    return {name: _from_array(name, arrays[name], each) for name, each in binding.types.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read a `.npz`.

    Raises:
        InputError: there is no such file.
        FileFormatError: the file is truncated or foreign, or holds Python objects.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if not zipfile.is_zipfile(path):
            raise FileFormatError(f"{path} is no .npz file, or is truncated")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def write_npz(path: Path, values: Mapping[str, Any]) -> None:
    """Write tensors and numbers by name to a `.npz`; an interrupted write leaves an old file whole."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: _to_array(value) for name, value in values.items()})


def _value(name: str, wanted: InputType, seed: int, sample: Any) -> Any:
    if wanted.dtype is None:
        return _DYNAMIC_SIZE if sample is None else sample
    fits = isinstance(sample, torch.Tensor) and sample.dim() == len(wanted.shape)
    sizes = list(sample.shape) if fits else [_DYNAMIC_SIZE] * len(wanted.shape)
    shape = tuple(size if isinstance(size, int) else sizes[index] for index, size in enumerate(wanted.shape))
    return random_sample(name, wanted.dtype, shape, seed)


def _from_array(name: str, array: np.ndarray[Any, Any], wanted: InputType) -> Any:
    if wanted.dtype is None:
        if array.ndim:
            raise InputError(f"input {name!r} must be a number, but is an array of shape {list(array.shape)}")
        return array.item()
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    except TypeError as error:
        raise InputError(f"input {name!r}: PyTorch has no element type {array.dtype}") from error
    return tensor.to(wanted.dtype) if wanted.dtype is torch.bfloat16 and tensor.dtype is torch.float32 else tensor


def _to_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype is torch.bfloat16 else value).numpy())
    return np.asarray(value)
