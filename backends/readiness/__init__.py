"""Whether a graph will run on a target: by tables for TensorRT, and by asking the other runtimes themselves."""

from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.targets import Target, graph_of_file, sample_ranges, target_names
from burnish.backends.readiness.tensorrt_shapes import Range

__all__ = ["Graph", "Range", "Target", "graph_of_file", "sample_ranges", "target_names"]
