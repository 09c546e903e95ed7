"""The options of the ONNX backend, and the ONNX Runtime session options that they stand for.

`runtime` chooses what runs the graph; options of the other runtime are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import onnxruntime as ort

from burnish.backends.onnx.model import RUNTIMES
from burnish.compiler.errors import MissingDependencyError, OptionError
from burnish.compiler.options import check_options

__all__ = ["DEFAULT_OPSETS", "OPSETS", "Settings"]

DEFAULT_OPSETS = {"ort": 23, "standard": 20, "openvino": 20, "tensorrt": 20}
"""By dialect: 20 has Gelu and is read everywhere; 23 has RMSNormalization, one kernel in ONNX Runtime."""

OPSETS = range(18, 24)
"""Those that are written."""

_ONLY_ONNX_RUNTIME = ("providers", "profile", "graph_optimization")
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user may choose.

    Attributes:
        opset: version of the ONNX operator set, 18 to 23; by default the dialect's own (`DEFAULT_OPSETS`), and 22 at
            least for a Program in bfloat16.
        dialect: whom the file is for: "ort" may use ONNX Runtime's own operators; "standard" runs anywhere, and so do
            "openvino" and "tensorrt", which say where pairs of quantize and dequantize stand. By default the runtime's.
        simplify: run onnxsim: True, False, or "auto" (see `simplify.worthwhile`).
        threads: threads within an operator; 0 is the runtime's choice, one per core.
        runtime: what runs the graph, "onnxruntime" or "openvino".
        providers: ONNX Runtime's execution providers, best first.
        profile: path prefix of the trace that ONNX Runtime writes; "" writes none.
        graph_optimization: ONNX Runtime's own optimizations: "disabled", "basic", "extended" or "all".
        session_options: ONNX Runtime's configuration entries, `{"session.intra_op.allow_spinning": "0"}` for one; or
            OpenVINO's properties, `{"INFERENCE_PRECISION_HINT": "bf16"}` for one.
    """

    opset: int = DEFAULT_OPSETS["ort"]
    dialect: str = "ort"
    simplify: bool | str = "auto"
    threads: int = 0
    runtime: str = "onnxruntime"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    profile: str = ""
    graph_optimization: str = "all"
    session_options: Mapping[str, str | int | float]

    @property
    def standard(self) -> bool:
        """Only operators of the standard, none of ONNX Runtime's own."""
        return self.dialect != "ort"

    @staticmethod
    def parse(options: Mapping[str, Any]) -> Settings:
        """Check options given by name.

        Raises:
            OptionError: an option is unknown or has an unusable value; the message lists what is known.
            MissingDependencyError: the runtime is not installed.
        """
        defaults: dict[str, Any] = {
            "opset": None,
            "dialect": None,
            "simplify": None,
            "threads": 0,
            "runtime": "onnxruntime",
            "providers": None,
            "profile": "",
            "graph_optimization": "all",
            "session_options": None,
        }
        found = check_options("onnx", options, defaults)
        dialect = found["dialect"] or ("ort" if found["runtime"] == "onnxruntime" else "openvino")
        _require("dialect", dialect, dialect in DEFAULT_OPSETS, f"one of {', '.join(DEFAULT_OPSETS)}")
        opset = DEFAULT_OPSETS[dialect] if found["opset"] is None else found["opset"]
        _require("opset", opset, isinstance(opset, int) and opset in OPSETS, "from 18 to 23")
        simplify = "auto" if found["simplify"] is None else found["simplify"]
        _require("simplify", simplify, simplify == "auto" or isinstance(simplify, bool), "true, false or 'auto'")
        _require("threads", found["threads"], 0 <= found["threads"] < 2**31, "0 (a thread a core) or more")
        _require("runtime", found["runtime"], found["runtime"] in RUNTIMES, f"one of {', '.join(RUNTIMES)}")
        if found["runtime"] == "openvino":
            _check_openvino(options)
        level = found["graph_optimization"]
        _require("graph_optimization", level, level in _LEVELS, f"one of {', '.join(_LEVELS)}")
        return Settings(
            opset=opset,
            dialect=dialect,
            simplify=simplify,
            threads=found["threads"],
            runtime=found["runtime"],
            providers=_providers(found["providers"]),
            profile=found["profile"],
            graph_optimization=level,
            session_options=_entries(found["session_options"]),
        )

    def session(self, *, profile: str = "") -> ort.SessionOptions:
        """Return ONNX Runtime's options.

        Args:
            profile: path prefix of a trace, in place of the one chosen.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = _LEVELS[self.graph_optimization]
        # Warnings of its optimizer are of no use to a caller; errors arrive as exceptions.
        options.log_severity_level = 3
        # By itself it quantizes, to 8 bits, what meets an int8 weight: errors of 1e-2 that no pass asked for.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        for key, value in self.session_options.items():
            options.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
        if profile or self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile or self.profile
        return options


def _providers(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("CPUExecutionProvider",)
    named = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    known = ort.get_available_providers()
    usable = bool(named) and all(each in known for each in named)
    _require("providers", value, usable, f"some of {', '.join(known)}")
    return named


def _check_openvino(options: Mapping[str, Any]) -> None:
    for name in _ONLY_ONNX_RUNTIME:
        if name in options:
            raise OptionError(f"option {name!r} of backend 'onnx' is ONNX Runtime's: it does nothing in OpenVINO")
    if find_spec("openvino") is None:
        raise MissingDependencyError("runtime=openvino needs OpenVINO: pip install 'burnish[openvino]'")


def _entries(value: Any) -> dict[str, str | int | float]:
    if value is None:
        return {}
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) and "=" in each for each in value):
        value = dict(each.split("=", 1) for each in value)
    usable = isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(each, (str, int, float)) for key, each in value.items()
    )
    wanted = "a dict from the runtime's configuration keys to values, or a list of 'key=value'"
    _require("session_options", value, usable, wanted)
    return dict(value)


def _require(name: str, value: Any, usable: bool, wanted: str) -> None:
    if not usable:
        raise OptionError(f"option {name!r} of backend 'onnx' must be {wanted}, not {value!r}")
