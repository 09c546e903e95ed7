"""The ONNX backend: `torch.onnx` translates, ONNX Runtime runs."""

from burnish.backends.onnx.artifact import OnnxArtifact
from burnish.backends.onnx.backend import OnnxBackend

__all__ = ["OnnxArtifact", "OnnxBackend"]
