"""recover: what training wins back, what it leaves alone, teachers, checkpoints, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import burnish
from burnish import Context, Pipeline, Program
from burnish.compiler.pipeline import run_pipeline
from burnish.passes.recovery import Recover
from burnish.passes.recovery import training as training_module
from burnish.passes.recovery.batches import Batches
from burnish.passes.recovery.teachers import sample_weights

_DATA = [torch.randn(32, 6, generator=torch.Generator().manual_seed(index)) for index in range(8)]


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)).eval()


def _captured(model: nn.Module | None = None) -> Program:
    return burnish.capture(model or _model(), (_DATA[0],))


def _run(
    passes: list[Any], program: Program | None = None, data: Any = _DATA, seed: int = 0
) -> tuple[Program, Context]:
    context = Context(calibration=data, seed=seed, progress=False)
    return run_pipeline(Pipeline(passes), program or _captured(), context)[0], context


def _distance(program: Program, model: nn.Module) -> float:
    x = torch.cat(_DATA)
    with torch.no_grad():
        return float((program(x) - model(x)).square().mean())


def test_a_pruned_program_learns_from_the_original() -> None:
    pruned, _ = _run(["canonicalize,prune"])
    recovered, context = _run(["canonicalize,prune", Recover(steps=150, distill="mse", learning_rate=0.01)])
    assert [value.shape for value in recovered.constants.values()] == [v.shape for v in pruned.constants.values()]
    assert _distance(recovered, _model()) < 0.1 * _distance(pruned, _model())
    assert "recover: 150 steps, loss" in context.notes[-1]


def test_iterations_compose() -> None:
    text = "canonicalize,repeat{max=3}(prune{ratio=0.2},recover{steps=40,distill=mse,learning_rate=0.01})"
    recovered, context = _run([text])
    assert recovered.constants["0.weight"].shape[0] == 13  # 24 -> 20 -> 16 -> 13
    assert sum("recover: 40 steps" in note for note in context.notes) == 3
    assert _distance(recovered, _model()) < _distance(_run(["canonicalize,prune{ratio=0.45}"])[0], _model())


def test_a_loss_needs_no_teacher() -> None:
    labels = [(x, (x[:, 0] > 0).long()) for x in _DATA]
    trained, context = _run(
        ["canonicalize,recover{steps=120,loss=cross-entropy,distill=none,learning_rate=0.01}"], data=labels
    )
    x = torch.cat(_DATA)
    assert float((trained(x).argmax(1) == (x[:, 0] > 0)).float().mean()) > 0.95
    assert "of the last samples are right" in context.notes[-1]


def test_a_loss_of_the_user_sees_outputs_and_targets() -> None:
    seen = []

    def loss(outputs: Any, targets: Any) -> torch.Tensor:
        seen.append((outputs.shape, targets))
        return (outputs - 1.0).square().mean()

    trained, _ = _run(
        ["canonicalize", Recover(steps=200, loss=loss, distill=None, learning_rate=0.02, data=[(_DATA[0], "any")])]
    )
    assert seen[0] == ((32, 4), "any")
    assert torch.allclose(trained(_DATA[0]), torch.ones(32, 4), atol=0.3)


def test_masked_weights_stay_zero_through_training() -> None:
    sparse, _ = _run(["canonicalize,sparsify{ratio=0.5}"])
    trained, _ = _run(["canonicalize,sparsify{ratio=0.5}", Recover(steps=80, distill="mse", learning_rate=0.01)])
    folded, _ = _run(["canonicalize,sparsify{ratio=0.5}", Recover(steps=80, distill="mse"), "fold-constants"])
    weights = [value for value in folded.used_constants().values() if value.dim() == 2]
    assert sum(int((value == 0).sum()) for value in weights) == sum(value.numel() for value in weights) // 2
    assert _distance(trained, _model()) < 0.5 * _distance(sparse, _model())


@pytest.mark.parametrize("regrow", ["set", "rigl"])
def test_masks_move_and_keep_their_number(regrow: str) -> None:
    options = f"steps=90,distill=mse,learning_rate=0.01,regrow={regrow},regrow_every=10"
    passes = f"canonicalize,sparsify{{ratio=0.8}},recover{{{options}}}"
    before, _ = _run(["canonicalize,sparsify{ratio=0.8}"])
    after, _ = _run([passes])
    masks = [name for name, value in before.used_constants().items() if value.dtype == torch.bool]
    assert masks
    for name in masks:
        assert int(before.constants[name].sum()) == int(after.constants[name].sum())
    assert any(not torch.equal(before.constants[name], after.constants[name]) for name in masks)
    again, _ = _run([passes])
    assert all(torch.equal(after.constants[name], again.constants[name]) for name in masks)


def test_a_pattern_is_no_mask_to_move() -> None:
    passes = 'canonicalize,sparsify{pattern="2:4"},recover{steps=30,distill=mse,regrow=rigl,regrow_every=5}'
    before, _ = _run(['canonicalize,sparsify{pattern="2:4"}'])
    after, _ = _run([passes])
    for name, value in before.used_constants().items():
        if value.dtype == torch.bool:
            assert torch.equal(value, after.constants[name])


def test_integers_are_trained_on_their_grids() -> None:
    quantized, _ = _run(["canonicalize,quantize{bits=4}"])
    trained, _ = _run(["canonicalize,quantize{bits=4}", Recover(steps=150, distill="mse", learning_rate=0.005)])
    for name, value in quantized.used_constants().items():
        assert trained.constants[name].dtype == value.dtype
    assert _distance(trained, _model()) < 0.7 * _distance(quantized, _model())


def test_frozen_constants_stay() -> None:
    program = Pipeline.parse("canonicalize").run(_captured(), Context())
    trained, _ = _run([Recover(steps=5, freeze=("0.*",), distill="mse", teachers=(_model(1),))], program)
    assert torch.equal(trained.constants["0.weight"], program.constants["0.weight"])
    assert not torch.equal(trained.constants["2.weight"], program.constants["2.weight"])


def test_statistics_are_updated_or_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    for statistics, moves in (("updated", True), ("frozen", False)):
        trained, _ = _run([f"canonicalize,recover{{steps=5,statistics={statistics}}}"], _captured(model))
        assert torch.equal(trained.constants["1.running_mean"], torch.zeros(8)) is not moves


def test_features_are_matched() -> None:
    passes = "canonicalize,sparsify{ratio=0.7}"
    options = {"steps": 60, "distill": None, "learning_rate": 0.01}
    seen = {}
    for features in (("_1",), ("_3",)):
        trained, _ = _run([passes, Recover(features=features, **options)])  # type: ignore[arg-type]
        with torch.no_grad():
            x = torch.cat(_DATA)
            inner = _model()[:2](x)
            mine = torch.tanh(
                torch.nn.functional.linear(
                    x, trained.constants["0.weight"] * trained.constants["0.weight.mask"], trained.constants["0.bias"]
                )
            )
            seen[features] = float((mine - inner).square().mean())
    # What is matched comes nearer than what only leads to what is matched.
    assert seen["_1",] < seen["_3",]


def test_several_teachers() -> None:
    teachers = (_model(1), Pipeline.parse("canonicalize").run(_captured(_model(2)), Context()))
    for weighting in ("equal", "confidence", "agreement"):
        trained, _ = _run(
            ["canonicalize", Recover(steps=60, teachers=teachers, weighting=weighting, learning_rate=0.01)]
        )
        x = torch.cat(_DATA)
        with torch.no_grad():
            mixed = (teachers[0](x).softmax(1) + teachers[1](x).softmax(1)) / 2
            near = (trained(x).softmax(1) - mixed).abs().mean()
            far = (_model()(x).softmax(1) - mixed).abs().mean()
        assert near < 0.5 * far, weighting


def test_weights_of_teachers_by_sample() -> None:
    sure, unsure = torch.tensor([[8.0, 0, 0], [0.0, 0, 0]]), torch.tensor([[0.0, 0, 0.1], [0.0, 9, 0]])
    labels = torch.tensor([2, 1])
    assert torch.allclose(sample_weights([sure, unsure], "equal", None), torch.full((2, 2), 0.5))
    confident = sample_weights([sure, unsure], "confidence", None)
    assert confident[0, 0] > 0.7 and confident[1, 1] > 0.7
    right = sample_weights([sure, unsure], "confidence", labels)
    assert right[1, 0] > 0.9 and right[1, 1] > 0.7  # sure of the wrong class counts for little
    odd = sample_weights([sure, sure, unsure], "agreement", None)
    assert odd[2, 0] < odd[0, 0]
    for each in (confident, right, odd):
        assert torch.allclose(each.sum(0), torch.ones(2))


def test_the_same_seed_gives_the_same_bytes() -> None:
    loader = torch.utils.data.DataLoader(torch.cat(_DATA), batch_size=32, shuffle=True)  # type: ignore[arg-type]
    first, second, other = (
        _run(["canonicalize,prune,recover{steps=12}"], data=loader, seed=seed)[0].constants["0.weight"]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_text_of_a_pass_has_no_addresses() -> None:
    passes = Recover(steps=1, data=_DATA, teachers=(_model(1),), loss=nn.functional.mse_loss)
    assert (
        str(passes)
        == 'recover{steps=1,loss="<function>",teachers=["<Sequential>"],data=["<Tensor>"' + (',"<Tensor>"' * 7) + "]}"
    )


def test_weights_that_no_output_needs() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer(x)
            return x + 1

    with pytest.raises(burnish.PassError, match="no output of floats depends on the weights"):
        _run(["canonicalize,recover"], burnish.capture(Unused(), (_DATA[0],)))


def test_nobody_elses_random_numbers_are_used() -> None:
    program = _captured()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    _run(["canonicalize,recover{steps=3}"], program)
    assert torch.equal(torch.rand(1), expected)


def test_epochs_read_everything() -> None:
    reads = 0

    class Data:
        def __iter__(self) -> Iterator[torch.Tensor]:
            nonlocal reads
            for each in _DATA[:3]:
                reads += 1
                yield each

    _, context = _run(["canonicalize,recover{epochs=2}"], data=Data())
    assert "recover: 6 steps" in context.notes[-1]
    assert reads == 3 + 6  # it has no length: it is read once to count
    _, context = _run(["canonicalize,recover{epochs=2}"], data=iter(_DATA[:3]))
    assert "recover: 6 steps" in context.notes[-1]


def test_what_is_random_in_data_is_found_again() -> None:
    class Data:
        def __iter__(self) -> Iterator[torch.Tensor]:
            for _ in range(4):
                yield torch.randn(2, 6)

    program = _captured()
    batches = Batches(program, Data(), 5, paired=False)
    seen = []
    for _ in range(7):
        torch.manual_seed(0)  # what the training draws changes nothing
        seen.append(batches.next()[0])
    late = Batches(program, Data(), 5, paired=False)
    late.skip_to(1, 2)
    for name, value in late.next()[0].items():
        assert torch.equal(value, seen[6][name])
        assert not torch.equal(value, seen[2][name])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_continues_with_the_same_result(
    optimizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = torch.utils.data.DataLoader(torch.cat(_DATA), batch_size=32, shuffle=True)  # type: ignore[arg-type]
    passes = ["canonicalize,sparsify{ratio=0.6}", Recover(
        steps=30, optimizer=optimizer, regrow="set", regrow_every=4, checkpoint=str(tmp_path))]  # fmt: skip
    whole, _ = _run([passes[0], Recover(steps=30, optimizer=optimizer, regrow="set", regrow_every=4)], data=loader)
    monkeypatch.setattr(training_module, "_EVERY", 0.0)
    step, done = training_module.Training._step, []

    def interrupted(self: Any, number: int) -> Any:
        done.append(number)
        if len(done) == 20:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(training_module.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(passes, data=loader)
    done.append(-1)
    resumed, context = _run(passes, data=loader)
    assert done[21] == 19
    assert "30 steps, 19 of them before" in context.notes[-1]
    for name, value in whole.constants.items():
        assert torch.equal(value, resumed.constants[name]), name
    again, context = _run(passes, data=loader)
    assert "all 30 steps were done before" in context.notes[-1]
    for name, value in whole.constants.items():
        assert torch.equal(value, again.constants[name]), name
    _run(["canonicalize,sparsify{ratio=0.5}", *passes[1:]], data=loader)
    assert len(list(tmp_path.iterdir())) == 2  # another training has a file of its own


def test_checkpoints_of_other_teachers_are_not_taken(tmp_path: Path) -> None:
    def trained(seed: int) -> torch.Tensor:
        for teacher in (_model(seed), Pipeline.parse("canonicalize").run(_captured(_model(seed)), Context())):
            loss = lambda outputs, _: outputs.square().mean()  # noqa: E731  its text has an address
            options = Recover(steps=3, teachers=(teacher,), loss=loss, checkpoint=str(tmp_path),
                              data=[(_DATA[0], None)])  # fmt: skip
            found = _run(["canonicalize", options])[0].constants["0.weight"]
        return found

    first, second = trained(1), trained(2)
    assert not torch.equal(first, second)
    # Two teachers, each as a module and as a Program; the same ones again find their files.
    assert len(list(tmp_path.iterdir())) == 4
    assert torch.equal(trained(1), first)
    assert len(list(tmp_path.iterdir())) == 4


_KILLED = """
import sys, torch, burnish
from torch import nn
from burnish import Context, Pipeline
from burnish.passes.recovery import Recover, training
training._EVERY = 0.0
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 4)).eval()
data = [torch.randn(32, 6) for _ in range(8)]
step = training.Training._step
def slow(self, number):
    if number == 12:
        print("at 12", flush=True)
        if sys.argv[2] == "wait":
            import time; time.sleep(60)
    return step(self, number)
training.Training._step = slow
passes = Pipeline(["canonicalize,prune", Recover(steps=20, checkpoint=sys.argv[1])])
program = passes.run(burnish.capture(model, (data[0],)), Context(calibration=data, progress=False))
print(float(sum(value.double().abs().sum() for value in program.constants.values())))
"""


@pytest.mark.slow
def test_a_killed_process_continues(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(_KILLED))

    def command(folder: str, mode: str) -> list[str]:
        return [sys.executable, str(script), str(tmp_path / folder), mode]

    with subprocess.Popen(command("a", "wait"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at 12\n"
        os.kill(process.pid, signal.SIGKILL)
    resumed = subprocess.run(command("a", "go"), capture_output=True, text=True, check=True).stdout.split()
    whole = subprocess.run(command("b", "go"), capture_output=True, text=True, check=True).stdout.split()
    assert resumed[-1] == whole[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "option 'steps' must be 1 or more, but is 0"),
        ("steps=3,epochs=2", "give steps or epochs, not both"),
        ("loss=huber", "option 'loss' must be 'cross-entropy' or 'mse' or Callable or none, but is 'huber'"),
        ("distill=none", "loss and distill are both none"),
        ("temperature=0", "option 'temperature' must be above 0"),
        ("learning_rate=-1", "option 'learning_rate' must be above 0"),
        ("balance=2", "option 'balance' must be from 0 to 1"),
        ("weight_decay=-1", "option 'weight_decay' must be 0 or more"),
        ("freeze=[head]", "no constant matches 'head': there are 0.weight, 0.bias"),
        ("features=[_7]", "the program has no node '_7'"),
        ("segments=0", "option 'segments' must be 1 or more"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises((burnish.PassError, burnish.OptionError), match=message):
        _run([f"canonicalize,recover{{{options}}}"])


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ("", None, "needs training data"),
        ("", [], "the data are empty"),
        ("epochs=1", [], "the data are empty"),
        ("", 5, "must be an iterable of inputs, but is int"),
        ("", [torch.randn(2, 7)], "training item 0: .*input"),
        ("", [torch.full((2, 6), torch.nan)], "training item 0: input .* holds NaN"),
        ("loss=cross-entropy", [torch.randn(2, 6)], "a loss needs pairs"),
        (
            "loss=cross-entropy",
            [(torch.randn(2, 6), torch.randn(2))],
            "takes classes, integers of shape \\[2\\], but",
        ),
        ("loss=cross-entropy", [(torch.randn(2, 6), torch.tensor([0, 9]))], "class 9 of 4"),
        ("loss=mse", [(torch.randn(2, 6), torch.randn(2))], "the target is float32\\[2\\], but the output \\[2, 4\\]"),
        ("loss=cross-entropy", [(torch.randn(2, 6), torch.tensor([0, -1]))], "class -1 of 4: they are numbered from 0"),
        ("loss=cross-entropy", [(torch.randn(2, 6), torch.tensor([True, False]))], "but the target is bool"),
        ("loss=cross-entropy", [(torch.randn(2, 6), torch.full((2,), -100))], "no sample of the batch has a class"),
        ("loss=mse", [(torch.randn(2, 6), torch.randn(2, 4) * 1j)], "the target is complex64"),
        ("", [torch.randn(0, 6)], "training item 0: input .* is empty"),
        ("learning_rate=1e30,optimizer=sgd", _DATA, "a smaller learning_rate than 1e\\+30"),
    ],
)
def test_bad_data(options: str, data: Any, message: str) -> None:
    with pytest.raises((burnish.PassError, burnish.InputError), match=message):
        _run([f"canonicalize,recover{{{options}}}" if options else "canonicalize,recover"], data=data)


def test_bad_teachers() -> None:
    for teachers, features, message in (
        ((3,), (), "teacher 1 must be a Program or an nn.Module, but is int"),
        ((nn.Linear(6, 5),), (), "teacher 1 gives \\[32, 5\\] for output .*, but the program gives \\[32, 4\\]"),
        ((_model(),), ("_1",), "teacher 1 is a module, but features are nodes of a Program"),
    ):
        with pytest.raises(burnish.PassError, match=message):
            _run(["canonicalize", Recover(steps=1, teachers=teachers, features=features)])
    with pytest.raises(burnish.PassError, match=r"feature '_1' is \[32, 12\] in the student and \[32, 24\]"):
        _run(["canonicalize,prune", Recover(steps=1, features=("_1",))])


def test_foreign_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(burnish.PassError, match="cannot be made for checkpoints"):
        _run(["canonicalize", Recover(steps=1, checkpoint=str(tmp_path / "file"))])
    passes = ["canonicalize", Recover(steps=2, checkpoint=str(tmp_path / "folder"))]
    _run(passes)
    (file,) = (tmp_path / "folder").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(burnish.PassError, match="no checkpoint of burnish, or it is truncated: remove it"):
        _run(passes)


def test_nothing_to_train() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    _, context = _run(["canonicalize,recover"], burnish.capture(Twice(), (_DATA[0],)))
    assert context.notes == ["recover found nothing to train"]


def test_half_precision_trains_too() -> None:
    options = Recover(steps=150, distill="mse", learning_rate=0.01, precision="bfloat16")
    pruned, _ = _run(["canonicalize,prune"])
    recovered, _ = _run(["canonicalize,prune", options])
    assert all(value.dtype == torch.float32 for value in recovered.constants.values())
    assert _distance(recovered, _model()) < 0.2 * _distance(pruned, _model())


def test_classes_of_any_whole_numbers() -> None:
    data = [(x, torch.arange(32, dtype=torch.int32) % 4) for x in _DATA]
    assert "right" in _run(["canonicalize,recover{steps=2,loss=cross-entropy}"], data=data)[1].notes[-1]


def test_a_last_batch_of_one_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    program, _ = _run(["canonicalize,recover{epochs=2}"], _captured(model), list(_DATA[0][:5].split(4)))
    assert all(bool(each.isfinite().all()) for each in program.constants.values())


class _Mean(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.layer = form, nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        return x.mean() if self.form == "number" else x[..., :1]


@pytest.mark.parametrize("form", ["number", "column"])
def test_outputs_without_classes(form: str) -> None:
    torch.manual_seed(0)
    program = _captured(_Mean(form).eval())
    with pytest.raises(burnish.PassError, match=r"compares chances over the last dimension.*use distill=mse"):
        _run(["canonicalize,recover{steps=2}"], program)
    _, context = _run(["canonicalize,recover{steps=2,distill=mse}"], program)
    assert "recover: 2 steps" in context.notes[-1] and "samples" not in context.notes[-1]


def test_teachers_in_text() -> None:
    with pytest.raises(burnish.OptionError, match="option 'teachers' is Python's: give the pass as an object"):
        Pipeline.parse("recover{teachers=[a]}")


_CHANGES: dict[str, Any] = {
    "a value is missing": lambda tensors: tensors.pop("value/0.weight"),
    "another shape": lambda tensors: tensors.update({"value/0.weight": torch.zeros(3, 3)}),
    "not a number": lambda tensors: tensors["value/0.weight"].fill_(torch.nan),
    "a foreign state": lambda tensors: tensors.update({"optimizer/exp_avg/other": torch.zeros(3)}),
    "a state of another shape": lambda tensors: tensors.update({"optimizer/exp_avg/0.weight": torch.zeros(3)}),
    "random floats": lambda tensors: tensors.update({"random": torch.zeros(5056)}),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_checkpoints_that_were_changed(change: str, tmp_path: Path) -> None:
    passes = ["canonicalize", Recover(steps=2, checkpoint=str(tmp_path))]
    _run(passes)
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    _CHANGES[change](tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(burnish.PassError, match="not of this training, or was changed: remove it"):
        _run(passes)


def test_a_folder_in_place_of_a_checkpoint(tmp_path: Path) -> None:
    passes = ["canonicalize", Recover(steps=2, checkpoint=str(tmp_path))]
    _run(passes)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(burnish.PassError, match="no checkpoint of burnish, or it is truncated: remove it"):
        _run(passes)
    with pytest.raises(burnish.PassError, match="cannot be made for checkpoints"):
        _run(["canonicalize", Recover(steps=1, checkpoint="a\0b")])
