"""Reading what the verbs take as MODEL and FILE, and writing Programs.

A MODEL is `package.module:factory`, a `.pt2` or a `.burnish`. A FILE is a `.burnish`, or a program as text, `-` for
text from standard input. Importing `package.module` runs its code, with the current directory first on `sys.path`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.compiler.errors import FileFormatError, InputError, TextError
from burnish.tools.console import print_program

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from burnish.compiler.capture import Inputs
    from burnish.compiler.program import Program

__all__ = ["STDIN", "check_writable", "holds_weights", "read_model", "read_program", "write_program"]

STDIN = "-"
_SAVED = ".burnish"
# Written out: to ask the backends is to import them.
_ARTIFACTS = (".onnx", ".pt", ".engine", ".trtbundle")


def read_model(model: str) -> tuple[nn.Module | ExportedProgram | Program, Inputs | None]:
    """Return the model that `model` names, and the example inputs that its factory gave.

    Raises:
        InputError: no such file, module or factory; or the factory failed or returned no module.
        FileFormatError: the file is truncated or foreign.
    """
    from burnish.compiler.loading import open_model

    if ":" in model and not Path(model).exists():
        return _call_factory(model)
    return open_model(model), None


def read_program(file: str) -> Program:
    """Read a Program from a `.burnish`, a text file, or standard input (`-`).

    Raises:
        InputError: no such file, or a kind that holds no Program.
        FileFormatError: the file is truncated or foreign, or the text is no program; names the line.
    """
    from burnish.compiler.program import Program

    if file != STDIN:
        if not Path(file).is_file():
            raise InputError(f"{file}: {'a folder, not a file' if Path(file).is_dir() else 'no such file'}")
        if file.endswith(_SAVED):
            return Program.load(file)
        if file.endswith(".pt2"):
            raise InputError(f"{file}: make a Program of it first: burnish capture {file} -o FILE.burnish")
        if Path(file).suffix in _ARTIFACTS:
            raise InputError(f"{file}: what a backend made holds no Program: give a .burnish, or its text")
    name = "<stdin>" if file == STDIN else file
    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return Program.parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name} is no program text: it is not UTF-8") from error
    except TextError as error:
        raise FileFormatError(f"{name}:{error}") from error


def holds_weights(file: str) -> bool:
    """Tell whether FILE holds the values of its constants; those of a text are made up."""
    return file.endswith(_SAVED)


def check_writable(output: str | None) -> None:
    """Check that `output` can be a file in an existing folder, before any work is done for it.

    Raises:
        InputError: it is a folder, or in none.
    """
    if output is None:
        return
    if Path(output).is_dir():
        raise InputError(f"{output}: a folder, not a file")
    if not Path(output).absolute().parent.is_dir():
        raise InputError(f"{output}: there is no folder {Path(output).parent}")


def write_program(program: Program, output: str | None) -> None:
    """Save `program` where `output` ends in `.burnish`, else write its text there; without `output`, print the text."""
    from burnish.compiler.atomic import atomic_path

    if output is None:
        print_program(program.print())
    elif output.endswith(_SAVED):
        program.save(output)
    else:
        with atomic_path(output) as temporary:
            temporary.write_text(program.print(), encoding="utf-8")


def _call_factory(model: str) -> tuple[nn.Module, Inputs | None]:
    from torch import nn

    module_name, _, name = model.partition(":")
    if not module_name or not name:
        raise InputError(f"{model}: a factory is written package.module:name")
    factory = _find_factory(model, module_name, name)
    try:
        made = factory()
    except Exception as error:
        raise InputError(f"{model} raised {type(error).__name__}: {error}") from error
    found, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{model} returned {_kind(made)}: it must return a module, or a tuple of a module and its inputs"
        )
    return found, inputs


def _find_factory(model: str, module_name: str, name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = "looked in the current directory, too" if missing else "it was found, and failed"
        raise InputError(f"cannot import {module_name!r} ({reason}): {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise InputError(f"module {module_name!r} has no {name!r}{hint}")
    factory = getattr(module, name)
    from torch import nn

    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(f"{model} is {_kind(factory)}: name a function or class without arguments that returns it")
    return factory


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(each).__name__ for each in value)})"
    return f"an object of type {type(value).__name__}"
