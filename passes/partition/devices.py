"""Devices that stages run on, and how they are written in a pipeline: "memory=8G flops=10T bandwidth=500G"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from decimal import Decimal

from burnish.compiler.errors import OptionError

__all__ = ["Device"]

_UNITS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_AMOUNT = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?|inf)([kMGTP]?)")


@dataclass(frozen=True)
class Device:
    """What a stage runs on.

    Attributes:
        memory: bytes that weights and activations may take.
        flops: floating-point operations per second.
        bandwidth: bytes of memory read and written per second.
    """

    memory: float = math.inf
    flops: float = 2e11
    bandwidth: float = 3e10

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            OptionError: one is no positive number.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, (int, float)) or not value >= 1:
                raise OptionError(f"a device's {each.name} must be 1 or more, but is {value!r}")

    def __str__(self) -> str:
        return " ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))

    @staticmethod
    def parse(text: str) -> Device:
        """Return the device that a text describes; what it leaves out has its default.

        Raises:
            OptionError: the text is none.
        """
        known = [each.name for each in fields(Device)]
        found: dict[str, float] = {}
        for part in text.split():
            name, _, amount = part.partition("=")
            match = _AMOUNT.fullmatch(amount)
            if name not in known or name in found or match is None:
                raise OptionError(
                    f"{text!r} is no device: {part!r} should be one of {', '.join(known)}, with an amount in"
                    f" {', '.join(filter(None, _UNITS))} or none of these, as in 'memory=8G flops=10T bandwidth=500G'"
                )
            found[name] = float(Decimal(match[1]).scaleb(_UNITS[match[2]]))
        if not found:
            raise OptionError(f"{text!r} is no device: write 'memory=8G flops=10T bandwidth=500G', or some of these")
        return Device(**found)
