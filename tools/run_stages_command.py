"""`burnish run-stages`: the stages of a partitioned model, each in a process that torchrun started."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.tools.console import print_json, print_lines, say
from burnish.tools.verb import InputOption, JsonFlag, SeedOption

if TYPE_CHECKING:
    import torch

    from burnish.compiler.binding import Binding

__all__ = ["run_stages"]

_SCHEDULES = ("gpipe", "1f1b", "interleaved")
_LOSSES = ("cross-entropy", "mse")
_BACKENDS = ("gloo", "nccl")


def run_stages(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="The folder of a partitioned model.")
    ],
    schedule: Annotated[str, typer.Option(metavar="|".join(_SCHEDULES), help="In which order stages work.")] = "gpipe",
    dist_backend: Annotated[
        str, typer.Option(metavar="|".join(_BACKENDS), help="gloo for processors, nccl for GPUs.")
    ] = "gloo",
    micro_batches: Annotated[int, typer.Option(min=1, help="Parts of a batch.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="How many batches, for the time of one.")] = 1,
    npz: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="FILE.npz", help="The inputs by name, and 'target' for training; by default random."
        ),
    ] = None,
    inputs: InputOption = None,
    loss: Annotated[
        str | None, typer.Option(metavar="|".join(_LOSSES), help="Train by SGD, on the first output and 'target'.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of training.")] = 0.01,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="For the outputs (.npz) or, trained, the stages (a folder)."
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Run a partitioned model in processes, by the schedules of torch.distributed.pipelining.

    [dim]torchrun --nproc-per-node 2 --no-python burnish run-stages stages --schedule 1f1b --input 'f32[8,3,224,224]'[/]
    """
    from burnish.compiler.errors import InputError, OptionError
    from burnish.tools.model_files import check_writable

    for name, value, offered in (
        ("--schedule", schedule, _SCHEDULES),
        ("--dist-backend", dist_backend, _BACKENDS),
        ("--loss", loss, (None, *_LOSSES)),
    ):
        if value not in offered:
            raise OptionError(f"{name} must be one of {', '.join(filter(None, offered))}, not {value!r}")
    if npz is not None and inputs:
        raise OptionError("--inputs and --input exclude each other")
    if loss is not None and npz is None:
        raise OptionError("--loss needs --inputs FILE.npz with an array 'target'")
    if loss is None:
        if output is not None and Path(output).suffix != ".npz":
            raise OptionError(f"--output {output}: outputs are written as .npz")
        check_writable(output)
    elif output is not None:
        from burnish.backends.stages.artifact import check_folder

        check_folder(Path(output))
    if "RANK" not in os.environ:
        raise InputError(
            "no rank: start the processes with torchrun --nproc-per-node COUNT --no-python burnish run-stages"
            f" {folder}, with as many as there are stages"
        )
    import torch
    import torch.distributed as dist

    from burnish.backends.stages.plan import Stages

    values, target = _data(Stages.read(folder).binding, npz, inputs or [], seed)
    if loss is not None and target is None:
        raise InputError(f"{npz}: there is no array 'target' to train on")
    if dist_backend == "nccl" and not torch.cuda.is_available():
        raise OptionError("--dist-backend nccl needs GPUs, and PyTorch finds none here: gloo")
    dist.init_process_group(dist_backend)
    try:
        found = _run(folder, schedule, micro_batches, steps, values, target, loss, learning_rate, output)
        if found is None:
            return
        if as_json:
            print_json({"folder": str(folder), "schedule": schedule, **found})
        else:
            losses = "".join(f"; loss {each:.5g}" for each in found["losses"][-1:])
            print_lines(
                f"{folder}: {schedule}, {micro_batches} micro-batches: {found['seconds'] * 1e3:.2f} ms a batch{losses}"
            )
            if output is not None:
                say("saved", output, "bold green")
    finally:
        dist.destroy_process_group()


def _data(binding: Binding, npz: Path | None, texts: list[str], seed: int) -> tuple[dict[str, Any], Any]:
    """Return inputs by name, and the target or None."""
    from burnish.compiler.errors import InputError
    from burnish.tools.example_inputs import inputs_for
    from burnish.tools.pass_context import read_calibration

    if npz is None:
        return inputs_for(binding, texts, seed), None
    (item,) = read_calibration([npz]) or []
    values, target = item if isinstance(item, tuple) else (item, None)
    if set(values) != set(binding.types):
        raise InputError(
            f"{npz} holds {', '.join(values) or 'no inputs'}, and the inputs are {', '.join(binding.types)}"
        )
    return values, target


def _run(
    folder: Path,
    schedule: Any,
    micro_batches: int,
    steps: int,
    values: dict[str, Any],
    target: Any,
    loss: str | None,
    learning_rate: float,
    output: str | None,
) -> dict[str, Any] | None:
    """Return the median seconds of a batch and the losses, on the last rank; None on the others."""
    import torch
    import torch.distributed as dist

    from burnish.backends.stages.distributed import Worker
    from burnish.compiler import structure
    from burnish.compiler.data import cross_entropy
    from burnish.compiler.errors import InputError
    from burnish.tools.example_inputs import write_npz

    def of_first(outputs: Any, wanted: torch.Tensor) -> torch.Tensor:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        if loss == "cross-entropy":
            return cross_entropy(first, wanted, "--loss cross-entropy")
        if first.shape != wanted.shape:
            raise InputError(f"--loss mse: the target is {list(wanted.shape)}, but the output {list(first.shape)}")
        return torch.nn.functional.mse_loss(first, wanted)

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if dist.get_backend() == "nccl" else None
    worker = Worker(folder, schedule, micro_batches, of_first if loss is not None else None, device)
    args, kwargs = structure.unflatten(worker.stages.binding.inputs, values)
    parameters = list(worker.parameters().values())
    optimizer = torch.optim.SGD(parameters, learning_rate) if parameters else None
    times, losses, outputs = [], [], None
    for _ in range(steps):
        start = time.perf_counter()
        if loss is None:
            outputs = worker.run(*args, **kwargs)
        else:
            if optimizer is not None:
                optimizer.zero_grad()
            losses.append(worker.step(args, kwargs, target))
            if optimizer is not None:
                optimizer.step()
        times.append(time.perf_counter() - start)
    if output is not None and loss is not None:
        worker.save(Path(output))
    if not worker.is_last:
        return None
    if output is not None and loss is None:
        write_npz(Path(output), structure.flatten(worker.stages.binding.outputs, outputs, "outputs"))
    return {"seconds": statistics.median(times), "losses": [each for each in losses if each is not None]}
