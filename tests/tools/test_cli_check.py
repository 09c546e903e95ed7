"""`burnish check`: what it takes, what it prints, and its exit status."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import Command
from onnx import helper
from torch import nn

import burnish as api
from tests.conftest import Gpus
from tests.planted_faults import (
    Draft,
    asymmetric,
    clean,
    no_profile,
    quantized_bias,
    write,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.relu(self.stem(x)).mean((2, 3)))
        return result


def test_the_table_names_modules_and_what_mends(burnish: Command, tmp_path: Path) -> None:
    x = torch.randn(2, 16, 8, 8)
    compiled = api.compile(Net(), "default,quantize", inputs=(x,), calibration=[(x,)], progress=False)
    compiled.save(tmp_path / "net.onnx")
    result = burnish("check", tmp_path / "net.onnx", "--target", "tensorrt-11")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rule", "node", "operator", "reason", "mended", "by", "module"]
    assert any("uint8" in line and "`onnx{dialect=tensorrt}`" in line and "stem" in line for line in lines)


def test_what_burnish_quantizes_for_tensorrt_passes(burnish: Command, tmp_path: Path) -> None:
    x = torch.randn(2, 16, 8, 8)
    backend = "onnx{dialect=tensorrt}"
    compiled = api.compile(Net(), "default,quantize", inputs=(x,), calibration=[(x,)], backend=backend, progress=False)
    compiled.save(tmp_path / "net.onnx")
    assert any(each.op_type == "QuantizeLinear" for each in onnx.load(tmp_path / "net.onnx").graph.node)
    result = burnish("check", tmp_path / "net.onnx", "--target", "tensorrt-11", "--profile", "B=1:2:8")
    assert result.exit_code == 0, result.stdout


@pytest.mark.parametrize("target", ["tensorrt-11", "tensorrt-10.12", "onnxruntime", "openvino", "opset-20"])
def test_a_program_is_lowered_for_the_target(burnish: Command, saved: Path, target: str) -> None:
    result = burnish("check", saved, "--target", target, "--json")
    assert json.loads(result.stdout) == {"file": str(saved), "target": target, "findings": []}
    assert result.exit_code == 0


def test_the_example_inputs_of_a_program_are_its_profile(burnish: Command, saved: Path, tmp_path: Path) -> None:
    text = "# burnish 1\ngraph main(%x: f32[B, 4]) {\n  %a = aten.relu(%x) : f32[B, 4]\n  return %a\n}\n"
    program = dataclasses.replace(api.Program.parse(text), samples={})
    program.save(tmp_path / "bare.burnish")
    result = burnish("check", tmp_path / "bare.burnish", "-t", "tensorrt-11", "--json")
    assert [each["rule"] for each in json.loads(result.stdout)["findings"]] == ["profile"]
    assert burnish("check", tmp_path / "bare.burnish", "-t", "tensorrt-11", "--profile", "B=1:2:4").exit_code == 0
    assert burnish("check", saved, "-t", "tensorrt-11").exit_code == 0


def test_a_bundle_has_its_graph_and_its_profile(burnish: Command, gpus: Gpus, tmp_path: Path) -> None:
    gpus.names.clear()  # where there is one, it is an engine
    file, dims = tmp_path / "gelu.trtbundle", ({0: torch.export.Dim("B")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.compile(nn.GELU(), inputs=(torch.randn(2, 5),), dynamic_shapes=dims, backend="tensorrt").save(file)
    assert burnish("check", file, "-t", "tensorrt-10.12").exit_code == 0
    result = burnish("check", file, "-t", "tensorrt-11", "--profile", "C=1:2:3")
    assert result.exit_code == 2 and "a profile is of 'C'" in result.stderr
    result = burnish("check", file, "-t", "opset-19", "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert (found["rule"], found["operator"], result.exit_code) == ("operator", "Gelu", 1)
    file.write_bytes(file.read_bytes()[:200])
    assert burnish("check", file, "-t", "tensorrt-11").exit_code == 2


def test_what_onnx_cannot_express_of_a_program_is_a_finding(burnish: Command, tmp_path: Path) -> None:
    class Median(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.median(-1).values

    api.capture(Median(), (torch.randn(2, 5),)).save(tmp_path / "median.burnish")
    result = burnish("check", tmp_path / "median.burnish", "-t", "tensorrt-11", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["findings"]
    assert found["rule"] == "onnx" and "neither a translation" in found["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.onnx", "-t", "tensorrt-11"], "missing.onnx: no such file"),
        ([".", "-t", "tensorrt-11"], ".: a folder, not a file"),
        (["{file}", "-t", "tensorrt-8.6"], "nothing is known of TensorRT 8.6: there are 10.12,"),
        (["{file}", "-t", "tensorflow"], "no target is called 'tensorflow'; there are tensorrt-10.12,"),
        (["{file}", "-t", "opset-2"], "no target is called 'opset-2'"),
        (["{file}", "-t", "opset-99"], "no target is called 'opset-99'"),
        (["{file}", "-t", "tensorrt-11", "--profile", "B"], "is no range: write 'B=1:8:32'"),
        (["{file}", "-t", "tensorrt-11", "--profile", "B=8:4:2"], "must not fall"),
        (
            ["{file}", "-t", "tensorrt-11", "--profile", "B=1:8:9223372036854775808"],
            "must be 9223372036854775807 at the most",
        ),
        (["{file}", "-t", "tensorrt-11", "--profile", "B=4", "--profile", "B=8"], "B has a range already"),
        (
            ["{file}", "-t", "tensorrt-11", "--profile", "C=1:2:3"],
            "a profile is of 'C', and the graph has no such dynamic size; there are B",
        ),
        (["{file}", "-t", "onnxruntime", "--profile", "B=1:2:3"], "only TensorRT has profiles"),
        (["{folder}/foreign.onnx", "-t", "tensorrt-11"], "truncated, or not an ONNX file"),
        (["{folder}/broken.onnx", "-t", "tensorrt-11"], "node 'n0' reads 'nowhere', which nothing before it makes"),
        (["{folder}/twice.onnx", "-t", "tensorrt-11"], "node 'n1' makes 'y', which is there already"),
        (["{folder}/stages.burnish", "-t", "tensorrt-11"], "a program of 2 stages: `burnish compile"),
        (["{folder}/other.txt", "-t", "tensorrt-11"], "the ending must be .onnx, .burnish or .trtbundle"),
        (["{folder}/net.burnish", "-t", "opset-12"], "a program is lowered to opsets 18 to 23"),
    ],
)
def test_what_cannot_be_checked_is_status_2(
    burnish: Command, saved: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    file = write(tmp_path, no_profile)
    (tmp_path / "foreign.onnx").write_bytes(b"something else")
    (tmp_path / "other.txt").write_text("")
    (tmp_path / "net.burnish").write_bytes(saved.read_bytes())
    draft = Draft()
    draft.add("Relu", ["nowhere"], ["y"])
    onnx.save(draft.model(), tmp_path / "broken.onnx")
    draft = Draft()
    draft.add("Relu", ["x"], ["y"])
    draft.add("Neg", ["x"], ["y"])
    onnx.save(draft.model(), tmp_path / "twice.onnx")
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    stages = api.Pipeline.parse("canonicalize,partition{stages=2}")
    stages.run(api.capture(layers, (torch.randn(2, 4),)), api.Context(progress=False)).save(tmp_path / "stages.burnish")
    result = burnish("check", *[each.format(file=file, folder=tmp_path) for each in options])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stdout == ""


def test_weights_in_a_file_beside_are_read(burnish: Command, tmp_path: Path) -> None:
    draft = Draft()
    asymmetric(draft)
    options = {"save_as_external_data": True, "location": "model.data", "size_threshold": 0}
    onnx.save_model(draft.model(), tmp_path / "model.onnx", **options)
    result = burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11")
    assert result.exit_code == 1
    assert "the zero point is 3" in result.stdout
    (tmp_path / "model.data").unlink()
    assert burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11").exit_code == 2


def test_local_functions_are_looked_into(burnish: Command, tmp_path: Path) -> None:
    body = [helper.make_node("Det", ["a"], ["b"], name="inside")]
    function = helper.make_function("mine", "Wrapped", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    draft = Draft()
    draft.domains["mine"] = 1
    draft.add("Wrapped", ["x"], ["y"], domain="mine")
    model = draft.model()
    model.functions.append(function)
    onnx.save(model, tmp_path / "model.onnx")
    result = burnish("check", tmp_path / "model.onnx", "-t", "tensorrt-11", "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert found["operator"] == "Det"


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_never_a_traceback(burnish: Command, tmp_path: Path, seed: int) -> None:
    source = write(tmp_path, quantized_bias).read_bytes()
    generator = np.random.default_rng(seed)
    statuses = set()
    for _ in range(30):
        damaged = bytearray(source)
        for place in generator.integers(len(damaged), size=int(generator.choice([1, 4, 16]))):
            damaged[place] = generator.integers(256)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        # An exception that is no exit comes through.
        statuses.add(burnish("check", tmp_path / "damaged.onnx", "-t", "tensorrt-11").exit_code)
    assert statuses <= {0, 1, 2} and 2 in statuses


def test_without_openvino_it_says_what_is_missing(
    burnish: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from burnish.backends.onnx import openvino_session

    openvino_session._imported.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = burnish("check", write(tmp_path, clean), "-t", "openvino")
    assert result.exit_code == 1
    assert "pip install 'burnish[openvino]'" in result.stderr


def test_text_that_is_not_utf8_is_damage(burnish: Command, tmp_path: Path) -> None:
    file = write(tmp_path, clean)
    file.write_bytes(file.read_bytes().replace(b"Relu", b"\xff\xfelu"))
    result = burnish("check", file, "-t", "tensorrt-11")
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr
