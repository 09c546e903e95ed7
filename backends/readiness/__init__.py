"""Whether a graph will run on a target, found without it: tables for TensorRT, the runtimes themselves for the others."""

from burnish.backends.readiness.graph import Graph
from burnish.backends.readiness.targets import Target, graph_of_file, sample_ranges, target_names
from burnish.backends.readiness.tensorrt_shapes import Range

__all__ = ["Graph", "Range", "Target", "graph_of_file", "sample_ranges", "target_names"]
