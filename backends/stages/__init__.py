"""Partitioned Programs: a file for each stage, run in turn, in threads, or in processes."""

from burnish.backends.stages.artifact import StagedArtifact, emit_stages

__all__ = ["StagedArtifact", "emit_stages"]
