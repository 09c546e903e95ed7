"""The torchscript backend."""

from burnish.backends.torchscript.artifact import TorchScriptArtifact
from burnish.backends.torchscript.backend import TorchScriptBackend

__all__ = ["TorchScriptArtifact", "TorchScriptBackend"]
