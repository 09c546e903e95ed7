"""Partition: one graph in stages, for devices that work at the same time."""

from burnish.passes.partition.devices import Device
from burnish.passes.partition.partition import Partition

__all__ = ["Device", "Partition"]
