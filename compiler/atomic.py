"""Write a file, or a directory, beside its place and rename it there, so that the old survives an interrupted write.

A process that is killed may leave a hidden `.NAME.*.tmp` behind. A directory is replaced in two renames: between them
the old one stands beside its place, under such a hidden name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from burnish.compiler.errors import InputError

__all__ = ["atomic_path"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in the same directory, where nothing is yet; what is written there replaces `path` on success.

    On an error what was written is removed, and `path` stays as it was. The data reach the disk before the rename.

    Raises:
        InputError: `path` cannot be written: no such directory, a full disk, a device, a pipe or a socket.
    """
    final = Path(path)
    try:
        with _replacing(final) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{final}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    if final.exists() and not (final.is_file() or final.is_dir()):
        # A rename would put a file in its place: root writing to /dev/null would take that from the whole machine.
        raise OSError(errno.EINVAL, "neither a file nor a directory, so it is not replaced", str(final))
    temporary = _hidden(final)
    try:
        yield temporary
        for each in [temporary, *(temporary.rglob("*") if temporary.is_dir() else ())]:
            _sync(each)
        if temporary.is_dir() and final.is_dir():
            _swap(temporary, final)
        else:
            os.replace(temporary, final)
        _sync(final.parent)
    finally:
        _remove(temporary)


def _hidden(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"


def _swap(new: Path, old: Path) -> None:
    aside = _hidden(old)
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except BaseException:
        os.replace(aside, old)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
