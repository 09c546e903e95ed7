"""Engines and gates in a row: partitioned Programs, each stage on its GPU, and Programs with exits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from burnish.backends.stages import StagedArtifact
from burnish.backends.stages.artifact import writable_folder
from burnish.backends.stages.plan import Stages
from burnish.backends.tensorrt.artifact import TensorRTArtifact
from burnish.backends.tensorrt.bundle import SUFFIX as BUNDLE
from burnish.backends.tensorrt.bundle_artifact import BundleArtifact
from burnish.backends.tensorrt.engine_file import SUFFIX as ENGINE
from burnish.compiler.backend import Artifact

__all__ = ["GATE", "StagedEngines"]

GATE = ".burnish"


class StagedEngines(StagedArtifact):
    """A StagedArtifact that is saved as engines, or, under a name that ends in `.trtbundle`, as bundles.

    Under a name without either ending it is saved as what it is.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder; an interrupted save leaves an old one whole.

        Raises:
            InputError: it cannot be written.
            BackendError: there are no engines, or a bundle was asked of loaded ones.
        """
        bundles = [part for part in self.parts if isinstance(part, BundleArtifact)]
        wanted = Path(path).suffix
        if bundles and wanted == ENGINE:
            bundles[0].refuse(os.fspath(path))
        stages = _with_files(self.stages, self.parts, BUNDLE if bundles or wanted == BUNDLE else ENGINE)
        with writable_folder(path) as folder:
            stages.write(folder)
            for stage, part in zip(stages.stages, self.parts, strict=True):
                part.save(folder / stage.file)


def _with_files(stages: Stages, parts: Sequence[Artifact], suffix: str) -> Stages:
    """Return `stages` with the names of their files: engines end in `suffix`, gates are Programs."""
    pairs = zip(stages.stages, parts, strict=True)
    named = [
        replace(stage, file=f"{stage.name}{suffix if isinstance(part, (TensorRTArtifact, BundleArtifact)) else GATE}")
        for stage, part in pairs
    ]
    return replace(stages, stages=tuple(named))
