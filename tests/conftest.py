"""Options of the test run, and machines that we do not have."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from burnish import testing
from tests.fake_tensorrt import OLD, fake_tensorrt


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write golden files instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    testing.set_accepting(config.getoption("--accept"))


class Gpus:
    """A fake TensorRT with fake GPUs, whose memory is the host's.

    Attributes:
        tensorrt: the module.
        names: of the GPUs.
        capabilities: of the GPUs.
        waits: GPUs that were waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.names, self.capabilities = ["Fake GPU"], [(9, 0)]
        self.waits: list[int] = []
        self.tensorrt: Any = None

    def install(self, release: str) -> None:
        """Let another release be installed."""
        self.tensorrt = fake_tensorrt(release)
        self._monkeypatch.setitem(sys.modules, "tensorrt", self.tensorrt)
        forget()


def forget() -> None:
    """Drop the modules that have imported TensorRT."""
    for name in ("building", "execution"):
        sys.modules.pop(f"burnish.backends.tensorrt.{name}", None)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    """One GPU and TensorRT 10, both fake."""
    from burnish.backends.tensorrt import device

    found = Gpus(monkeypatch)
    monkeypatch.setattr(device, "count", lambda: len(found.names))
    monkeypatch.setattr(device, "name", lambda index: found.names[index])
    monkeypatch.setattr(device, "capability", lambda index: found.capabilities[index])
    monkeypatch.setattr(device, "place", lambda index: torch.device("cpu"))
    monkeypatch.setattr(device, "use", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(device, "stream", lambda index: 1000 + index)
    monkeypatch.setattr(device, "synchronize", found.waits.append)
    found.install(OLD)
    yield found
    forget()
