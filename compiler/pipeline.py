"""Pipeline: an ordered list of passes, its text, its static check, and how it runs.

Every pass works on a copy (never of weights), so a failed or rejected pass leaves no trace. After each pass that
changed something the verifier runs at the chosen level.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from burnish.compiler import verify as verifier
from burnish.compiler.collector import rare_collections
from burnish.compiler.context import Context
from burnish.compiler.editing import StopRewriting
from burnish.compiler.errors import OptionError, PassError, PipelineError, VerificationError
from burnish.compiler.facts import Fact
from burnish.compiler.failure import explain_failure
from burnish.compiler.numerics import Exact, Lossy
from burnish.compiler.pass_base import Pass
from burnish.compiler.program import Program
from burnish.compiler.rewriter import Rewriter, Skip
from burnish.compiler.spec import SpecItem, format_spec, parse_spec

__all__ = ["PassRecord", "Pipeline", "Repeat", "run_pipeline"]

Passes = "Pipeline | str | Pass | Iterable[Pass | str]"


@dataclass(slots=True)
class PassRecord:
    """What one pass did.

    Attributes:
        label: its name, with `#2` for the second of that name.
        text: the pass as written.
        seconds: time in the pass itself, copying included, verification not.
        verify_seconds: time in the verifier.
        changed: the structure or a constant differs.
        rewrites: how many rewrites it made.
        rules: rewrites by rule.
        skips: what it could have rewritten and did not, and why.
        drift: relative difference of the outputs from those before the pass; None where not measured.
        exact: the pass promises that there is none.
        program: the Program after the pass.
    """

    label: str
    text: str
    seconds: float = 0.0
    verify_seconds: float = 0.0
    changed: bool = False
    rewrites: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    skips: list[Skip] = field(default_factory=list)
    drift: float | None = None
    exact: bool = False
    program: Program | None = None


Observer = Callable[[PassRecord, Program, Program], None]


class Pipeline:
    """An ordered list of passes.

    Args:
        passes: pass objects and pipeline texts, in order.
        default: what the word `default` stands for in a text.
    """

    def __init__(self, passes: Iterable[Pass | str] = (), default: Pipeline | None = None) -> None:
        self.passes: tuple[Pass, ...] = tuple(
            each
            for part in passes
            for each in (Pipeline.parse(part, default).passes if isinstance(part, str) else (_as_pass(part),))
        )

    @staticmethod
    def parse(text: str, default: Pipeline | None = None) -> Pipeline:
        """Parse a pipeline text, `"canonicalize,repeat{max=4}(cse,dce)"`.

        Args:
            text: what to parse.
            default: what the word `default` stands for, a backend's own pipeline; there is no such word when None.

        Raises:
            PipelineError: the text does not follow the grammar, or no pass has that name.
            OptionError: a pass has no such option, or the value has the wrong type.
        """
        return Pipeline([each for item in parse_spec(text) for each in _made(item, default)])

    @staticmethod
    def of(passes: Any, default: Pipeline | None = None) -> Pipeline:
        """Make a pipeline of what `compile(passes=...)` takes: a text, a pass, a Pipeline or an iterable of these."""
        if isinstance(passes, Pipeline):
            return passes
        if isinstance(passes, (str, Pass)):
            return Pipeline([passes], default)
        if isinstance(passes, Iterable):
            return Pipeline(passes, default)
        raise OptionError(f"passes must be a text, passes, or a Pipeline, not {type(passes).__name__}")

    def __str__(self) -> str:
        return format_spec(each.to_spec() for each in self.passes)

    def __repr__(self) -> str:
        return f"Pipeline.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def flat(self) -> Iterator[Pass]:
        """Yield the passes, those inside `repeat` once."""
        for each in self.passes:
            yield from Pipeline(each.passes).flat() if isinstance(each, Repeat) else (each,)

    def labels(self) -> list[str]:
        """Return how each pass is addressed: its name, `name#2` for the second of that name, and so on."""
        seen: Counter[str] = Counter()
        labels = []
        for each in self.passes:
            seen[each.name] += 1
            labels.append(each.name if seen[each.name] == 1 else f"{each.name}#{seen[each.name]}")
        return labels

    def check(self, facts: frozenset[Fact] = frozenset()) -> frozenset[Fact]:
        """Check that every pass finds the facts that it requires, and return those that hold at the end.

        Raises:
            PipelineError: names the fact, the pass that needs it, and the passes that would establish it.
        """
        for label, each in zip(self.labels(), self.passes, strict=True):
            missing = sorted(each.requires - facts)
            if missing:
                raise PipelineError(_missing_fact(label, missing[0], facts))
            if isinstance(each, Repeat):
                inner = Pipeline(each.passes).check(facts)
                # A second round starts from what the first one left.
                facts = Pipeline(each.passes).check(inner)
                continue
            facts = (facts - each.breaks) | each.establishes
        return facts

    def run(self, program: Program, context: Context | None = None, *, verify: int = 2) -> Program:
        """Run the passes on `program`, which stays as it is, and return the result.

        Args:
            program: where to start.
            context: target, calibration data, seed; a default one when None.
            verify: level of verification after each pass, 0 to 4; see `burnish.compiler.verify`.

        Raises:
            PipelineError: a fact that a pass requires does not hold; nothing has run.
            PassError: a pass failed or broke its contract.
        """
        return run_pipeline(self, program, context or Context(), verify=verify)[0]


@dataclass(frozen=True, kw_only=True)
class Repeat(Pass):
    """Run the passes in the parentheses until none changes anything, at most `max` times.

    Attributes:
        max: how many rounds at the most.
        passes: what is repeated.
    """

    name: ClassVar[str] = "repeat"
    numerics: ClassVar[Lossy] = Lossy()  # the passes inside are held to their own contracts
    max: int = 10
    passes: tuple[Pass, ...] = ()

    def run(self, program: Program, rewriter: Rewriter, context: Context) -> None:
        """Not used: the pipeline runs the passes inside one by one."""
        raise NotImplementedError

    def to_spec(self) -> SpecItem:
        """Return the combinator as written."""
        return SpecItem(self.name, (("max", self.max),), tuple(each.to_spec() for each in self.passes))

    @classmethod
    def from_spec(cls, item: SpecItem) -> Repeat:
        """Make the combinator that `item` describes."""
        if item.body is None or not item.body:
            raise PipelineError("repeat needs passes in parentheses: repeat{max=4}(cse,dce)")
        plain = super().from_spec(SpecItem(item.name, item.options))
        assert isinstance(plain, Repeat)
        if plain.max < 1:
            raise OptionError(f"pass 'repeat': option 'max' must be at least 1, but is {plain.max}")
        return replace(plain, passes=tuple(_make(each) for each in item.body))


def run_pipeline(
    pipeline: Pipeline,
    program: Program,
    context: Context,
    *,
    verify: int = 2,
    observer: Observer | None = None,
    limit: int | None = None,
    stop_after: str | None = None,
) -> tuple[Program, list[PassRecord]]:
    """Run `pipeline` on `program` and return the result with a record of every pass that ran.

    Args:
        pipeline: the passes.
        program: where to start; it stays as it is.
        context: handed to every pass.
        verify: level of verification, 0 to 4.
        observer: called after each pass with its record, the Program before, and the Program after.
        limit: allow so many rewrites in all, then stop; for bisection.
        stop_after: label of the last pass to run.

    Raises:
        PipelineError, PassError: see `Pipeline.run`.
    """
    if not isinstance(verify, int) or isinstance(verify, bool) or not 0 <= verify <= 4:
        raise OptionError(f"verify must be a level from 0 to 4, but is {verify!r}")
    pipeline.check(program.facts)
    labels = pipeline.labels()
    if stop_after is not None and stop_after not in labels:
        raise PipelineError(f"the pipeline has no pass {stop_after!r}: its passes are {', '.join(labels)}")
    context.reference = program
    runner = _Runner(pipeline, context, verify, observer, limit)
    for position, (label, each) in enumerate(zip(labels, pipeline.passes, strict=True)):
        program = runner.step(program, each, label, position)
        if label == stop_after:
            break
    return program, runner.records


class _Runner:
    def __init__(
        self, pipeline: Pipeline, context: Context, verify: int, observer: Observer | None, limit: int | None
    ) -> None:
        self.pipeline, self.context, self.verify, self.observer = pipeline, context, verify, observer
        self.remaining = limit
        self.records: list[PassRecord] = []
        # The outputs of the latest Program on its samples: what is "after" for one pass is "before" for the next.
        self.outputs: tuple[Program, dict[str, Any]] | None = None

    def step(self, program: Program, each: Pass, label: str, position: int) -> Program:
        if isinstance(each, Repeat):
            for number in range(1, each.max + 1):
                inner = Pipeline(each.passes)
                start = len(self.records)
                for name, part in zip(inner.labels(), inner.passes, strict=True):
                    program = self.step(program, part, f"{label}/{number}/{name}", position)
                if not any(record.changed for record in self.records[start:]):
                    break
            return program
        self.latest: Program = program
        try:
            return self._run(program, each, label)
        except (PassError, KeyboardInterrupt):
            raise
        except Exception as error:
            rest = Pipeline([each, *self.pipeline.passes[position + 1 :]])
            shown = self.latest
            raise explain_failure(
                error, program, shown, each, label, position, rest, self.context, self.verify
            ) from error

    def _run(self, before: Program, each: Pass, label: str) -> Program:
        record = PassRecord(label, str(each), exact=isinstance(each.numerics, Exact))
        start = time.perf_counter()
        with rare_collections():
            after = before.copy()
            rewriter = Rewriter(after, each.name, self.remaining)
            with contextlib.suppress(StopRewriting):
                each.run(after, rewriter, self.context)
            record.changed = rewriter.changed and after.structural_key() != before.structural_key()
        if self.remaining is not None:
            self.remaining -= rewriter.rewrites
        if not record.changed:
            after = replace(before)
        after.facts = (before.facts - each.breaks) | each.establishes
        after.history = (*before.history, str(each))
        record.seconds = time.perf_counter() - start
        record.rewrites, record.rules, record.skips = rewriter.rewrites, rewriter.counts, rewriter.skips
        self.latest = after
        start = time.perf_counter()
        self._verify(record, each, before, after)
        record.verify_seconds = time.perf_counter() - start
        record.program = after
        self.records.append(record)
        if self.observer is not None:
            self.observer(record, before, after)
        return after

    def _verify(self, record: PassRecord, each: Pass, before: Program, after: Program) -> None:
        if not record.changed:
            record.drift = 0.0
            return
        if self.verify:
            verifier.verify(after, min(self.verify, 3))
        if self.verify >= 3 and each.idempotent and self.remaining is None:
            again = after.copy()
            rewriter = Rewriter(again, each.name)
            each.run(again, rewriter, self.context)
            if rewriter.changed and again.structural_key() != after.structural_key():
                rules = ", ".join(rewriter.counts)
                raise VerificationError(f"{each.name} declares that a second run changes nothing, but {rules} fired")
        # Level 2 measures what may drift; an exact pass is run on samples at level 4 only.
        if after.samples and (self.verify == 4 or (self.verify >= 2 and not isinstance(each.numerics, Exact))):
            if self.outputs is None or self.outputs[0] is not before:
                self.outputs = (before, verifier.run_samples(before))
            outputs = verifier.run_samples(after)
            record.drift = verifier.check_contract(each.numerics, self.outputs[1], outputs)
            self.outputs = (after, outputs)


def _as_pass(value: Any) -> Pass:
    if not isinstance(value, Pass):
        raise OptionError(f"{value!r} is no pass: give pass objects or pipeline text")
    return value


def _made(item: SpecItem, default: Pipeline | None) -> Iterable[Pass]:
    if item.name != "default":
        return (_make(item),)
    if default is None:
        raise PipelineError(
            "'default' stands for the passes of a backend: it can be used where a backend is given,"
            " backend=, or --backend on the command line"
        )
    if item.options or item.body is not None:
        raise OptionError("'default' takes no options: write out its passes to give them some")
    return default.passes


def _make(item: SpecItem) -> Pass:
    from burnish.compiler.registry import find_pass

    return Repeat.from_spec(item) if item.name == Repeat.name else find_pass(item.name).from_spec(item)


def _missing_fact(label: str, fact: Fact, facts: Sequence[Fact] | frozenset[Fact]) -> str:
    from burnish.compiler.registry import find_pass, pass_names

    makers = [name for name in pass_names() if fact in find_pass(name).establishes]
    remedy = f"put {' or '.join(makers)} before it" if makers else "no known pass establishes it"
    return f"pass {label!r} requires the fact {fact.name!r}, which does not hold there: {remedy}"
