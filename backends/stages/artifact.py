"""A partitioned model: an artifact for each stage, called like the model.

Stages run one after the other, or, on micro-batches, at the same time in threads: see `pipelined`.

Not handled: stages on several machines; see `distributed`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from burnish.backends.stages.pipelined import run_pipelined
from burnish.backends.stages.plan import MANIFEST, Stages
from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.atomic import atomic_path
from burnish.compiler.backend import Artifact, Backend, refuse_untimed
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.measure import Timing
from burnish.compiler.profile import Profile, ProfileRow
from burnish.compiler.program import Program
from burnish.compiler.stages import stage_programs

__all__ = ["StagedArtifact", "check_folder", "emit_stages", "writable_folder"]

_FILES = (".burnish", ".onnx", ".pt", ".pt2")


def emit_stages(backend: Backend, program: Program, options: Mapping[str, Any]) -> StagedArtifact:
    """Lower every stage of a partitioned Program."""
    parts = [backend.emit(stage, options) for stage in stage_programs(program).values()]
    return StagedArtifact(Stages.of(program, backend.suffix), parts, program.samples)


class StagedArtifact(ArtifactBase):
    """See the module's docstring; made by the backends.

    Args:
        stages: what is known of the whole.
        parts: what runs every stage; their outputs are tuples in the order of `stages`.
        samples: an input per name, for `benchmark` and `profile`; may be empty.
    """

    def __init__(self, stages: Stages, parts: Sequence[Artifact], samples: Mapping[str, Any] | None = None) -> None:
        super().__init__(samples)
        self.stages, self.parts = stages, tuple(parts)

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return self.stages.binding

    @property
    def is_timed(self) -> bool:
        """Whether the time of a call says something: no stage stands for another artifact."""
        return all(getattr(part, "is_timed", True) for part in self.parts)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run stage by stage; same pytree in and out as the model, torch tensors.

        Raises:
            InputError: an argument is missing, left over, or differs from capture in structure, dtype or static size.
        """
        values = self.binding.bind(args, kwargs)
        for index in range(len(self.parts)):
            values = self.run_stage(index, values)
        return self.binding.result(values)

    def run_stage(self, index: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run a stage on values by name; return those that are read behind it, its own outputs among them."""
        stage, last = self.stages.stages[index], self.stages.last_readers
        results = self.parts[index](*(values[name] for name in stage.inputs))
        known = {**values, **dict(zip(stage.outputs, results, strict=True))}
        return {name: value for name, value in known.items() if last.get(name, -1) > index}

    def pipelined(self, *args: Any, micro_batches: int, **kwargs: Any) -> Any:
        """Run on parts of the batch, stages at the same time, each in a thread; returns what a call returns.

        For models that compute every sample by itself: a range of `quantize-dynamic` is that of its part.

        Raises:
            InputError: as in a call, or the batch cannot be split: an output has no batch in dimension 0, or there are
                fewer samples than parts.
        """
        values = self.binding.bind(args, kwargs)
        batches = self.split(values, micro_batches)
        results = run_pipelined(self.run_stage, len(self.parts), batches)
        names = self.stages.outputs
        return self.binding.result({name: torch.cat([each[name] for each in results]) for name in names})

    def split(self, values: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
        """Return inputs by name for each part of the batch.

        Raises:
            InputError: see `pipelined`.
        """
        alone = [name for name in self.stages.outputs if name not in self.stages.batched]
        if alone:
            raise InputError(f"dimension 0 of output {alone[0]!r} is no batch: it cannot be computed in parts")
        batched = {name: value for name, value in values.items() if name in self.stages.batched}
        size = min((len(value) for value in batched.values()), default=0)
        if not isinstance(count, int) or not 1 <= count <= size:
            raise InputError(f"{size} samples cannot be split in {count!r} micro-batches")
        parts = {name: torch.tensor_split(value, count) for name, value in batched.items()}
        return [{**values, **{name: each[index] for name, each in parts.items()}} for index in range(count)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder; an interrupted save leaves an old one whole.

        Raises:
            InputError: it cannot be written.
        """
        with writable_folder(path) as folder:
            self.stages.write(folder)
            for stage, part in zip(self.stages.stages, self.parts, strict=True):
                part.save(folder / stage.file)

    def reset(self) -> None:
        """Put the buffers that a run updates back to their initial values."""
        for part in self.parts:
            part.reset()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        return {name: value for part in self.parts for name, value in part.state().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        for part in self.parts:
            part.restore({name: state[name] for name in part.state()})

    def benchmark(self, inputs: Inputs | None = None, seconds: float = 2.0) -> Timing:
        """Time calls, stage by stage, on `inputs`, by default the sample inputs; updated buffers are put back."""
        for part in self.parts:
            refuse_untimed(part)
        return super().benchmark(inputs, seconds)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of each node of one run, of all stages; updated buffers are put back."""
        args, kwargs = self.arguments(inputs)
        values = self.binding.bind(args, kwargs)
        rows: list[ProfileRow] = []
        with self.undisturbed():
            for index, part in enumerate(self.parts):
                rows += part.profile(tuple(values[name] for name in self.stages.stages[index].inputs))
                values = self.run_stage(index, values)
        return Profile(rows)

    def notes(self) -> list[str]:
        """Return what the user should know of the lowering of every stage."""
        pairs = zip(self.stages.stages, self.parts, strict=True)
        return [f"{stage.name}: {note}" for stage, part in pairs for note in part.notes()]

    def warnings(self) -> tuple[str, ...]:
        """Return what makes a stage unfit for use as it is."""
        return tuple(dict.fromkeys(warning for part in self.parts for warning in part.warnings()))

    def size(self) -> int:
        """Return the bytes of all stages when saved."""
        return sum(part.size() for part in self.parts)

    def node_count(self) -> int:
        """Return the number of operators or kernels in all lowered graphs."""
        return sum(part.node_count() for part in self.parts)


@contextlib.contextmanager
def writable_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new folder, which takes the place of an older one of its kind.

    Raises:
        OptionError: its name is that of a file.
        InputError: something else is there, or it cannot be written.
    """
    check_folder(Path(path))
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary


def check_folder(path: Path) -> None:
    """Check that a folder of a partitioned model can be made, before any work is done for it.

    Raises:
        OptionError: its name is that of a file.
        InputError: something else is there, or there is no folder for it.
    """
    if path.suffix in _FILES:
        raise OptionError(f"{path}: a partitioned model is saved as a folder: give a name without {path.suffix}")
    if path.exists() and not (path / MANIFEST).is_file():
        raise InputError(f"{path}: is there already, and no folder of a partitioned model: it is not replaced")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
