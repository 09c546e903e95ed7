"""The benchmark of exits: data that do not overlap, heads that fit, weights that go where they belong, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import exits, exits_networks
from benchmarks.exits_networks import GridHead, Network, Pictures
from benchmarks.exits_splits import violations
from benchmarks.trained import sentiment
from benchmarks.trained.fashion import network
from benchmarks.trained.sentiment import Sentences, SentimentBatches
from benchmarks.trained.task import NotInstalled
from burnish import Context, Pipeline, Program
from burnish import capture as captured
from burnish.compiler.rewriter import Rewriter
from burnish.passes.exits import InsertExits
from burnish.passes.exits.thresholds import Answers


def _sentences(count: int) -> Sentences:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 12, (count,), generator=generator)
    ids = torch.where(torch.arange(12) < lengths[:, None], torch.randint(1, 99, (count, 12), generator=generator), 0)
    return Sentences(ids, lengths, torch.randint(0, 2, (count,), generator=generator))


def test_missing_sentences_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentiment, "_FOLDER", tmp_path)
    with pytest.raises(NotInstalled, match=r"pip download .* vaderSentiment==3\.3\.2"):
        sentiment.sentences()


def test_clear_sentences_once_each() -> None:
    lines = ["1\t0.5\tGood.", "2\t0.4\tSo so.", "3\t-2\t Bad. ", "4\t3\tBad."]
    assert sentiment._clear(lines) == {"Good.": 0.5, "Bad.": -2.0}


def test_training_and_held_out_sentences_do_not_overlap() -> None:
    data = _sentences(9000)
    numbered = Sentences(torch.arange(9000)[:, None], data.lengths, data.classes)
    training, held_out = sentiment.split(numbered)
    assert len(training) == 8000
    assert sorted([*training.ids[:, 0].tolist(), *held_out.ids[:, 0].tolist()]) == list(range(9000))


def test_batches_are_no_longer_than_they_must_be() -> None:
    data = _sentences(100)
    torch.manual_seed(0)
    batches = list(SentimentBatches(data))
    assert len(batches) == len(SentimentBatches(data)) == 3
    for (ids, mask), classes in batches:
        assert ids.shape == mask.shape and len(ids) == len(classes) == 32
        assert mask.sum(1).max() == mask.shape[1]
        assert torch.equal(ids != 0, mask.bool())


@pytest.mark.parametrize(("channels", "size"), exits_networks._BLOCKS.values())
def test_heads_fit_their_places(channels: int, size: int) -> None:
    assert GridHead(channels, size)(torch.randn(2, channels, size, size)).shape == (2, 10)


def _tiny() -> Network:
    """A network of random weights with heads at three places, of which two are used."""
    torch.manual_seed(0)
    held_out = Pictures(torch.randn(60, 1, 28, 28), torch.randint(0, 10, (60,)))
    alone = Pipeline(["canonicalize"]).run(captured(network(True).eval(), held_out.batch(torch.arange(2))))
    places = ("blocks.0", "blocks.2", "blocks.4")

    def insert(chosen, mode: str = "per-sample") -> InsertExits:
        return InsertExits(after=tuple(places[each] for each in chosen), mode=mode)  # type: ignore[arg-type]

    program = Pipeline([insert(range(3))]).run(alone, Context(progress=False))
    rewriter = Rewriter(program, "test")
    with rewriter.rewrite("trained"):
        changed = {
            name: value + 0.01
            for name, value in program.constants.items()
            if name.endswith("weight") and value.dim() > 1
        }
        rewriter.replace_constants(changed)
    return Network(alone, program, places, (0, 2), insert, held_out, 40, 1.6)


def test_exits_that_are_used_have_the_weights_that_were_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = _tiny()
    monkeypatch.setitem(exits.NETWORKS, "tiny", lambda keep: tiny)
    bench = exits.Bench("tiny", tmp_path, None, blocks=1)
    assert (len(bench.calibrating), len(bench.testing)) == (40, 20)
    found: Program = bench.with_exits("per-sample")
    trained = tiny.program.constants
    assert torch.equal(found.constants["exit1.weight"], trained["exit1.weight"])
    assert torch.equal(found.constants["exit2.weight"], trained["exit3.weight"])
    assert torch.equal(bench.whole.constants["head.weight"], trained["head.weight"])
    assert torch.equal(bench.used.own, bench.everything.own)
    assert torch.equal(bench.used.classes, bench.everything.classes[[0, 2]])


def test_a_bound_far_above_what_is_lost_is_never_broken() -> None:
    random = np.random.default_rng(0)
    scores = random.random((1, 4000))
    answers = Answers(scores, (random.random((1, 4000)) > 0.5 + 0.6 * scores).astype(float), np.array([0.3, 1.0]))
    found = violations(answers, answers, 2000, 0.1, 0.05, 10)
    assert found.on_test <= 0.2 and found.on_all <= 0.1
    assert 0.3 < found.cost < 1 and 0 < found.lost < 0.1
    wrong = Answers(scores, np.ones((1, 4000)), answers.costs)
    never = violations(wrong, wrong, 2000, 0.1, 0.05, 3)
    assert (never.on_test, never.on_all, never.lost, never.cost) == (0, 0, 0, 1)
