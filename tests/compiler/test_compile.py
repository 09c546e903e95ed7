"""`burnish.compile` as a user calls it: what it takes, what it leaves alone, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish.compiler.numerics import drift

BACKENDS = ("onnx", "torchscript")
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}


class Net(torch.nn.Module):
    """Two inputs, one by keyword; a dict out; a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> dict[str, Any]:
        self.calls += 1
        y = self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))
        y = y if scale is None else y * scale
        return {"logits": self.head(y), "calls": self.calls.clone(), "batch": x.shape[0], "nothing": None}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_artifact_is_called_like_the_model(net: Net, backend: str, tmp_path: Path) -> None:
    inputs = {"x": torch.randn(2, 3, 8, 8), "scale": torch.rand(2, 1)}
    compiled = burnish.compile(net, inputs=inputs, backend=backend)
    path = tmp_path / f"net{SUFFIX[backend]}"
    compiled.save(path)
    loaded = burnish.load(path)
    net.eval()
    for count, batch in enumerate((1, 3, 17, 2), start=1):
        x, scale = torch.randn(batch, 3, 8, 8), torch.rand(batch, 1)
        expected = net(x, scale=scale)
        for artifact in (compiled, loaded):
            actual = artifact(x, scale=scale)
            assert list(actual) == list(expected)
            assert drift(actual["logits"], expected["logits"]) < 1e-5
            assert int(actual["calls"]) == count == int(expected["calls"])
            assert int(actual["batch"]) == batch
            assert actual["nothing"] is None


def test_the_model_is_left_untouched(net: Net) -> None:
    calls: list[int] = []
    net.conv.register_forward_hook(lambda *_: calls.append(1))
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = {name: module.training for name, module in net.named_modules()}
    generator = torch.get_rng_state()
    hooks = dict(net.conv._forward_hooks)
    burnish.compile(net, inputs=(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert dict(net.conv._forward_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_without_inputs_it_is_captured_at_the_first_call(net: Net) -> None:
    compiled = burnish.compile(net)
    with pytest.raises(burnish.InputError, match="call the compiled model once"):
        _ = compiled.report
    x = torch.randn(2, 3, 8, 8)
    first = compiled(x, scale=torch.ones(2, 1))
    assert drift(first["logits"], net.eval()(x)["logits"]) < 1e-5
    assert compiled.report.artifact_drift is not None


def test_every_kind_of_model(net: Net, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    expected = net.eval()(x)["logits"]
    program = burnish.capture(net, (x,))
    program.save(tmp_path / "net.burnish")
    exported = torch.export.export(net, (x,))
    torch.export.save(exported, tmp_path / "net.pt2")
    models: list[Any] = [program, exported, tmp_path / "net.burnish", str(tmp_path / "net.pt2")]
    for model in models:
        assert drift(burnish.compile(model, backend="torchscript")(x)["logits"], expected) < 1e-5


@pytest.mark.parametrize(
    "passes", ["canonicalize,dce", ["canonicalize", "cse,dce"], [], burnish.Pipeline.parse("dce"), "repeat{2}(cse,dce)"]
)
def test_every_kind_of_pipeline(net: Net, passes: Any) -> None:
    x = torch.randn(2, 3, 8, 8)
    compiled = burnish.compile(net, passes=passes, inputs=(x,), backend="torchscript")
    assert drift(compiled(x)["logits"], net.eval()(x)["logits"]) < 1e-5


def test_the_report_tells_what_was_done(net: Net) -> None:
    compiled = burnish.compile(net, passes="canonicalize,fold-batch-norm,dce", inputs=(torch.randn(2, 3, 8, 8),))
    labels = [row.label for row in compiled.report.passes]
    assert labels == ["capture", "canonicalize", "fold-batch-norm", "dce"]
    captured, folded = compiled.report.passes[0], compiled.report.passes[2]
    assert folded.nodes < captured.nodes
    assert folded.flops < captured.flops
    assert folded.drift is not None
    text = str(compiled.report)
    assert "fold-batch-norm" in text
    assert "drift from the model" in text
    assert compiled.report.to_json()["passes"][0]["nodes"] == captured.nodes


def test_a_fixed_first_dimension_is_reported() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(2.0).reshape(2, 1)

    compiled = burnish.compile(Fixed(), inputs=(torch.zeros(2, 3),))
    assert any(("dimension" in note and "fixed" in note) or "dynamic" in note for note in compiled.report.notes)
    with pytest.raises(burnish.InputError, match="has size 3 in dimension 0"):
        compiled(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, burnish.InputError, "a model is an nn.Module"),
        ({"model": "missing.burnish"}, burnish.InputError, "no such file"),
        ({"inputs": torch.zeros(1)}, burnish.InputError, "pass a tuple"),
        ({"inputs": ()}, burnish.InputError, "no tensor"),
        ({"inputs": (3,)}, burnish.InputError, "no tensor"),
        ({"inputs": (torch.zeros(2, 3),) * 3}, burnish.BurnishError, "forward|argument"),
        ({"passes": "fold"}, burnish.PipelineError, "no pass is called 'fold'"),
        ({"passes": "cse{x=1}"}, burnish.OptionError, "has no option 'x'"),
        ({"passes": 3}, burnish.OptionError, "passes must be"),
        ({"passes": [3]}, burnish.OptionError, "3 is no pass"),
        ({"backend": "onyx"}, burnish.BackendError, "did you mean 'onnx'"),
        ({"backend": "onnx{opsett=3}"}, burnish.OptionError, "no option 'opsett'"),
        ({"backend": "onnx,dce"}, burnish.OptionError, "one name"),
        ({"backend": "onnx{3}"}, burnish.OptionError, "name=value"),
        ({"backend": None}, burnish.OptionError, "must be a name"),
        ({"verify": 7}, burnish.OptionError, "0 to 4"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"model": torch.nn.Linear(3, 2), "inputs": (torch.zeros(2, 3),), **arguments}
    with pytest.raises(error, match=message):
        burnish.compile(call.pop("model"), **call)


def test_bad_calls_are_named() -> None:
    compiled = burnish.compile(torch.nn.Linear(3, 2), inputs=(torch.zeros(2, 3),), backend="torchscript")
    for bad, message in [
        ((torch.zeros(2, 4),), "size 4 in dimension 1"),
        ((torch.zeros(2, 3).double(),), "must have dtype torch.float32, but has torch.float64"),
        ((torch.zeros(3),), "must have 2 dimensions"),
        ((), "0 are given by position, and 1 expected"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "2 are given by position, and 1 expected"),
        (([1.0],), "must be a tensor"),
    ]:
        with pytest.raises(burnish.InputError, match=message):
            compiled(*bad)


def test_an_artifact_that_differs_from_the_model_is_refused(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.backends.torchscript import TorchScriptArtifact

    plain = TorchScriptArtifact.__call__

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = plain(self, *args, **kwargs)
        return {**outputs, "logits": outputs["logits"] * 1.01}

    monkeypatch.setattr(TorchScriptArtifact, "__call__", wrong)
    with pytest.raises(burnish.VerificationError, match="differs from the model by"):
        burnish.compile(net, inputs=(torch.randn(2, 3, 8, 8),), backend="torchscript")


def test_wrong_endings_are_refused(net: Net, tmp_path: Path) -> None:
    compiled = burnish.compile(net, inputs=(torch.randn(2, 3, 8, 8),), backend="torchscript")
    with pytest.raises(burnish.OptionError, match=r"ends in \.pt"):
        compiled.save(tmp_path / "net.onnx")
    (tmp_path / "net.txt").write_text("x")
    with pytest.raises(burnish.FileFormatError, match=r"\.onnx"):
        burnish.load(tmp_path / "net.txt")
    with pytest.raises(burnish.InputError, match="no such file"):
        burnish.load(tmp_path / "none.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_the_same_bytes(net: Net, backend: str, tmp_path: Path) -> None:
    inputs = (torch.ones(2, 3, 8, 8),)
    texts = []
    for name in ("a", "b"):
        compiled = burnish.compile(net, inputs=inputs, backend=backend)
        compiled.save(tmp_path / f"{name}{SUFFIX[backend]}")
        texts.append(compiled.program.print())
    assert texts[0] == texts[1]
    if backend == "onnx":
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_needs_no_model_source(backend: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model = transformers.BertModel(config).eval()
    tokens = torch.randint(0, 50, (2, 8))
    path = tmp_path / f"bert{SUFFIX[backend]}"
    compiled = burnish.compile(model, inputs={"input_ids": tokens}, backend=backend)
    assert type(compiled(tokens)) is type(model(tokens))
    compiled.save(path)
    script = (
        "import sys, torch, burnish\n"
        f"y = burnish.load({str(path)!r})(input_ids=torch.zeros(3, 8, dtype=torch.int64))\n"
        "assert 'transformers' not in sys.modules\n"
        "print(type(y).__name__, sorted(y), tuple(y['last_hidden_state'].shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "dict ['last_hidden_state', 'pooler_output'] (3, 8, 32)"
