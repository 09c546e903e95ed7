"""burnish: an optimizing graph compiler for PyTorch models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish._api import *

__all__ = [
    "BackendError",
    "BurnishError",
    "CaptureError",
    "Compiled",
    "Context",
    "Exact",
    "Fact",
    "FileFormatError",
    "InputError",
    "Lossy",
    "MissingDependencyError",
    "OptionError",
    "Pass",
    "PassError",
    "Pipeline",
    "PipelineError",
    "Program",
    "Reassociates",
    "Rewriter",
    "Sensitivity",
    "TextError",
    "VerificationError",
    "capture",
    "compile",
    "load",
    "register_backend",
    "register_pass",
    "rule",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    """Read the public names at their first use: `burnish --help` need not wait for PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    from burnish import _api

    globals().update({each: getattr(_api, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
