"""The names of `burnish`, read at the first use of one of them."""

from burnish.compiler.capture import capture
from burnish.compiler.compile import Compiled
from burnish.compiler.compile import compile_model as compile
from burnish.compiler.context import Context
from burnish.compiler.errors import (
    BackendError,
    BurnishError,
    CaptureError,
    FileFormatError,
    InputError,
    MissingDependencyError,
    OptionError,
    PassError,
    PipelineError,
    TextError,
    VerificationError,
)
from burnish.compiler.facts import Fact
from burnish.compiler.loading import load
from burnish.compiler.numerics import Exact, Lossy, Reassociates
from burnish.compiler.pass_base import Pass
from burnish.compiler.pipeline import Pipeline
from burnish.compiler.program import Program
from burnish.compiler.registry import register_backend, register_pass
from burnish.compiler.rewriter import Rewriter, rule
from burnish.passes.quantization.sensitivity import Sensitivity, sensitivity

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
