"""`burnish run`, `bench` and `profile` on a Program and on artifacts of both backends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command

from burnish.compiler.compile import compile_model
from burnish.compiler.program import Program
from burnish.tools.runnable import Runnable
from tests.backends.test_onnx import needs_openvino


@pytest.fixture(scope="module")
def files(saved: Path) -> dict[str, Path]:
    program = Program.load(saved)
    found = {"eager": saved}
    for backend, suffix in (("onnx", ".onnx"), ("torchscript", ".pt")):
        found[backend] = saved.with_suffix(suffix)
        compile_model(program, "fold-batch-norm,dce", backend=backend, progress=False).save(found[backend])
    return found


@pytest.mark.parametrize("kind", ["eager", "onnx", "torchscript"])
def test_run_from_npz_to_npz(burnish: Command, files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    x = torch.randn(5, 3, 8, 8)
    np.savez(tmp_path / "in.npz", x=x.numpy())
    result = burnish("run", files[kind], "--inputs", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert result.exit_code == 0
    wanted = Program.load(files["eager"])(x)
    with np.load(tmp_path / "out.npz") as outputs:
        assert set(outputs.files) == {"pooled", "features"}
        np.testing.assert_allclose(outputs["pooled"], wanted["pooled"].numpy(), atol=1e-5)
        np.testing.assert_allclose(outputs["features"], wanted["features"].numpy(), atol=1e-6)
    assert "[5, 3, 8, 8]" in result.stdout


@needs_openvino
def test_a_file_is_run_in_the_runtime_that_it_was_saved_for(burnish: Command, saved: Path, tmp_path: Path) -> None:
    # ONNX Runtime has no convolution in bfloat16.
    passes, file = "default,precision{dtype=bf16}", tmp_path / "net.onnx"
    program = Program.load(saved)
    compile_model(program, passes, backend="onnx{runtime=openvino}", progress=False, verify=0).save(file)
    assert burnish("run", file, "--input", "x:f32[2,3,8,8]").exit_code == 0
    assert burnish("bench", file, saved, "--input", "x:f32[2,3,8,8]", "--seconds", "0.05").exit_code == 0
    assert burnish("profile", file, "--input", "x:f32[2,3,8,8]").exit_code == 0


def test_run_prints_statistics(burnish: Command, files: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.full((1, 3, 8, 8), 2.0, np.float32))
    result = burnish("run", files["eager"], "--inputs", tmp_path / "in.npz", "--json")
    features = json.loads(result.stdout)["outputs"]["features"]
    assert features == {
        "shape": [1, 3, 8, 8], "dtype": "float32", "min": 2.0, "max": 2.0, "mean": 2.0, "std": 0.0, "remark": "",
    }  # fmt: skip


def test_nan_and_infinity_are_counted(burnish: Command, files: dict[str, Path], tmp_path: Path) -> None:
    x = np.ones((1, 3, 8, 8), np.float32)
    x[0, 0, 0, :3] = [np.nan, np.inf, np.inf]
    np.savez(tmp_path / "in.npz", x=x)
    outputs = json.loads(burnish("run", files["eager"], "--inputs", tmp_path / "in.npz", "--json").stdout)["outputs"]
    assert outputs["features"]["remark"] == "1 NaN, 2 infinite"
    assert outputs["features"]["max"] == 1.0


def test_random_inputs_are_seeded_and_the_same_everywhere(burnish: Command, files: dict[str, Path]) -> None:
    def mean(kind: str, seed: int) -> float:
        result = burnish("run", files[kind], "--input", "f32[2,3,8,8]", "--seed", seed, "--json")
        return float(json.loads(result.stdout)["outputs"]["features"]["mean"])

    assert mean("onnx", 0) == pytest.approx(mean("eager", 0), rel=1e-5)
    assert mean("onnx", 0) != pytest.approx(mean("onnx", 1), rel=1e-5)


def test_sizes_come_from_the_input_option(burnish: Command, files: dict[str, Path]) -> None:
    result = burnish("run", files["torchscript"], "--input", "x:f32[7,3,8,8]", "--json")
    assert json.loads(result.stdout)["outputs"]["pooled"]["shape"] == [7, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "y:f32[1,3,8,8]"], "there is no input 'y'"),
        (["--input", "f32[1,4,8,8]"], "dimension 1"),
        (["--input", "f64[1,3,8,8]"], "dtype"),
        (["--inputs", "missing.npz"], "no such file"),
        (["--inputs", "{folder}/foreign.npz"], "is no .npz file"),
        (["--inputs", "{folder}/other.npz"], "the inputs are x"),
        (["--inputs", "{folder}/pickled.npz"], "Object arrays cannot be loaded"),
        (["--inputs", "{folder}/other.npz", "--input", "f32[1]"], "exclude each other"),
        (["--output", "missing/out.npz"], "there is no folder missing"),
    ],
)
def test_unfitting_inputs_are_status_2(
    burnish: Command, files: dict[str, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "foreign.npz").write_bytes(b"something else")
    np.savez(tmp_path / "other.npz", z=np.zeros(2))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    result = burnish("run", files["onnx"], *[each.format(folder=tmp_path) for each in options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_bench_times_files_in_turns(burnish: Command, files: dict[str, Path]) -> None:
    result = burnish("bench", files["eager"], files["onnx"], files["torchscript"], "--seconds", 0.05, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [each["file"] for each in found] == [str(files[kind]) for kind in ("eager", "onnx", "torchscript")]
    assert len({each["calls"] for each in found}) == 1
    assert found[0]["ratio"] == 1.0
    for each in found:
        assert 0 < each["best"] <= each["median"] <= each["p90"]
        assert each["ratio"] == pytest.approx(each["median"] / found[0]["median"])


def test_bench_gives_all_files_the_sizes_of_the_example_inputs(
    burnish: Command, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.burnish"
    Program.load(files["eager"]).with_samples((torch.randn(9, 3, 8, 8),), {}).save(wide)
    sizes: list[int] = []
    unbound = Runnable.arguments

    def watched(self: Runnable, texts: list[str], seed: int) -> tuple[tuple[torch.Tensor, ...], dict[str, object]]:
        args, kwargs = unbound(self, texts, seed)
        sizes.append(len(args[0]))
        return args, kwargs

    monkeypatch.setattr(Runnable, "arguments", watched)
    assert burnish("bench", files["onnx"], wide, "--seconds", 0).exit_code == 0
    assert sizes == [9, 9]


def test_bench_table(burnish: Command, files: dict[str, Path]) -> None:
    lines = burnish("bench", files["onnx"], "--seconds", 0).stdout.splitlines()
    assert lines[0].split("  ")[0] == "file"
    assert lines[1].startswith(str(files["onnx"]))
    assert lines[1].split()[4] == "1.000"


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_profile(burnish: Command, files: dict[str, Path], kind: str) -> None:
    found = json.loads(burnish("profile", files[kind], "--json").stdout)
    assert any("conv" in row["operator"].lower() for row in found["nodes"])
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["nodes"]))


def test_a_program_has_no_profile(burnish: Command, files: dict[str, Path]) -> None:
    result = burnish("profile", files["eager"])
    assert result.exit_code == 2
    assert "compile it first" in result.stderr
