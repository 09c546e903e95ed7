"""The few calls into `torch.jit`, its private ones included, with its deprecation warnings kept away.

Nothing here changes a global setting of TorchScript (executor, fuser, profiling).

Cases not handled: a file whose checksums are right and whose TorchScript is made to crash libtorch.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from burnish.compiler.errors import FileFormatError, InputError

__all__ = ["compile_source", "constant_storages", "freeze", "load_module", "operator_count", "save_module"]

_EXTRA = "burnish.json"
_GLOBALS = {"torch": torch, "math": math}


def compile_source(text: str, constants: Mapping[str, Any]) -> torch.jit.ScriptModule:
    """Return a module with the tensors and packed weights of `constants` and the function `text` as its method.

    Raises:
        RuntimeError: TorchScript does not take the source.
    """
    holder = torch.nn.Module()
    for name, value in constants.items():
        if isinstance(value, torch.Tensor):
            holder.register_buffer(name, value)
        else:
            setattr(holder, name, value)
    holder.eval()
    with _silent():
        # Without sharing types, so that two modules with equal attributes may have different methods.
        recursive: Any = torch.jit._recursive
        module: torch.jit.ScriptModule = recursive.create_script_module(holder, lambda _: [], share_types=False)
        private: Any = module
        private._c._define(private._concrete_type, text, _GLOBALS.get)
    return module


def freeze(module: torch.jit.ScriptModule, keep: list[str]) -> torch.jit.ScriptModule:
    """Turn the attributes of `module` other than `keep` into constants.

    TorchScript's own folding stays off: it folds a batch norm behind a linear layer into the wrong dimension.
    """
    with _silent():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(module, preserved_attrs=keep, optimize_numerics=False)
    return frozen


def operator_count(module: torch.jit.ScriptModule) -> int:
    """Return the number of operator calls in the graph of `module`, nested blocks included."""

    def count(block: Any) -> int:
        return sum(
            node.kind().startswith(("aten::", "quantized::")) + sum(count(inner) for inner in node.blocks())
            for node in block.nodes()
        )

    return count(module.graph)


def constant_storages(module: torch.jit.ScriptModule) -> frozenset[int]:
    """Return the addresses of the memory of all constants and attributes of `module`."""
    nodes = module.graph.findAllNodes("prim::Constant", True)  # type: ignore[attr-defined]
    constants = [node.t("value") for node in nodes if "value" in _tensors(node)]
    return frozenset(each.untyped_storage().data_ptr() for each in (*constants, *module.buffers()))


def _tensors(node: Any) -> list[str]:
    return [name for name in node.attributeNames() if node.kindOf(name) == "t"]


def save_module(module: torch.jit.ScriptModule, path: str | os.PathLike[str], description: Any) -> None:
    """Write `module` with `description` (JSON) beside it."""
    # Through memory: libtorch ends the process when it cannot write.
    data = io.BytesIO()
    with _silent():
        torch.jit.save(module, data, _extra_files={_EXTRA: json.dumps(description).encode()})
    Path(path).write_bytes(data.getbuffer())


def load_module(path: str | os.PathLike[str]) -> tuple[torch.jit.ScriptModule, Any]:
    """Read what `save_module` wrote.

    Raises:
        InputError: no such file.
        FileFormatError: the file is truncated, damaged or foreign.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    # libtorch may crash on a damaged file, and does not look at the checksums: Python reads it first.
    description = _read_description(file)
    load: Any = torch.jit.load
    try:
        with _silent():
            return load(os.fspath(file), map_location="cpu"), description
    except Exception as error:
        raise FileFormatError(f"{file}: PyTorch {torch.__version__} cannot load it: {error}") from error


def _read_description(file: Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise FileFormatError(f"{file}: the file is damaged: wrong checksum of {damaged!r}")
            found = [name for name in archive.namelist() if name.endswith(f"/extra/{_EXTRA}")]
            if len(found) != 1:
                raise FileFormatError(f"{file}: the torchscript backend of burnish did not save this file")
            return json.loads(archive.read(found[0]))
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(f"{file}: cannot be read: {error}") from error
    except Exception as error:
        # zipfile raises a dozen kinds of errors on what is no zip file.
        raise FileFormatError(f"{file}: not a TorchScript file, or a truncated one: {error}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
