"""Early exits: easy samples leave a network before its end."""

from burnish.passes.exits.calibrate import CalibrateExits
from burnish.passes.exits.insert import InsertExits

__all__ = ["CalibrateExits", "InsertExits"]
