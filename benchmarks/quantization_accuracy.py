"""What int8 costs in accuracy on trained models with real data, burnish's and others', on the same calibration data.

python -m benchmarks.quantization_accuracy [--filter minilm] [--without nncf] [--samples 300]

Drops are differences to the float model on the same samples, positive where worse, with the standard error of the
difference. Peers: onnxruntime.quantization, static QDQ and dynamic, in ONNX Runtime; NNCF in OpenVINO;
torchao's PT2E with its quantizer for x86, in ONNX Runtime through burnish, since eager takes minutes.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import burnish
from benchmarks import int8_peers as peers
from benchmarks.comparison import THREADS, reason
from benchmarks.fusion import Case, export_file
from benchmarks.sessions import Call, openvino_session, ort_session
from benchmarks.trained import MODELS, Inputs, NotInstalled, Trained, call


class _Peer:
    """A session called like the model: same names, same kind of outputs."""

    def __init__(self, session: Call, names: list[str], outputs: Any) -> None:
        self.session = session
        self.names = names
        self.outputs = outputs

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        found = self.session({**dict(zip(self.names, args, strict=False)), **kwargs})
        tensors = [torch.from_numpy(each.copy()) for each in found]
        if isinstance(self.outputs, Mapping):
            return dict(zip(self.outputs, tensors, strict=False))
        return tensors[0] if isinstance(self.outputs, torch.Tensor) else tuple(tensors)


def candidates(trained: Trained, folder: Path, samples: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and makers of models in int8, called like the trained one."""
    names = list(inspect.signature(trained.model.forward).parameters)
    example = _by_name(trained.inputs, names)
    data = list(_some(trained, names, samples))
    convolutional = not trained.name.lower().startswith("minilm")
    case = Case(trained.name, trained.model, lambda batch: example, trained.dynamic_shapes)
    export = export_file(case, folder)
    outputs = call(trained.model, trained.inputs)

    def peer(make: Callable[[], Call]) -> Callable[[], Any]:
        return lambda: _Peer(make(), list(example), outputs)

    def compiled(model: torch.nn.Module, passes: str, runtime: str = "onnxruntime") -> Any:
        return burnish.compile(
            model,
            passes,
            inputs=trained.inputs,
            dynamic_shapes=trained.dynamic_shapes,
            backend=f"onnx{{runtime={runtime},threads={THREADS}}}",
            calibration=data,
        )

    def ours(passes: str, runtime: str = "onnxruntime") -> Callable[[], Any]:
        return lambda: compiled(trained.model, passes, runtime)

    yield "ORT static", peer(lambda: ort_session(peers.ort_static(export, data, convolutional), THREADS))
    if not convolutional:
        yield "ORT dynamic", peer(lambda: ort_session(peers.ort_dynamic(export), THREADS))
    yield "NNCF + OV", peer(lambda: openvino_session(peers.nncf_openvino(export, data, convolutional), THREADS))
    yield (
        "torchao PT2E",
        lambda: compiled(peers.torchao_pt2e(trained.model, trained.inputs, trained.dynamic_shapes, data), "default"),
    )
    for preset in ("fast", "balanced", "accurate"):
        yield f"{preset}, ORT", ours(f"default,quantize{{preset={preset},samples={samples}}}")
    yield "balanced, OV", ours(f"default,quantize{{samples={samples}}}", "openvino")
    if not convolutional:
        yield "dynamic, ORT", ours("default,quantize-dynamic")


def _by_name(inputs: Inputs, names: list[str]) -> dict[str, torch.Tensor]:
    return dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))


def _some(trained: Trained, names: list[str], samples: int) -> Iterator[dict[str, torch.Tensor]]:
    seen = 0
    for each in trained.calibration:
        if seen >= samples:
            return
        inputs = _by_name(each, names)
        seen += next(iter(inputs.values())).shape[0]
        yield inputs


def measure(trained: Trained, without: set[str], samples: int) -> None:
    """Print the scores of the float model, and what each candidate loses."""
    references = [task.rows(trained.model) for task in trained.tasks]
    print(f"{trained.name}")
    for task, reference in zip(trained.tasks, references, strict=True):
        value, error = task.score(reference)
        print(f"    {'float32':14} {task.metric}: {value:.4f} +- {error:.4f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in candidates(trained, Path(folder), samples):
            if name in without:
                continue
            try:
                model = make()
                drops = [
                    task.drop(task.rows(model), reference)
                    for task, reference in zip(trained.tasks, references, strict=True)
                ]
            except Exception as error:
                print(f"    {name:14} failed: {reason(error)}")
                continue
            text = "   ".join(f"{drop:+.4f} +- {error:.4f}" for drop, error in drops)
            print(f"    {name:14} drop {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only models whose name contains one of these, comma-separated")
    parser.add_argument("--without", default="", help="candidates to leave out, comma-separated")
    parser.add_argument("--samples", type=int, default=300, help="how many of the calibration samples")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name, load in MODELS.items():
        if any(each in name for each in chosen.filter.split(",")):
            try:
                trained = load()
            except NotInstalled as missing:
                print(f"{name}: {missing}")
                continue
            measure(trained, {each for each in chosen.without.split(",") if each}, chosen.samples)


if __name__ == "__main__":
    main()
