"""A model that branches on a size is refused, never wrong, where another branch would be taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish import InputError, Program, TextError


class Wrap(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


def above(x: torch.Tensor) -> torch.Tensor:
    return x + 2 if x.shape[0] > 2 else x * 3


def one(x: torch.Tensor) -> torch.Tensor:
    return x + 2 if x.shape[0] == 1 else x * 3


def parity(x: torch.Tensor) -> torch.Tensor:
    return x + 2 if x.shape[0] % 2 == 0 else x * 3


def equal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sum() + 2 + y.sum() if x.shape[0] == y.shape[0] else x.sum() - y.sum()


def less(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sum() + 2 + y.sum() if x.shape[0] < y.shape[0] else x.sum() - y.sum()


def either(x: torch.Tensor) -> torch.Tensor:
    return x + 2 if x.shape[0] < 2 or x.shape[0] > 6 else x * 3


def other_size(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.view(y.shape[0], -1) * 2


def expanded(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.expand(y.shape[0], -1) * 2


CASES: list[tuple[Callable[..., torch.Tensor], tuple[int, ...]]] = [
    (above, (2,)), (above, (3,)), (one, (2,)), (one, (1,)), (parity, (2,)), (parity, (3,)), (equal, (2, 2)),
    (equal, (2, 4)), (less, (2, 4)), (less, (4, 2)), (either, (4,)), (either, (7,)), (other_size, (2, 2)),
    (expanded, (2, 2)), (expanded, (1, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "batches"), CASES)
def test_never_wrong(function: Callable[..., torch.Tensor], batches: tuple[int, ...], tmp_path: Path) -> None:
    inputs = tuple(torch.randn(batch, 4) for batch in batches)
    model = Wrap(function)
    program = burnish.capture(model, inputs)
    compiled: Any = burnish.compile(program, backend="torchscript")
    compiled.save(tmp_path / "m.pt")
    loaded: Any = burnish.load(tmp_path / "m.pt")
    ran = 0
    for first in (1, 2, 3, 4, 6, 7, 8):
        for second in (1, 2, 4) if len(inputs) == 2 else (0,):
            call = [torch.randn(first, 4), torch.randn(second, 4)][: len(inputs)]
            for each in (program, compiled, loaded):
                try:
                    actual = each(*call)
                except InputError:
                    continue
                torch.testing.assert_close(actual, model(*call))
                ran += 1
    assert ran >= 3
    torch.testing.assert_close(program(*inputs), model(*inputs))


def test_conditions_are_part_of_the_text_and_of_the_notes() -> None:
    program = burnish.capture(Wrap(parity), (torch.zeros(2, 4),))
    text = program.print()
    assert "where Mod(B, 2) == 0" in text
    compiled = burnish.compile(Wrap(parity), inputs=(torch.zeros(2, 4),), backend="torchscript")
    assert any("Mod(B, 2) == 0 only" in note for note in compiled.report.notes)
    parsed = Program.parse(text)
    assert parsed.print() == text
    with pytest.raises(InputError, match=r"captured for Mod\(B, 2\) == 0 only, and B = dimension 0 of input .* = 3"):
        parsed(torch.zeros(3, 4))
    optimized = burnish.Pipeline.parse("canonicalize,cse,dce").run(program)
    assert "where Mod(B, 2) == 0" in optimized.print()


BODY = "{\n  %a = aten.relu(%x) : f32[B, 3]\n  return %a\n}"


class Resized(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=self.factor, mode="bilinear")


@pytest.mark.parametrize("factor", [1.5, 0.5, 1 / 3, 4 / 3])
def test_sizes_of_pictures_resized_by_a_fraction(factor: float, tmp_path: Path) -> None:
    automatic = torch.export.Dim.AUTO
    dims = ({0: automatic, 2: automatic, 3: automatic},)
    model, x = Resized(factor), torch.randn(2, 3, 9, 6)
    program = burnish.capture(model, (x,), dynamic_shapes=dims)
    text = program.print()
    parsed = Program.parse(text)
    assert parsed.print() == text
    program.save(tmp_path / "resized.burnish")
    loaded = Program.load(tmp_path / "resized.burnish")
    compiled = burnish.compile(program, backend="torchscript")
    for height, width in ((9, 6), (10, 7), (12, 21)):
        x = torch.randn(3, 3, height, width)
        for each in (program, loaded, compiled):
            assert torch.equal(each(x), model(x))


@pytest.mark.parametrize(
    "size", ["1.5", "1.5*B", "Max(B, 1.5)", "TruncToInt(1.5*ToFloat(B)) + 0.5", "TruncToInt(1e400)"]
)
def test_a_size_is_an_integer(size: str) -> None:
    with pytest.raises(TextError):
        Program.parse(f"# burnish 1\ngraph main(%x: f32[B, {size}]) {BODY}")


def test_a_size_that_two_inputs_share_must_agree() -> None:
    program = Program.parse(f"# burnish 1\ngraph main(%x: f32[B, 3], %y: f32[2*B]) {BODY}")
    program(torch.zeros(3, 3), torch.zeros(6))
    with pytest.raises(InputError, match=r"dimension 0 of input 'y' must be 2\*B = 6, but is 5"):
        program(torch.zeros(3, 3), torch.zeros(5))


@pytest.mark.parametrize("line", ["where B", "where B = 2", "where == 2", "where B < 2 < 3", "where B // 0 == 1"])
def test_bad_conditions_are_refused(line: str) -> None:
    with pytest.raises(TextError):
        Program.parse(f"# burnish 1\n{line}\ngraph main(%x: f32[B, 3]) {BODY}")


def test_a_size_at_which_another_path_means_the_same_is_allowed() -> None:
    def harmless(x: torch.Tensor) -> torch.Tensor:
        return x.expand(x.shape[0], -1) * 2 if x.shape[0] != 1 else x + x

    program = burnish.capture(Wrap(harmless), (torch.randn(2, 4),))
    assert program.conditions == ()
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    compiled = burnish.capture(attention, (x, x, x))
    one = torch.randn(1, 3, 8)
    torch.testing.assert_close(compiled(one, one, one), attention(one, one, one))


def test_sizes_that_depend_on_data_do_not_stop_the_report() -> None:
    class NonZero(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nonzero(x > 0)

    x = torch.tensor([1.0, -1.0, 2.0])
    for backend in ("onnx", "torchscript"):
        assert torch.equal(burnish.compile(NonZero(), inputs=(x,), backend=backend)(x), torch.tensor([[0], [2]]))


@pytest.mark.parametrize(
    ("text", "excluded"),
    [("B != 3", 3), ("B > 1", 1), ("2 <= B", 1), ("384 < 384*B", 1), ("B <= 64", None), ("Mod(B, 2) == 0", None),
     ("B != S0", None), ("B >= 3", None), ("B != 512", 512)],
)  # fmt: skip
def test_the_one_size_that_a_condition_excludes(text: str, excluded: int | None) -> None:
    program = Program.parse(f"# burnish 1\nwhere {text}\ngraph main(%x: f32[B, 3], %y: f32[S0]) {BODY}")
    found = program.conditions[0].excluded_size()
    assert (found[1] if found is not None else None) == excluded


class Positions(torch.nn.Module):
    """Adds rows of a table that ends, which PyTorch guards by alternatives: as long as the input, or of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[:, : x.shape[1]].expand(x.shape[0], x.shape[1], -1)  # type: ignore[index]


def test_alternatives_leave_the_one_that_was_taken() -> None:
    model = Positions().eval()
    shapes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = burnish.capture(model, (torch.randn(2, 3, 4),), dynamic_shapes=shapes)
    for length in (2, 5, 8):
        x = torch.randn(3, length, 4)
        assert torch.equal(program(x), model(x))
    with pytest.raises(InputError, match="= 9"):
        program(torch.randn(3, 9, 4))
    assert len(program.conditions) == 1


def test_a_minimum_that_is_one_of_its_two_is_a_bound() -> None:
    """A table of 12 positions, sliced by the length, makes the guard S0 == Min(12, S0)."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(12.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table[: x.shape[1]]

    automatic = torch.export.Dim.AUTO
    program = burnish.capture(Positions(), (torch.randn(2, 5),), dynamic_shapes=({0: automatic, 1: automatic},))
    assert "where S0 <= 12" in program.print()
    assert torch.equal(program(torch.zeros(1, 12)), torch.arange(12.0)[None])
    with pytest.raises(InputError, match=r"captured for S0 <= 12 only, and .* = 13"):
        program(torch.zeros(1, 13))
