"""`burnish compile` and `capture`: what MODEL may be, example inputs, and the files that come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Command

from burnish.compiler.loading import load
from burnish.compiler.program import Program

NETS = "nets_of_the_command_tests"
IMAGE = "f32[2,3,8,8]"


def test_capture_prints_text_that_parses(burnish: Command) -> None:
    result = burnish("capture", f"{NETS}:Net", "--input", IMAGE)
    assert result.exit_code == 0
    assert Program.parse(result.stdout).signature.input_names == ("x",)
    assert "[B, 3, 8, 8]" in result.stdout


def test_capture_saves_weights_and_samples(burnish: Command, tmp_path: Path) -> None:
    output = tmp_path / "net.burnish"
    assert burnish("capture", f"{NETS}:with_inputs", "-o", output).exit_code == 0
    program = Program.load(output)
    assert torch.equal(program.constants["bn.running_var"], torch.full((4,), 2.0))
    assert program.samples["x"].shape == (2, 3, 8, 8)


def test_inputs_by_name_are_seeded(burnish: Command, tmp_path: Path) -> None:
    samples = []
    for seed in (1, 1, 2):
        output = tmp_path / f"{seed}.burnish"
        arguments = ("--input", "ids:i64[2,50]", "--input", "scale:f32[]", "--seed", seed, "-o", output)
        assert burnish("capture", f"{NETS}:Ids", *arguments).exit_code == 0
        samples.append(Program.load(output).samples)
    assert set(samples[0]["ids"].flatten().tolist()) == {0, 1}
    assert torch.equal(samples[0]["ids"], samples[1]["ids"])
    assert not torch.equal(samples[0]["ids"], samples[2]["ids"])


def test_input_overrides_those_of_the_factory(burnish: Command, tmp_path: Path) -> None:
    output = tmp_path / "net.burnish"
    assert burnish("capture", f"{NETS}:with_inputs", "--input", "f32[5,3,9,9]", "-o", output).exit_code == 0
    assert Program.load(output).samples["x"].shape == (5, 3, 9, 9)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (f"{NETS}:Net", "without example inputs: give --input"),
        (f"{NETS}:Nett", "did you mean 'Net'"),
        (f"{NETS}:raising", "raised ValueError: no weights here"),
        (f"{NETS}:number", "returned an object of type int"),
        (f"{NETS}:instance", "name a function or class"),
        ("no_such_module_here:x", "looked in the current directory"),
        ("broken_of_the_command_tests:x", "it was found, and failed"),
        (f"{NETS}.py", "a model file is a .burnish"),
    ],
)
def test_models_that_cannot_be_used(burnish: Command, model: str, message: str) -> None:
    result = burnish("capture", model)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["f32[2,x]"], "is no type"),
        (["float[2]"], "no dtype is called 'float'"),
        (["ids:i64[2]", "f32[]"], "name all inputs, or none"),
        (["a:i64[2]", "a:f32[]"], "two inputs have the same name"),
    ],
)
def test_inputs_that_are_no_types(burnish: Command, inputs: list[str], message: str) -> None:
    options = [part for each in inputs for part in ("--input", each)]
    result = burnish("capture", f"{NETS}:Ids", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_compile_a_module_to_torchscript(burnish: Command, tmp_path: Path) -> None:
    output = tmp_path / "net.pt"
    result = burnish("compile", f"{NETS}:with_inputs", "-p", "fold-batch-norm,dce", "-b", "torchscript", "-o", output)
    assert result.exit_code == 0
    assert "drift from the model" in result.stdout
    assert str(output) in result.stderr
    x = torch.randn(3, 3, 8, 8)
    net = __import__(NETS).Net().eval()
    artifact = load(output)
    assert torch.allclose(artifact(x)["pooled"], net(x)["pooled"], atol=1e-5)


def test_compile_a_saved_program_to_onnx_with_json(burnish: Command, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    result = burnish("compile", saved, "-o", output, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["backend"] == "onnx"
    assert report["file"] == str(output)
    assert "fold-batch-norm" in [row["pass"] for row in report["passes"]]
    assert report["artifact"]["drift"] < 1e-4
    assert output.stat().st_size > 0


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "stages"])
def test_compile_into_stages(burnish: Command, tmp_path: Path, backend: str) -> None:
    options = ["-p", "default,partition{stages=2}", "-b", backend, "-o", tmp_path / "stages"]
    for _ in range(2):
        result = burnish("compile", f"{NETS}:with_inputs", *options)
        assert result.exit_code == 0, result.stderr
    x = torch.randn(3, 3, 8, 8)
    net = __import__(NETS).Net().eval()
    assert torch.allclose(load(tmp_path / "stages")(x)["pooled"], net(x)["pooled"], atol=1e-5)
    assert burnish("run", tmp_path / "stages", "--input", "f32[3,3,8,8]").exit_code == 0
    result = burnish("compile", f"{NETS}:with_inputs", "-b", backend, "-o", tmp_path / "other")
    assert result.exit_code == (2 if backend != "stages" else 1)
    (tmp_path / "mine").mkdir()
    options[-1] = tmp_path / "mine"
    result = burnish("compile", f"{NETS}:with_inputs", *options)
    assert result.exit_code == 2 and "no folder of a partitioned model: it is not replaced" in result.stderr


def test_compile_an_exported_program(burnish: Command, tmp_path: Path) -> None:
    file = tmp_path / "relu.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.randn(2),)), file)
    result = burnish("compile", file, "-p", "", "-b", "torchscript", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["file"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-b", "onyx"], "no backend is called 'onyx'"),
        (["-b", "torchscript", "-o", "net.onnx"], "ends in .pt"),
        (["-b", "torchscript{speed=2}"], "has no option 'speed'"),
        (["-p", "cze"], "no pass is called 'cze'"),
        (["-o", "missing/net.onnx"], "there is no folder missing"),
    ],
)
def test_a_wrong_option_is_found_before_any_work(
    burnish: Command, saved: Path, options: list[str], message: str
) -> None:
    result = burnish("compile", saved, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_that_cannot_be_captured_is_status_1_and_leaves_no_file(
    burnish: Command, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "branching_of_the_command_tests.py").write_text(
        "import torch\n"
        "class Branching(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    output = tmp_path / "net.burnish"
    output.write_text("old")
    result = burnish("capture", "branching_of_the_command_tests:Branching", "--input", "f32[2]", "-o", output)
    assert result.exit_code == 1
    assert "cannot capture Branching" in result.stderr
    assert output.read_text() == "old"


def test_inputs_that_the_model_does_not_take(burnish: Command, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "linear_of_the_command_tests.py").write_text(
        "import torch\nclass Small(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Linear(3, 2))\n"
    )
    output = tmp_path / "net.burnish"
    result = burnish("capture", "linear_of_the_command_tests:Small", "--input", "f32[2,5]", "-o", output)
    assert result.exit_code == 1
    assert "Small does not run on these inputs, (f32[2, 5])" in result.stderr
    assert "remedy: inputs that forward(input)" in result.stderr
    assert "control flow" not in result.stderr and "Traceback" not in result.stderr
    assert not output.exists()
