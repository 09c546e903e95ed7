"""Stages in processes over gloo: outputs and gradients are those of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import burnish
from tests.passes.test_partition import Net

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")]
_BATCH = 8


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, a mask of booleans, and classes; tied weights, a long skip, several inputs and outputs use them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (_BATCH, 5), generator=generator)
    keep = (torch.rand(_BATCH, 5, generator=generator) > 0.3).float()
    return ids, keep, torch.randint(0, 20, (_BATCH, 5), generator=generator)


def loss(outputs: Any, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs[0].flatten(0, 1), target.flatten())


def _work(rank: int, ranks: int, port: int, folder: Path, schedule: Any, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    from burnish.backends.stages.distributed import Worker

    ids, keep, target = data()
    outputs = Worker(folder, schedule, 4).run(ids, keep=keep)
    worker = Worker(folder, schedule, 4, loss)
    found = worker.step((ids, keep), {}, target)
    gradients = {name: each.grad.numpy() for name, each in worker.parameters().items() if each.grad is not None}
    arrays = None if outputs is None else {name: each.numpy() for name, each in outputs.items()}
    results.put((rank, arrays, found, gradients))
    # Who leaves early takes the others' connections along.
    dist.barrier()
    dist.destroy_process_group()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("ranks", "stages", "schedule"), [(2, 2, "gpipe"), (2, 2, "1f1b"), (4, 4, "1f1b"), (2, 4, "interleaved")]
)
def test_outputs_and_gradients_are_those_of_one_process(ranks: int, stages: int, schedule: str, tmp_path: Path) -> None:
    model = Net().eval()
    ids, keep, target = data()
    expected = model(ids, keep)
    wanted = loss((expected["logits"],), target)
    wanted.backward()  # type: ignore[no-untyped-call]
    burnish.compile(
        model, f"default,partition{{stages={stages}}}", inputs=(ids[:2], keep[:2]), backend="stages", progress=False
    ).save(tmp_path / "net")
    context = mp.get_context("spawn")
    results, port = context.Queue(), _port()
    processes = [
        context.Process(target=_work, args=(rank, ranks, port, tmp_path / "net", schedule, results))
        for rank in range(ranks)
    ]
    for each in processes:
        each.start()
    found = sorted(results.get(timeout=180) for _ in processes)
    for each in processes:
        each.join(60)
    outputs = found[-1][1]
    assert [each[1] is None for each in found] == [True] * (ranks - 1) + [False]
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert found[-1][2] == pytest.approx(float(wanted.detach()), rel=1e-5)
    gradients = dict(model.named_parameters())
    seen = set()
    for _, _, _, mine in found:
        for name, value in mine.items():
            seen.add(name)
            np.testing.assert_allclose(value, gradients[name].grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
    assert seen == set(gradients)


def _torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    burnish_command = str(Path(sysconfig.get_path("scripts")) / "burnish")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--master-port", str(_port()), "--no-python", burnish_command, "run-stages", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    x = torch.randn(8, 6)
    for backend in ("stages", "onnx"):
        burnish.compile(
            model, "default,partition{stages=2}", inputs=(x,), backend=backend, progress=False
        ).save(made / backend)  # fmt: skip
    np.savez(made / "data.npz", input=x.numpy(), target=np.arange(8) % 3)
    np.savez(made / "plain.npz", input=x.numpy())
    # The second micro-batch of four.
    np.savez(made / "odd.npz", input=x.numpy(), target=np.array([0, 1, 2, 3, 0, 1, 2, 0]))
    np.savez(made / "expected.npz", output=model(x).detach().numpy())
    return made


class _Moved(nn.Module):
    """Gradients at the cut are laid out as the permuted value is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).permute(0, 2, 3, 1)).mean((1, 2))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_gradients_of_any_layout(schedule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, target = _Moved().eval(), torch.randn(8, 3, 6, 6), np.arange(8) % 3
    passes = 'canonicalize,cse,dce,partition{cuts="first | last"}'
    burnish.compile(model, passes, inputs=(x,), backend="stages", progress=False).save(tmp_path / "net")
    np.savez(tmp_path / "data.npz", x=x.numpy(), target=target)
    arguments = ["--schedule", schedule, "--inputs", str(tmp_path / "data.npz"), "--loss", "cross-entropy"]
    done = _torchrun(2, str(tmp_path / "net"), *arguments, "--learning-rate", "0.5", "-o", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    nn.functional.cross_entropy(model(x), torch.from_numpy(target)).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for each in model.parameters():
            assert each.grad is not None
            each -= 0.5 * each.grad
    trained = burnish.load(tmp_path / "new")
    torch.testing.assert_close(trained(x), model(x), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_the_command_runs_onnx_stages(folders: Path) -> None:
    done = _torchrun(
        2, str(folders / "onnx"), "--inputs", str(folders / "plain.npz"), "-o", str(folders / "out.npz"), "--steps", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "gpipe, 2 micro-batches: " in done.stdout
    (found,) = np.load(folders / "out.npz").values()
    np.testing.assert_allclose(found, np.load(folders / "expected.npz")["output"], rtol=1e-5, atol=1e-6)


def test_the_command_trains_and_saves(folders: Path) -> None:
    arguments = ["--schedule", "1f1b", "--inputs", str(folders / "data.npz"), "--loss", "cross-entropy", "--json"]
    done = _torchrun(
        2, str(folders / "stages"), *arguments, "--steps", "30", "--learning-rate", "0.5", "-o", str(folders / "new")
    )
    assert done.returncode == 0, done.stderr
    trained = burnish.load(folders / "new")
    data = np.load(folders / "data.npz")
    logits = trained(torch.from_numpy(data["input"]))  # type: ignore[operator]
    before = burnish.load(folders / "stages")(torch.from_numpy(data["input"]))  # type: ignore[operator]
    target = torch.from_numpy(data["target"])
    assert nn.functional.cross_entropy(logits, target) < 0.7 * nn.functional.cross_entropy(before, target)


@pytest.mark.parametrize(
    ("ranks", "arguments", "message"),
    [
        (3, ["{folders}/stages"], "2 stages with the schedule gpipe need 2 processes, but there are 3"),
        (
            2,
            ["{folders}/stages", "--schedule", "interleaved"],
            "2 stages with the schedule interleaved need 1 proc",
        ),
        (
            2,
            ["{folders}/stages", "--micro-batches", "3", "--input", "f32[8,6]"],
            "8 samples cannot be split in 3",
        ),
        (
            2,
            ["{folders}/onnx", "--loss", "mse", "--inputs", "{folders}/data.npz"],
            "only stages that are Programs can be trained: compile with backend 'stages'",
        ),
        (2, ["{folders}/stages", "--loss", "mse", "--inputs", "{folders}/plain.npz"], "there is no array 'target'"),
        (
            2,
            ["{folders}/stages", "--loss", "cross-entropy", "--inputs", "{folders}/odd.npz"],
            "cross-entropy: class 3 of 3: they are numbered from 0",
        ),
        (2, ["{folders}/onnx", "-o", "{folders}/out.onnx"], "outputs are written as .npz"),
        (2, ["{folders}/stages", "--dist-backend", "nccl"], "--dist-backend nccl needs GPUs"),
    ],
)
def test_what_processes_refuse(ranks: int, arguments: list[str], message: str, folders: Path) -> None:
    if "nccl" in arguments and torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    done = _torchrun(ranks, *(each.format(folders=folders) for each in arguments))
    assert done.returncode != 0
    assert "Connection closed by peer" not in done.stderr
    # torchrun has a traceback of its own to tell.
    assert any(line.startswith("error: ") and message in line for line in done.stderr.splitlines()), done.stderr
