"""The names that burnish promises."""

from __future__ import annotations

import inspect

import burnish
import burnish.testing

NAMES = [
    "BackendError", "BurnishError", "CaptureError", "Compiled", "Context", "Exact", "Fact", "FileFormatError",
    "InputError", "Lossy", "MissingDependencyError", "OptionError", "Pass", "PassError", "Pipeline", "PipelineError",
    "Program", "Reassociates", "Rewriter", "Sensitivity", "TextError", "VerificationError", "capture", "compile",
    "load", "register_backend", "register_pass", "rule", "sensitivity",
]  # fmt: skip


def test_the_list_of_names() -> None:
    assert sorted(burnish.__all__) == NAMES
    assert callable(burnish.testing.assert_golden)


def test_every_public_name_is_documented() -> None:
    for name in NAMES:
        assert inspect.getdoc(getattr(burnish, name)), name


def test_all_errors_derive_from_one() -> None:
    errors = [getattr(burnish, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, burnish.BurnishError) for error in errors)


def test_the_program_and_pipeline_surface() -> None:
    for name in ("graphs", "print", "parse", "save", "load", "parameter_count", "cost", "__call__"):
        assert hasattr(burnish.Program, name) or name in burnish.Program.__dataclass_fields__
    assert list(inspect.signature(burnish.capture).parameters) == ["model", "inputs", "dynamic_shapes"]
    assert list(inspect.signature(burnish.compile).parameters) == [
        "model", "passes", "inputs", "dynamic_shapes", "backend", "calibration", "verify", "progress", "seed",
    ]  # fmt: skip
    assert inspect.signature(burnish.compile).parameters["backend"].default == "onnx"
