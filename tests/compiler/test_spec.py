"""The pipeline grammar: what it reads, what it prints, what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.compiler.errors import BurnishError, PipelineError
from burnish.compiler.spec import SpecItem, format_spec, parse_spec


def test_reads_names_options_and_bodies() -> None:
    items = parse_spec("fold-batch-norm, prune{ratio=0.4, round_to=8}, repeat{4}(cse,dce)")
    assert items == (
        SpecItem("fold-batch-norm"),
        SpecItem("prune", (("ratio", 0.4), ("round_to", 8))),
        SpecItem("repeat", ((None, 4),), (SpecItem("cse"), SpecItem("dce"))),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p{a=1}", 1),
        ("p{a=-1.5e3}", -1500.0),
        ("p{a=inf}", float("inf")),
        ("p{a=true}", True),
        ("p{a=none}", None),
        ("p{a=encoder.*}", "encoder.*"),
        ('p{a="two words, {braces}"}', "two words, {braces}"),
        ("p{a=[1,b,[true]]}", (1, "b", (True,))),
        ("p{a=[]}", ()),
    ],
)
def test_reads_values(text: str, value: object) -> None:
    assert parse_spec(text)[0].options == (("a", value),)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_text_is_an_empty_pipeline(text: str) -> None:
    assert parse_spec(text) == ()


@pytest.mark.parametrize(
    "text", ["a,", ",a", "a b", "a{", "a{x=}", "a(b", "a{x=1 y=2}", "1", "a{[1}", "a)", "a{x=1}}", "a;b", '"a"', "a(,)"]
)
def test_refuses_with_the_place(text: str) -> None:
    with pytest.raises(PipelineError, match=r"\^"):
        parse_spec(text)


def test_refuses_deep_nesting_instead_of_overflowing() -> None:
    with pytest.raises(PipelineError, match="nested deeper"):
        parse_spec("repeat(" * 5000 + "a" + ")" * 5000)


_names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
_items = st.recursive(
    st.builds(SpecItem, _names, st.lists(st.tuples(st.none() | st.just("opt"), _values), max_size=3).map(tuple)),
    lambda inner: st.builds(SpecItem, _names, st.just(()), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)


@given(st.lists(_items, max_size=4).map(tuple))
def test_what_is_printed_is_read_back(items: tuple[SpecItem, ...]) -> None:
    assert parse_spec(format_spec(items)) == items


@given(st.text(max_size=60) | st.text(alphabet='ab{}()[],="\\ 1.-*', max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        items = parse_spec(text)
    except BurnishError:
        return
    assert parse_spec(format_spec(items)) == items
