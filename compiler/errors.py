"""The exceptions that burnish raises.

Every message names what the user can change. Causes are chained (`raise ... from error`), never lost.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BurnishError",
    "CaptureError",
    "FileFormatError",
    "InputError",
    "MissingDependencyError",
    "OptionError",
    "PassError",
    "PipelineError",
    "TextError",
    "VerificationError",
]


class BurnishError(Exception):
    """Base of every error that burnish raises on purpose."""


class CaptureError(BurnishError):
    """The model could not be captured into a graph."""


class InputError(BurnishError):
    """An input, sample or calibration batch has a wrong structure, shape or dtype."""


class OptionError(BurnishError):
    """An option of a pass, a backend or `compile` is unknown or has an unusable value."""


class PipelineError(BurnishError):
    """A pipeline text cannot be parsed, names an unknown pass, or lacks a fact that a pass requires."""


class TextError(BurnishError):
    """A program text cannot be parsed; the message shows the line with the place underlined.

    Attributes:
        line: 1-based line number of the offence.
        column: 1-based column number of the offence.
    """

    def __init__(self, message: str, *, source: str = "", line: int = 0, column: int = 0) -> None:
        self.line = line
        self.column = column
        if line:
            text = source.splitlines()[line - 1] if line <= len(source.splitlines()) else ""
            # A fuzzed line can be megabytes long: show the neighbourhood only.
            start = max(0, column - 60)
            window = text[start : start + 120]
            message = f"{line}:{column}: {message}\n    {window}\n    {' ' * (column - 1 - start)}^"
        super().__init__(message)


class FileFormatError(BurnishError):
    """A file is truncated, foreign, or of an unsupported version."""


class VerificationError(BurnishError):
    """A Program breaks an invariant, or a pass broke its numerics contract.

    Attributes:
        node: display name of the node concerned, or None where no single node is to blame.
    """

    def __init__(self, message: str, *, node: str | None = None) -> None:
        self.node = node
        super().__init__(message)


class PassError(BurnishError):
    """A pass failed or left an invalid Program behind.

    Attributes:
        pass_name: name of the pass.
        position: its 0-based position in the pipeline.
        bundle: directory of the reproducer, or None when it could not be written.
    """

    def __init__(self, message: str, *, pass_name: str, position: int, bundle: str | None = None) -> None:
        self.pass_name = pass_name
        self.position = position
        self.bundle = bundle
        super().__init__(message)


class BackendError(BurnishError):
    """A backend cannot lower, run, save or load a Program."""


class MissingDependencyError(BurnishError):
    """An optional dependency is not installed; the message names the extra that brings it."""
