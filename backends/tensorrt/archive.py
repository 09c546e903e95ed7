"""Files of several parts: a zip archive without compression, `metadata.json` first. Nothing in it is ever executed.

Any zip tool takes the parts out again: the plan of an engine for `trtexec`, the ONNX file of a bundle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from burnish.compiler.atomic import atomic_path
from burnish.compiler.errors import FileFormatError

__all__ = ["Archive", "pack", "unpack", "write_archive"]

_METADATA = "metadata.json"
_VERSION = 1
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, TypeError, AttributeError,
    IndexError, OverflowError, NotImplementedError, RuntimeError, RecursionError, safetensors.SafetensorError,
)  # fmt: skip


class Archive:
    """An archive that is being read.

    Attributes:
        metadata: what `write_archive` was given.
    """

    def __init__(self, archive: zipfile.ZipFile, metadata: dict[str, Any]) -> None:
        self._archive = archive
        self.metadata = metadata

    def read(self, name: str) -> bytes:
        """Return a part."""
        return self._archive.read(name)

    def extract(self, folder: Path, names: Collection[str]) -> None:
        """Write those parts that are there into a folder."""
        for name in set(names) & set(self._archive.namelist()):
            with self._archive.open(name) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

    @staticmethod
    @contextlib.contextmanager
    def open(path: str | os.PathLike[str], kind: str) -> Iterator[Archive]:
        """Open an archive; what its reader stumbles over within the `with` is an error of the file.

        Raises:
            FileFormatError: it is truncated, damaged, foreign, of another kind or of an unknown version.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("its parts are compressed")
                metadata = json.loads(archive.read(_METADATA))
                if metadata["format"] != kind:
                    raise ValueError(f"it is {str(metadata['format'])[:40]!r}, not {kind!r}")
                if metadata["version"] != _VERSION:
                    version = str(metadata["version"])[:20]
                    raise FileFormatError(f"{path}: has format version {version}: this burnish reads {_VERSION}")
                yield Archive(archive, metadata)
        except FileFormatError as error:
            raise error if str(path) in str(error) else FileFormatError(f"{path}: {error}") from error
        except OSError as error:
            raise FileFormatError(f"{path}: cannot be read: {error}") from error
        except _BROKEN as error:
            raise FileFormatError(
                f"{path}: no {kind}, or damaged: {str(error)[:200] or type(error).__name__}"
            ) from error


def write_archive(
    path: str | os.PathLike[str], kind: str, metadata: Mapping[str, Any], parts: Mapping[str, bytes | Path]
) -> None:
    """Write an archive; an interrupted save leaves an old file whole.

    Args:
        path: of the archive.
        kind: what it is, for `Archive.open`.
        metadata: what JSON takes.
        parts: bytes, or the file that holds them, by name.

    Raises:
        InputError: it cannot be written.
    """
    text = json.dumps({"format": kind, "version": _VERSION, **metadata}, indent=1)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, part in {_METADATA: text.encode(), **parts}.items():
            # Without the time: equal content gives equal bytes.
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
                if isinstance(part, Path):
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
                else:
                    target.write(part)


def pack(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as a part."""
    # Two that share memory would be refused.
    return save_tensors(
        {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}
    )


def unpack(part: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a part."""
    return dict(load_tensors(part))
