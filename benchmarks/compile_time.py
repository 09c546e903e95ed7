"""The compiler's own speed: each pass, print and parse by graph size, and whole compilations against plain export.

python -m benchmarks.compile_time [--most NODES]
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import burnish
from benchmarks.synthetic import stack, transformer
from burnish import Context, Pipeline, Program
from burnish.compiler.pipeline import run_pipeline
from burnish.compiler.verify import verify

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
PASSES = ("canonicalize", "fold-batch-norm", "fold-constants", "cse", "dce", "canonicalize,fuse")
_DEEP = "fuse, transformer"
LIMIT = {"canonicalize": 60, "cse": 60, "dce": 60, "canonicalize,fuse": 100, _DEEP: 100}
ROUNDS = 5


def microseconds_per_node(nodes: int) -> dict[str, float]:
    """Return the time of each step (of a pipeline its last pass) on a synthetic stack, by node of the stack."""
    program = stack(nodes)
    count = program.node_count()
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        start = time.perf_counter()
        result = call()
        found[name] = (time.perf_counter() - start) / count * 1e6
        return result

    for name in PASSES:
        gc.collect()
        _, records = run_pipeline(Pipeline.parse(name), program, Context(), verify=0)
        found[name] = records[-1].seconds / count * 1e6
    text = timed("print", program.print)
    parsed = timed("parse", lambda: Program.parse(text))
    timed("verify 1", lambda: verify(parsed, 1))
    timed("verify 2", lambda: verify(parsed, 2))
    timed("cost", program.cost)
    deep = transformer(nodes)
    gc.collect()
    _, records = run_pipeline(Pipeline.parse("fuse"), deep, Context(), verify=0)
    found[_DEEP] = records[-1].seconds / deep.node_count() * 1e6
    return found


def scaling(most: int) -> None:
    """Print microseconds a node by size, and how the largest compares with the smallest."""
    sizes = [size for size in SIZES if size <= most]
    microseconds_per_node(sizes[0])  # imports and caches
    table = {size: microseconds_per_node(size) for size in sizes}
    print("microseconds a node, synthetic stack")
    print(f"{'':18}" + "".join(f"{size:>10,}" for size in sizes) + f"{'limit':>8}")
    for name in table[sizes[0]]:
        row = [table[size][name] for size in sizes]
        limit = f"{LIMIT[name]:>8}" if name in LIMIT else ""
        print(f"{name:18}" + "".join(f"{value:10.1f}" for value in row) + limit)


def resnet_50() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig()).eval(), {"pixel_values": torch.randn(2, 3, 224, 224)}


def bert_base() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    from transformers import BertConfig, BertModel

    tokens = torch.randint(0, 1000, (2, 128))
    return BertModel(BertConfig()).eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def whole() -> None:
    """Print capture + passes + emit against `torch.onnx.export(dynamo=True)`, taking turns."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("\nseconds, capture + passes + emit against torch.onnx.export(dynamo=True) alone, taking turns")
    print(f"{'':12}{'export':>8}{'burnish':>9}{'verified':>10}{'ratio':>8}{'spread':>8}{'ratio, verified':>17}")
    for make in (resnet_50, bert_base):
        model, inputs = make()
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}

        def export(model: Any = model, inputs: Any = inputs, dynamic: Any = dynamic) -> None:
            torch.onnx.export(model, kwargs=inputs, dynamo=True, dynamic_shapes=dynamic, verbose=False)

        def compile_plain(model: Any = model, inputs: Any = inputs) -> None:
            burnish.compile(model, inputs=inputs, verify=0)

        def compile_verified(model: Any = model, inputs: Any = inputs) -> None:
            burnish.compile(model, inputs=inputs)

        runs = [[seconds(call) for call in (export, compile_plain, compile_verified)] for _ in range(ROUNDS + 1)][1:]
        plain, ours, verified = (statistics.median(column) for column in zip(*runs, strict=True))
        ratios = [run[1] / run[0] for run in runs]
        full = statistics.median(run[2] / run[0] for run in runs)
        spread = (max(ratios) - min(ratios)) / 2
        middle = statistics.median(ratios)
        print(f"{make.__name__:12}{plain:8.2f}{ours:9.2f}{verified:10.2f}{middle:8.2f}{spread:8.2f}{full:17.2f}")


def seconds(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest synthetic stack, in nodes")
    scaling(parser.parse_args().most)
    whole()


if __name__ == "__main__":
    main()
