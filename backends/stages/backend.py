"""StagesBackend: a folder with a Program for each stage; and it loads the folders of all backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from burnish.backends.stages.artifact import StagedArtifact
from burnish.backends.stages.eager import EagerArtifact
from burnish.backends.stages.plan import MANIFEST, Stage, Stages
from burnish.compiler.backend import Artifact, Finding
from burnish.compiler.context import Target
from burnish.compiler.errors import BackendError, FileFormatError
from burnish.compiler.loading import load
from burnish.compiler.options import check_options
from burnish.compiler.pipeline import Pipeline
from burnish.compiler.program import Program
from burnish.compiler.stages import stage_programs
from burnish.compiler.structure import leaf_names

__all__ = ["StagesBackend"]

_PROGRAM = ".burnish"


class StagesBackend:
    """Keeps stages as Programs: for `burnish run-stages`, which can train them."""

    name: ClassVar[str] = "stages"
    suffix: ClassVar[str] = ""

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return what passes may know of where the Program will run."""
        return Target(name=self.name)

    def default_passes(self, options: Mapping[str, Any]) -> Pipeline:
        """Return passes that leave a Program trainable."""
        check_options(self.name, options, {})
        return Pipeline.parse("canonicalize,cse,dce")

    def check(self, program: Program) -> list[Finding]:
        """Return nothing: eager PyTorch runs every operator."""
        return []

    def emit(self, program: Program, options: Mapping[str, Any]) -> StagedArtifact:
        """Keep every stage as a Program.

        Raises:
            OptionError: an option is given.
            BackendError: the Program has no stages.
        """
        check_options(self.name, options, {})
        if len(program.graphs) < 2:
            raise BackendError("the program has no stages: put partition into the passes, as in 'default,partition'")
        parts: list[Artifact] = [EagerArtifact(stage) for stage in stage_programs(program).values()]
        return StagedArtifact(Stages.of(program, _PROGRAM), parts, program.samples)

    def load(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> StagedArtifact:
        """Load a folder that an artifact of this or another backend saved.

        Args:
            path: the folder.
            options: of the backend of the stages.

        Raises:
            InputError: it is no such folder, or a file is missing.
            FileFormatError: a file is truncated or foreign.
        """
        stages = Stages.read(Path(path))
        # Where a folder holds Programs among other files, the options are of these.
        mixed = any(not stage.file.endswith(_PROGRAM) for stage in stages.stages)
        given = [{} if mixed and stage.file.endswith(_PROGRAM) else options for stage in stages.stages]
        parts = [_part(Path(path), stage, each) for stage, each in zip(stages.stages, given, strict=True)]
        return StagedArtifact(stages, parts)


def _part(folder: Path, stage: Stage, options: Mapping[str, Any]) -> Artifact:
    file = folder / stage.file
    found = load(file, **options)
    artifact = EagerArtifact(found) if isinstance(found, Program) else found
    binding = artifact.binding
    if (tuple(leaf_names(binding.inputs)), tuple(leaf_names(binding.outputs))) != (stage.inputs, stage.outputs):
        raise FileFormatError(f"{file}: not the {stage.name} of {MANIFEST}")
    return artifact
