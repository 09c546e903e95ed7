"""The options of the TensorRT backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burnish.backends.readiness import Range
from burnish.compiler.errors import OptionError
from burnish.compiler.options import check_options

__all__ = ["DTYPES", "Settings"]

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
"""Element types that `dtype` may ask for, by the names that ONNX has for them."""

_LEVELS = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user may choose.

    Attributes:
        profiles: sizes of dynamic dimensions, `["B=1:8:32"]`: least, usual, most. By default those of the sample
            inputs: from 1 up to the sample's, tuned for these. A size in text is written as `burnish check` writes it.
        workspace: MiB of scratch memory that layers may take; 0 is TensorRT's choice, all of the GPU's.
        timing_cache: file that keeps how fast kernels were, so that the next build is short; "" keeps none.
        optimization_level: how long the builder looks for fast kernels, 0 to 5.
        refittable: weights can be replaced in the engine.
        version_compatible: the engine runs in later versions of TensorRT too.
        dtype: what the network must carry, "fp16", "bf16" or "int8"; only an assertion. The passes `precision` and
            `quantize` bring them.
    """

    profiles: tuple[str, ...] = ()
    workspace: int = 0
    timing_cache: str = ""
    optimization_level: int = 3
    refittable: bool = False
    version_compatible: bool = False
    dtype: str = ""

    @staticmethod
    def parse(options: Mapping[str, Any]) -> Settings:
        """Check options given by name.

        Raises:
            OptionError: an option is unknown or has an unusable value; the message lists what is known.
        """
        defaults = {**asdict(Settings()), "profiles": None, "timing_cache": None}
        found = check_options("tensorrt", options, defaults)
        profiles = _profiles(found["profiles"])
        cache = found["timing_cache"] or ""
        usable = isinstance(cache, (str, Path)) and not Path(cache).is_dir() and Path(cache).absolute().parent.is_dir()
        _require("timing_cache", cache, not cache or usable, "a file in a folder that exists")
        _require("workspace", found["workspace"], 0 <= found["workspace"] < 1 << 32, "MiB, 0 (all there is) or more")
        level = found["optimization_level"]
        _require("optimization_level", level, level in _LEVELS, "from 0 to 5")
        dtype = found["dtype"]
        _require("dtype", dtype, not dtype or dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        return Settings(**{**found, "profiles": profiles, "timing_cache": str(cache)})

    def ranges(self) -> dict[str, Range]:
        """Return the profiles that the user gave."""
        return Range.parse(self.profiles)

    def portable(self) -> dict[str, Any]:
        """Return what another machine needs to know of the options, as `parse` and JSON take it."""
        return {**asdict(self), "profiles": list(self.profiles), "timing_cache": ""}


def _profiles(value: Any) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    usable = value is None or (all(isinstance(each, str) for each in given) and isinstance(value, (str, list, tuple)))
    _require("profiles", value, usable, "a list of ranges such as 'B=1:8:32'")
    try:
        least = [(name, each.least) for name, each in Range.parse(given).items()]
    except OptionError as error:
        raise OptionError(f"option 'profiles' of backend 'tensorrt': {error}") from error
    for name, size in least:
        _require("profiles", list(given), size >= 1, f"ranges that begin at 1 or more ({name})")
    return given


def _require(name: str, value: Any, usable: bool, wanted: str) -> None:
    if not usable:
        raise OptionError(f"option {name!r} of backend 'tensorrt' must be {wanted}, not {value!r}")
