"""Pipelines: options, facts, labels, repeat, records, failure bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

import burnish
from burnish.compiler.context import Context
from burnish.compiler.errors import OptionError, PassError, PipelineError
from burnish.compiler.facts import Fact
from burnish.compiler.numerics import Lossy, Numerics, Reassociates
from burnish.compiler.pass_base import Pass
from burnish.compiler.pipeline import Pipeline, run_pipeline
from burnish.compiler.program import Program
from burnish.compiler.registry import register_pass
from burnish.compiler.reproducer import read_bundle
from burnish.compiler.rewriter import Rewriter

TEXT = """# burnish 1
graph main(%x: f32[B, 3]) {
  %a = aten.relu(%x) : f32[B, 3]
  %b = aten.mul.Tensor(%a, other=2.0) : f32[B, 3]
  return %b
}
"""
READY = Fact("test-ready")


@register_pass
@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    """Change every multiplication by a number."""

    name: ClassVar[str] = "test-scale"
    numerics: ClassVar[Numerics] = Lossy()
    establishes: ClassVar[frozenset[Fact]] = frozenset({READY})
    factor: float = 2.0
    mode: Literal["up", "down"] = "up"
    only: tuple[str, ...] = ()
    limit: int | None = None

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        for node in rewriter.nodes("aten.mul.Tensor"):
            if node.args[1] != self.factor:
                rewriter.set_arguments(node, (node.args[0], self.factor))


@register_pass
@dataclass(frozen=True, kw_only=True)
class Liar(Scale):
    """Promise too much."""

    name: ClassVar[str] = "test-liar"
    numerics: ClassVar[Numerics] = Reassociates(1e-5)
    requires: ClassVar[frozenset[Fact]] = frozenset({READY})
    establishes: ClassVar[frozenset[Fact]] = frozenset()


@register_pass
@dataclass(frozen=True, kw_only=True)
class Crash(Pass):
    """Raise half way."""

    name: ClassVar[str] = "test-crash"

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        rewriter.replace(rewriter.nodes("aten.relu")[0], "aten.relu6")
        raise ZeroDivisionError("half way")


@register_pass
@dataclass(frozen=True, kw_only=True)
class BadType(Pass):
    """Leave a wrong type behind."""

    name: ClassVar[str] = "test-bad-type"

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        node = rewriter.nodes("aten.relu")[0]
        rewriter.replace(node, "aten.sum", (node.args[0],), same_type=True)


@pytest.fixture
def program() -> Program:
    return Program.parse(TEXT)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("test-scale", "test-scale"),
        ("test-scale{3}", "test-scale{factor=3.0}"),
        ("test-scale{factor=2.0, only=a*}", "test-scale{only=[a*]}"),
        ("repeat{2}(test-scale{mode=down})", "repeat{max=2}(test-scale{mode=down})"),
        ("test-scale{limit=none},test-scale{limit=4}", "test-scale,test-scale{limit=4}"),
    ],
)
def test_text_form_round_trips(text: str, printed: str) -> None:
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == printed
    assert Pipeline.parse(printed) == pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test-scale{wrong=1}", "has no option 'wrong': its options are factor, mode, only, limit"),
        ("test-scale{factor=high}", "option 'factor' must be float, but is 'high'"),
        ("test-scale{factor=true}", "option 'factor' must be float, but is True"),
        ("test-scale{mode=left}", "must be 'up' or 'down', but is 'left'"),
        ("test-scale{1,factor=2}", "'factor' is given twice"),
        ("test-crash{1}", "has no option 'number 1': it has none"),
        ("test-scale(dce)", "takes no"),
        ("repeat{max=0}(test-scale)", "must be at least 1"),
    ],
)
def test_bad_options_are_named(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Pipeline.parse(text)


def test_unknown_passes_get_a_suggestion() -> None:
    with pytest.raises(PipelineError, match="'test-scal': did you mean 'test-scale'"):
        Pipeline.parse("test-scal")
    with pytest.raises(PipelineError, match="repeat needs passes"):
        Pipeline.parse("repeat{2}")


def test_a_missing_fact_is_found_before_any_work(program: Program) -> None:
    with pytest.raises(PipelineError, match=r"'test-liar' requires the fact 'test-ready'.*put test-scale before it"):
        Pipeline.parse("test-crash,test-liar").run(program)
    Pipeline.parse("test-scale,test-liar").check()


def test_labels_number_duplicates() -> None:
    assert Pipeline.parse("test-scale,test-crash,test-scale").labels() == ["test-scale", "test-crash", "test-scale#2"]


def test_the_program_given_stays_as_it_is(program: Program) -> None:
    before = program.print()
    after = Pipeline.parse("test-scale{3}").run(program)
    assert program.print() == before
    assert after.history == ("test-scale{factor=3.0}",)
    assert torch.equal(after(torch.ones(1, 3)), torch.full((1, 3), 3.0))


def test_records_say_what_changed_and_by_how_much(program: Program) -> None:
    _, records = run_pipeline(Pipeline.parse("test-scale{3},test-scale{3}"), program, Context(), verify=4)
    assert [(each.label, each.changed, each.rewrites) for each in records] == [
        ("test-scale", True, 1),
        ("test-scale#2", False, 0),
    ]
    assert records[0].drift is not None
    assert records[0].drift > 0.1
    assert records[1].drift == 0.0


def test_repeat_stops_when_nothing_changes(program: Program) -> None:
    _, records = run_pipeline(Pipeline.parse("repeat{max=9}(test-scale{3})"), program, Context())
    assert [each.label for each in records] == ["repeat/1/test-scale", "repeat/2/test-scale"]


def test_stop_after_and_limit(program: Program) -> None:
    pipeline = Pipeline.parse("test-scale{3},test-scale{4}")
    stopped, _ = run_pipeline(pipeline, program, Context(), stop_after="test-scale")
    limited, _ = run_pipeline(pipeline, program, Context(), limit=1)
    assert stopped.print().splitlines()[2:] == limited.print().splitlines()[2:]
    with pytest.raises(PipelineError, match="has no pass 'dce'"):
        run_pipeline(pipeline, program, Context(), stop_after="dce")


def test_a_broken_contract_is_a_pass_error_with_a_bundle_that_replays(program: Program) -> None:
    with pytest.raises(PassError, match=r"pass 'test-liar' \(number 2\).*allows 1e-05") as caught:
        Pipeline.parse("test-scale,test-liar{3},test-crash").run(program)
    assert caught.value.bundle is not None
    bundle = read_bundle(caught.value.bundle)
    assert bundle.pipeline == "test-liar{factor=3.0},test-crash"
    assert bundle.program.history == ("test-scale",)
    with pytest.raises(PassError, match="allows 1e-05"):
        Pipeline.parse(bundle.pipeline).run(bundle.program, verify=bundle.verify)


def test_a_crash_leaves_no_trace(program: Program) -> None:
    before = program.print()
    with pytest.raises(PassError, match="ZeroDivisionError: half way") as caught:
        Pipeline.parse("test-crash").run(program)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert program.print() == before


def test_a_wrong_type_is_found_at_level_2_and_shown_in_its_place(program: Program) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline.parse("test-bad-type").run(program)
    message = str(caught.value)
    assert "a is recorded as f32[B, 3]" in message
    assert "%a = aten." in message
    assert "^^^^" in message


def test_the_verify_level_is_checked(program: Program) -> None:
    with pytest.raises(OptionError, match="0 to 4"):
        Pipeline.parse("test-scale").run(program, verify=5)


def test_a_pass_registered_twice_is_refused() -> None:
    class Other(Scale):
        pass

    with pytest.raises(burnish.BurnishError, match="is registered already"):
        register_pass(Other)


def test_default_stands_for_a_backends_own_passes() -> None:
    own = Pipeline.parse("cse,dce")
    assert str(Pipeline.parse("canonicalize,default,fold-constants", own)) == "canonicalize,cse,dce,fold-constants"
    assert str(Pipeline.of(["default", "cse"], own)) == "cse,dce,cse"
    with pytest.raises(PipelineError, match="where a backend is given"):
        Pipeline.parse("default,cse")
    with pytest.raises(OptionError, match="takes no options"):
        Pipeline.parse("default{keep=1}", own)
