"""What passes run with from a shell: the target of a backend, and calibration data from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.compiler.context import Context
    from burnish.compiler.pipeline import Pipeline

__all__ = ["pass_context", "read_calibration"]


def pass_context(
    passes: str, backend: str | None, calibration: Sequence[Path] | None, seed: int
) -> tuple[Pipeline, Context]:
    """Return the pipeline, and what it runs with.

    Args:
        passes: the pipeline's text; `default` stands for the backend's own passes.
        backend: whose target to run for; none in particular when None.
        calibration: see `read_calibration`.
        seed: everything random derives from it.
    """
    from burnish.compiler.context import Context
    from burnish.compiler.loading import parse_backend
    from burnish.compiler.pipeline import Pipeline

    data = read_calibration(calibration)
    if backend is None:
        return Pipeline.parse(passes), Context(calibration=data, seed=seed)
    found, options = parse_backend(backend)
    context = Context(target=found.target(options), calibration=data, seed=seed)
    return Pipeline.parse(passes, found.default_passes(options)), context


def read_calibration(files: Sequence[Path] | None) -> list[Any] | None:
    """Return the contents of `.npz` files, each a batch of inputs by name; None where there are none.

    With an array called `target` a batch is a pair of the inputs and that.

    Raises:
        InputError: a file does not exist, or holds text.
        FileFormatError: a file is truncated or foreign.
    """
    import torch

    from burnish.compiler.errors import InputError
    from burnish.tools.example_inputs import read_arrays

    if not files:
        return None
    found: list[Any] = []
    for path in files:
        batch: dict[str, Any] = {}
        for name, each in read_arrays(path).items():
            try:
                batch[name] = torch.from_numpy(each)
            except TypeError as error:
                raise InputError(f"{path}: no tensor can hold {name!r}, of NumPy's type {each.dtype}") from error
        target = batch.pop("target", None)
        found.append(batch if target is None else (batch, target))
    return found
