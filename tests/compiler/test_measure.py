"""Time per call."""

import time
from types import SimpleNamespace

import pytest
import torch

from burnish.compiler.measure import benchmark


def test_times_only_what_is_warm():
    calls = []

    def call():
        # The first calls are slow, as those of a compiler that specializes are.
        time.sleep(0.05 if len(calls) < 2 else 0.001)
        calls.append(1)

    timing = benchmark(call, seconds=0.1)
    assert timing.first >= 0.05
    assert 0.001 <= timing.best <= timing.median <= timing.p90
    assert timing.median < 0.05
    assert 1 <= timing.calls < len(calls)


def test_a_slow_call_is_timed_once():
    assert benchmark(lambda: time.sleep(0.03), seconds=0.01).calls == 1


def test_text_form_gives_milliseconds():
    text = str(benchmark(lambda: None, seconds=0.01))
    assert "median" in text and "ms" in text and "calls" in text


def test_gpus_that_hold_the_result_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    here, there = (SimpleNamespace(is_cuda=index < 2, device=index) for index in (1, 2))
    timing = benchmark(lambda: {"logits": here, "rest": [here, there, 3]}, seconds=0.001)
    assert set(waits) == {1} and len(waits) > timing.calls
