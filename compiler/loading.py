"""What `compile` and `load` are given by name: backends with options, model files, saved artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from burnish.compiler.backend import Artifact, Backend, suffixes
from burnish.compiler.errors import FileFormatError, InputError, OptionError
from burnish.compiler.program import Program
from burnish.compiler.quiet import quiet
from burnish.compiler.registry import backend_names, find_backend
from burnish.compiler.spec import parse_spec

__all__ = ["Model", "load", "open_model", "parse_backend"]

Model = torch.nn.Module | ExportedProgram | Program | str | os.PathLike[str]


def parse_backend(text: str) -> tuple[Backend, dict[str, Any]]:
    """Return the backend and the options that `text` names, as in `"onnx{threads=2}"`.

    Raises:
        BackendError: no such backend.
        OptionError: the text is no name with options.
    """
    if not isinstance(text, str):
        raise OptionError(f"backend must be a name such as 'onnx', not {type(text).__name__}")
    items = parse_spec(text)
    if len(items) != 1 or items[0].body is not None:
        raise OptionError(f"backend must be one name with options, as in 'onnx{{threads=2}}', not {text!r}")
    nameless = [value for name, value in items[0].options if name is None]
    if nameless:
        raise OptionError(f"an option of a backend is written name=value, not {nameless[0]!r}")
    return find_backend(items[0].name), {str(name): value for name, value in items[0].options}


def open_model(model: Model) -> torch.nn.Module | ExportedProgram | Program:
    """Return `model`, read from its file where it is a path.

    Raises:
        InputError: it is no model, or no file of a known kind.
        FileFormatError: the file is truncated or foreign.
    """
    if isinstance(model, (torch.nn.Module, ExportedProgram, Program)):
        return model
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.suffix == ".burnish":
            return Program.load(path)
        if path.suffix == ".pt2":
            try:
                with quiet():
                    return torch.export.load(path)
            except Exception as error:
                raise FileFormatError(f"{path}: not an exported program: {error}") from error
        raise InputError(f"{path}: a model file is a .burnish (Program.save) or a .pt2 (torch.export.save)")
    raise InputError(f"a model is an nn.Module, an ExportedProgram, a Program or a path, not {type(model).__name__}")


def load(path: str | os.PathLike[str], **options: Any) -> Program | Artifact:
    """Load what `Program.save` or `Compiled.save` wrote; needs no model source.

    Args:
        path: a file with one of the endings .burnish, .onnx, .pt, .engine and .trtbundle; or the folder of a
            partitioned model.
        options: of the backend that runs the file, `runtime="openvino"` for one; a Program takes none.

    Raises:
        InputError: no such file.
        OptionError: the backend has no such option, or not with this value.
        FileFormatError: the file is truncated, foreign, or of a kind that no backend reads.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"a file is named by a path, not by {type(path).__name__}")
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file}: no such file")
    if file.suffix == ".burnish":
        if options:
            raise OptionError(f"{file}: a Program is loaded without options, so without {', '.join(options)}")
        return Program.load(file)
    backends = {suffix: name for name in backend_names() for suffix in suffixes(find_backend(name))}
    # A folder's name may have a point in it.
    suffix = "" if file.is_dir() else file.suffix
    if suffix not in backends or (suffix == "") != file.is_dir():
        known = sorted(each for each in backends if each)
        raise FileFormatError(f"{file}: the ending must be one of .burnish, {', '.join(known)}")
    return find_backend(backends[suffix]).load(file, options)
