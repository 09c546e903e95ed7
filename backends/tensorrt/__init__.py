"""The TensorRT backend: engines from the ONNX of the dialect `tensorrt`, and bundles to build them elsewhere."""

from burnish.backends.tensorrt.artifact import TensorRTArtifact
from burnish.backends.tensorrt.backend import TensorRTBackend
from burnish.backends.tensorrt.bundle_artifact import BundleArtifact

__all__ = ["BundleArtifact", "TensorRTArtifact", "TensorRTBackend"]
