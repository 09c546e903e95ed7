"""Stages in processes of their own: the pipeline schedules of `torch.distributed.pipelining`.

Every process holds the stages of its rank: with as many stages as processes one, else stage s on rank s modulo
processes. What a later stage reads is handed on by those between. Stages that are Programs (the backend `stages`) can
be trained: gradients of a constant that several stages hold are summed.

Not handled: inputs that are numbers; values whose sizes depend on data, as behind early exits; batches that fall into
parts of different sizes; training of buffers that a model updates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.microbatch import TensorChunkSpec, _Replicate

from burnish.backends.stages.artifact import writable_folder
from burnish.backends.stages.eager import EagerArtifact
from burnish.backends.stages.plan import Stages
from burnish.compiler.backend import Artifact
from burnish.compiler.errors import InputError, OptionError
from burnish.compiler.loading import load
from burnish.compiler.program import Program
from burnish.compiler.trainable import Trainable

__all__ = ["Loss", "ScheduleName", "Worker"]

ScheduleName = Literal["gpipe", "1f1b", "interleaved"]
Loss = Callable[[Any, torch.Tensor], torch.Tensor]
"""Of what the model returns, the first output alone or a tuple of several, and the target of a micro-batch."""


class Worker:
    """The stages of this process; all processes of the group make one, and call the same methods.

    Args:
        folder: of a partitioned model.
        schedule: gpipe or 1f1b with a stage for each process, interleaved with several.
        micro_batches: parts of a batch.
        loss: for training; None for inference.
        device: where the stages run.

    Raises:
        InputError: the folder cannot be read, or does not fit the processes.
        OptionError: the schedule does not go with so many stages, or training was asked of stages that cannot be.
    """

    def __init__(
        self,
        folder: Path,
        schedule: ScheduleName = "gpipe",
        micro_batches: int = 4,
        loss: Loss | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.stages, self.micro_batches, self.trains = Stages.read(folder), micro_batches, loss is not None
        self.device = device or torch.device("cpu")
        self.loss = _Loss(loss) if loss is not None else None
        rank, ranks, count = dist.get_rank(), dist.get_world_size(), len(self.stages.stages)
        _check(self.stages, folder, schedule, ranks, micro_batches)
        self.numbers = list(range(rank, count, ranks))
        self.programs: dict[int, Program] = {}
        self.modules = {number: self._module(folder, number) for number in self.numbers}
        parts = [PipelineStage(module, number, count, self.device) for number, module in self.modules.items()]
        inputs = [name in self.stages.batched for name in self.stages.binding.types]
        specs: Any = tuple(TensorChunkSpec(0) if each else _Replicate() for each in inputs)  # type: ignore[no-untyped-call]
        if schedule == "interleaved":
            self.schedule: Any = ScheduleInterleaved1F1B(
                list(parts), micro_batches, loss_fn=self.loss, args_chunk_spec=specs
            )
        else:
            kind = ScheduleGPipe if schedule == "gpipe" else Schedule1F1B
            self.schedule = kind(parts[0], micro_batches, loss_fn=self.loss, args_chunk_spec=specs)
        self.is_first, self.is_last = 0 in self.numbers, count - 1 in self.numbers
        # Every process makes every group, in the same order.
        self.groups = [
            (name, numbers, dist.new_group(sorted({number % ranks for number in numbers})))
            for name, numbers in self.stages.tied
        ]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch; every process is called with all inputs. The last rank returns what the model returns.

        Raises:
            InputError: the inputs do not fit, or the batch cannot be split evenly.
        """
        values = self._values(args, kwargs)
        with torch.no_grad():
            results = self.schedule.eval(*(values if self.is_first else ()))
        return self._outputs(results) if self.is_last else None

    def step(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: torch.Tensor) -> float | None:
        """Run a batch forward and backward; every process is called with all inputs.

        Gradients are added to those of the parameters: those of the mean loss over micro-batches.

        Returns:
            The mean loss, on the last rank.

        Raises:
            InputError: the inputs do not fit, the batch cannot be split evenly, or the loss refuses the target.
        """
        values = self._values(args, kwargs)
        size = next((len(value) for name, value in zip(self.stages.binding.types, values, strict=True)
                     if name in self.stages.batched), 0)  # fmt: skip
        if target.dim() == 0 or len(target) != size:
            raise InputError(
                f"the target is {list(target.shape)}, but dimension 0 has to be the batch, of {size} samples"
            )
        losses: list[torch.Tensor] = []
        self.schedule.step(
            *(values if self.is_first else ()),
            **({"target": target.to(self.device), "losses": losses} if self.is_last else {}),
            return_outputs=False,
        )
        self._raise_refusal()
        self._sum_tied()
        return float(torch.stack(losses).detach().mean()) if self.is_last else None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what this process trains, by the names of the constants."""
        return {
            name: value
            for module in self.modules.values()
            if isinstance(module.run, Trainable)
            for name, value in module.run.trained.items()
        }

    def save(self, path: Path) -> None:
        """Write a folder with the trained stages; every process is called.

        Raises:
            InputError: it cannot be written.
        """
        # The first rank makes the folder, and gives it its name when all stages are in it.
        with writable_folder(path) if dist.get_rank() == 0 else contextlib.nullcontext() as made:
            place = [str(made)]
            dist.broadcast_object_list(place, src=0)
            for number, module in self.modules.items():
                assert isinstance(module.run, Trainable)
                program = self.programs[number].copy()
                program.constants.update(module.run.constants())
                program.save(Path(place[0]) / self.stages.stages[number].file)
            if made is not None:
                self.stages.write(made)
            dist.barrier()

    def _module(self, folder: Path, number: int) -> _StageModule:
        file = folder / self.stages.stages[number].file
        found = load(file)
        if not self.trains:
            artifact = EagerArtifact(found) if isinstance(found, Program) else found
            return _StageModule(self.stages, number, artifact)
        if not isinstance(found, Program):
            raise OptionError(f"{file}: only stages that are Programs can be trained: compile with backend 'stages'")
        self.programs[number] = found
        return _StageModule(self.stages, number, Trainable(found)).to(self.device)

    def _values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        values = self.stages.binding.bind(args, kwargs)
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise InputError(f"input {name!r} is a number: torch.distributed.pipelining takes tensors alone")
            if name in self.stages.batched and len(value) % self.micro_batches:
                raise InputError(f"{len(value)} samples cannot be split in {self.micro_batches} equal micro-batches")
        return [value.to(self.device) for value in values.values()]

    def _outputs(self, results: Any) -> Any:
        names = self.stages.outputs
        found = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        return self.stages.binding.result(dict(zip(names, found, strict=True)))

    def _raise_refusal(self) -> None:
        """Raise in every process what the loss, which the last rank computes, refused."""
        refusal = self.loss.refusal if self.loss is not None else None
        flag = torch.tensor(int(refusal is not None), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag:
            message = [refusal]
            dist.broadcast_object_list(message, src=dist.get_world_size() - 1, device=self.device)
            if self.loss is not None:
                self.loss.refusal = None
            raise InputError(str(message[0]))

    def _sum_tied(self) -> None:
        """Sum the gradients of constants that several stages hold."""
        for name, numbers, group in self.groups:
            mine = [self.modules[number].run for number in numbers if number in self.modules]
            found = [each.trained[name] for each in mine if isinstance(each, Trainable) and name in each.trained]
            if not found:
                continue
            total = torch.stack([torch.zeros_like(each) if each.grad is None else each.grad for each in found]).sum(0)
            dist.all_reduce(total, group=group)
            for each in found:
                each.grad = total.clone()


class _Loss:
    """A loss that keeps what it refuses until the schedule is through: the other processes wait for gradients."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.refusal: str | None = None

    def __call__(self, outputs: Any, target: torch.Tensor) -> torch.Tensor:
        try:
            return self.loss(outputs, target)
        except InputError as error:
            self.refusal = str(error)
            first: torch.Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
            return first.sum() * 0


class _StageModule(nn.Module):
    """A stage as the schedules want it: tensors that come from the stage before in, those for the next one out."""

    def __init__(self, stages: Stages, number: int, run: Artifact | Trainable) -> None:
        super().__init__()
        self.stage = stages.stages[number]
        self.given = tuple(stages.binding.types) if number == 0 else stages.crossing(number - 1)
        self.wanted = stages.crossing(number)
        self.run = run
        self._is_probe = number > 0

    def forward(self, *tensors: torch.Tensor) -> Any:
        values: dict[str, Any] = dict(zip(self.given, tensors, strict=True))
        if self._is_probe:
            # The first call, for types alone, is on memory as it is: no index may be what happens to stand there.
            self._is_probe = False
            values = {name: torch.zeros_like(each) if _is_index(each) else each for name, each in values.items()}
        values = {name: _contiguous(each) if each.requires_grad else each for name, each in values.items()}
        if isinstance(self.run, Trainable):
            values.update(self.run(**{name: values[name] for name in self.stage.inputs}))
        else:
            results = self.run(*(values[name] for name in self.stage.inputs))
            values.update(zip(self.stage.outputs, results, strict=True))
        # What is handed on is a value of this stage's own.
        results = [values[name].contiguous() for name in self.wanted]
        results = [each.view_as(each) if any(each is other for other in tensors) else each for each in results]
        return results[0] if len(results) == 1 else tuple(results)


class _Contiguous(torch.autograd.Function):
    """A value as it is, whose gradient can be sent."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def _contiguous(value: torch.Tensor) -> torch.Tensor:
    return _Contiguous.apply(value)  # type: ignore[no-any-return, no-untyped-call]


def _is_index(value: torch.Tensor) -> bool:
    return not value.is_floating_point()


def _check(stages: Stages, folder: Path, schedule: ScheduleName, ranks: int, micro_batches: int) -> None:
    count = len(stages.stages)
    if count % ranks or (count == ranks) == (schedule == "interleaved"):
        fitting = str(count)
        if schedule == "interleaved":
            fitting = " or ".join(str(each) for each in range(1, count) if count % each == 0)
        raise InputError(
            f"{folder}: {count} stages with the schedule {schedule} need {fitting} processes, but there are {ranks}"
        )
    if micro_batches < 1:
        raise OptionError(f"micro_batches must be 1 or more, but is {micro_batches}")
    if stages.data_dependent:
        raise InputError(
            f"{folder}: the size of {stages.data_dependent[0]!r} depends on data, as behind an early exit:"
            " torch.distributed.pipelining cannot send it; run the stages in one process, or cut elsewhere"
        )
    alone = [name for name in stages.outputs if name not in stages.batched]
    if alone and micro_batches > 1:
        raise InputError(f"dimension 0 of output {alone[0]!r} is no batch: it cannot be computed in micro-batches")
