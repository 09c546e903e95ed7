"""What is left of the time when half of the multiply-adds are: burnish's prune and Torch-Pruning, in ONNX Runtime.

python -m benchmarks.pruning [--filter bert] [--only half,targets,scale] [--batch 1] [--blocks 9]

half: every network at 50% of its multiply-adds, as a ratio to the whole one in the same run. Torch-Pruning's modules
are lowered by burnish too, so that what differs is what was pruned; its ratio of channels is searched for, and it keeps
multiples of 16 of convolutions' channels. targets: `prune{latency=...}` asked for against what is measured afterwards.
scale: seconds and memory for the groups of a network of 1,000 layers.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import burnish
from benchmarks.comparison import THREADS, reason
from benchmarks.models.entry import Entry
from benchmarks.models.full_size import full_size
from benchmarks.pruning_peer import pruned_module
from benchmarks.timing import interleave
from burnish import Program
from burnish.passes.pruning.groups import groups_of
from burnish.passes.pruning.propagate import propagate

__all__ = ["main"]

_HALF = ("resnet-50", "mobilenet-v2", "efficientnet-b0", "vit-b/16", "bert-base", "gpt-2", "swin-t", "llama-gqa")
_TARGETS = (("resnet-50", 0.5), ("resnet-50", 0.3), ("mobilenet-v2", 0.6), ("vit-b/16", 0.5), ("bert-base", 0.4))
_CONVOLUTIONAL = ("resnet", "mobilenet", "efficientnet")
_TRIALS = 7
_NEAR = 0.01
_LAYERS, _WIDTH = 1000, 256


def _entries(wanted: str, names: tuple[str, ...]) -> list[Entry]:
    known = {entry.name: entry for entry in full_size()}
    return [known[name] for name in names if any(word in name for word in wanted.split(","))]


def half(wanted: str, batch: int, blocks: int) -> None:
    """Networks of half the multiply-adds."""
    print("| model | burnish: MACs left, parameters left, time | Torch-Pruning: MACs left, parameters left, time |")
    print("|---|---|---|")
    for entry in _entries(wanted, _HALF):
        model, inputs = entry.model(), entry.inputs(batch)
        whole = _compiled(model, inputs, "default")
        ours = _compiled(model, inputs, "default,prune{flops=0.5}")
        candidates = {"whole": whole, "ours": ours}
        failure = ""
        try:
            candidates["theirs"] = _compiled(_at_half(entry, batch), inputs, "default")
        except Exception as error:
            failure = reason(error)
        args = inputs if isinstance(inputs, dict) else {}
        times = interleave({key: functools.partial(each, **args) for key, each in candidates.items()}, blocks=blocks)
        cells = []
        for key in ("ours", "theirs"):
            if key not in candidates:
                cells.append(f"fails: {failure}")
                continue
            macs, parameters = _left(candidates[key].program, whole.program)
            cells.append(f"{macs:.1%}, {parameters:.1%}, {times[key].ratio:.3f} +- {times[key].spread:.3f}")
        print(f"| {entry.name} | {' | '.join(cells)} |", flush=True)


def targets(wanted: str, batch: int, blocks: int) -> None:
    """Latencies asked for and measured."""
    print("| model | latency asked for | measured | off by | MACs left |\n|---|---|---|---|---|")
    for name, part in _TARGETS:
        for entry in _entries(wanted, (name,)):
            model, inputs = entry.model(), entry.inputs(batch)
            whole = _compiled(model, inputs, "default")
            pruned = _compiled(model, inputs, f"default,prune{{latency={part}}}")
            args = inputs if isinstance(inputs, dict) else {}
            pair = {"whole": whole, "pruned": pruned}
            times = interleave({key: functools.partial(each, **args) for key, each in pair.items()}, blocks=blocks)
            found = times["pruned"]
            macs, _ = _left(pruned.program, whole.program)
            off = found.ratio / part - 1
            print(
                f"| {name} | {part} | {found.ratio:.3f} +- {found.spread:.3f} | {off:+.1%} | {macs:.1%} |", flush=True
            )


def scale(wanted: str, batch: int, blocks: int) -> None:
    """Groups of a network of 1,000 layers."""
    lines = [f"  %v{index + 1} = aten.linear(%v{index}, @w{index})" for index in range(_LAYERS)]
    constants = [f"constant @w{index}: f32[{_WIDTH}, {_WIDTH}]" for index in range(_LAYERS)]
    head = ["# burnish 1", "# facts: canonical", *constants, f"graph main(%v0: f32[B, {_WIDTH}]) {{"]
    program = Program.parse("\n".join([*head, *lines, f"  return %v{_LAYERS}", "}", ""]))
    weights = sum(value.numel() * value.element_size() for value in program.constants.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    groups = groups_of(program, propagate(program))
    grouped = time.perf_counter() - start
    start = time.perf_counter()
    burnish.Pipeline.parse("prune").run(program)
    pruned = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{_LAYERS} layers, {weights / 1e6:.0f} MB of weights: {len(groups)} groups in {grouped:.2f} s;")
    print(f"prune in {pruned:.2f} s with {more / weights:.2f} times the weights more memory")


def _compiled(model: Any, inputs: Any, passes: str) -> burnish.Compiled:
    return burnish.compile(model, passes, inputs=inputs, backend=f"onnx{{threads={THREADS}}}", progress=False)


def _left(program: Program, whole: Program) -> tuple[float, float]:
    """Return the parts of multiply-adds and parameters that are left."""
    macs = [each.cost().at_samples().macs for each in (program, whole)]
    return float(macs[0] / macs[1]), program.parameter_count() / whole.parameter_count()


def _at_half(entry: Entry, batch: int) -> torch.nn.Module:
    """Return what Torch-Pruning makes of a model at the ratio that leaves nearest to half of the multiply-adds."""
    original, examples = entry.model(), [entry.inputs(batch)]
    whole = _flops(original, examples[0])
    round_to = 16 if any(each in entry.name for each in _CONVOLUTIONAL) else None
    low, high = 0.0, 0.95
    best: tuple[float, torch.nn.Module] | None = None
    for _ in range(_TRIALS):
        ratio = (low + high) / 2
        model = copy.deepcopy(original)
        _, failure = pruned_module(model, examples, ratio, round_to)
        if failure:
            raise RuntimeError(failure)
        part = _flops(model, examples[0]) / whole
        if best is None or abs(part - 0.5) < best[0]:
            best = (abs(part - 0.5), model)
        if abs(part - 0.5) < _NEAR:
            break
        low, high = (ratio, high) if part > 0.5 else (low, ratio)
    assert best is not None
    return best[1].eval()


def _flops(model: torch.nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return int(counter.get_total_flops())


_SECTIONS: dict[str, Callable[[str, int, int], None]] = {"half": half, "targets": targets, "scale": scale}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only models whose name contains one of these, comma-separated")
    parser.add_argument("--only", default=",".join(_SECTIONS), help="sections, comma-separated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name in chosen.only.split(","):
        print(f"## {name}", flush=True)
        _SECTIONS[name](chosen.filter, chosen.batch, chosen.blocks)


if __name__ == "__main__":
    main()
