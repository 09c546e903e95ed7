"""`burnish opt`, `explain` and `passes`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TEXT, Command

from burnish.compiler.program import Program


def test_the_result_goes_to_stdout(burnish: Command, text_file: Path) -> None:
    result = burnish("opt", text_file, "-p", "cse")
    assert result.exit_code == 0
    program = Program.parse(result.stdout)
    assert program.node_count() == 2
    assert program.history == ("cse",)
    assert result.stderr == ""


def test_from_stdin(burnish: Command) -> None:
    result = burnish("opt", "-", "-p", "", stdin=TEXT)
    assert result.stdout == TEXT


def test_a_saved_program_keeps_weights_and_samples(burnish: Command, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.burnish"
    result = burnish("opt", saved, "-p", "fold-batch-norm,dce", "-o", output)
    assert result.exit_code == 0
    assert result.stdout == ""
    before, after = Program.load(saved), Program.load(output)
    assert after.samples.keys() == before.samples.keys()
    assert after.node_count() == before.node_count() - 1


def test_output_as_text(burnish: Command, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    assert burnish("opt", saved, "-p", "", "-o", output).exit_code == 0
    assert output.read_text() == Program.load(saved).print()


def test_a_special_file_is_not_replaced(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = burnish("opt", text_file, "-p", "cse", "-o", pipe)
    assert result.exit_code == 2
    assert f"error: {pipe}: " in result.stderr
    assert "neither a file nor a directory" in result.stderr
    assert pipe.is_fifo()


def test_print_after(burnish: Command, text_file: Path) -> None:
    result = burnish("opt", text_file, "-p", "dce,cse", "--print-after", "cse")
    assert result.stderr.startswith("after: cse\n# burnish 1\n# passes: dce,cse\n")
    assert result.stderr.count("after: ") == 1


def test_print_after_all_and_within_repeat(burnish: Command, text_file: Path) -> None:
    result = burnish("opt", text_file, "-p", "repeat{max=3}(cse,dce)", "--print-after", "all")
    headings = [line for line in result.stderr.splitlines() if line.startswith("after: ")]
    assert headings[:2] == ["after: repeat/1/cse", "after: repeat/1/dce (no change)"]
    assert len(headings) == 4
    chosen = burnish("opt", text_file, "-p", "repeat{max=3}(cse,dce)", "--print-after", "dce")
    assert chosen.stderr.count("after: repeat/") == 2


def test_print_after_an_unknown_label(burnish: Command, text_file: Path) -> None:
    result = burnish("opt", text_file, "-p", "cse", "--print-after", "dce")
    assert result.exit_code == 2
    assert "its passes are cse" in result.stderr


def test_print_changed(burnish: Command, text_file: Path) -> None:
    result = burnish("opt", text_file, "-p", "dce,cse,dce", "--print-changed")
    assert [line for line in result.stderr.splitlines() if line.startswith("after: ")] == ["after: cse"]


def test_dumps_are_numbered_and_parse_again(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dumps"
    assert burnish("opt", text_file, "-p", "dce,repeat{max=1}(cse),dce", "--dump-dir", folder).exit_code == 0
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["00-input.txt", "01-dce.txt", "02-repeat-1-cse.txt", "03-dce#2.txt"]
    assert [Program.parse(file.read_text()).node_count() for file in files] == [3, 3, 2, 2]


def test_dumps_up_to_a_failure_are_kept(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    result = burnish("opt", text_file, "-p", "cse,select-outputs{names=[nothing]}", "--dump-dir", tmp_path / "dumps")
    # What the pass was given cannot be used.
    assert result.exit_code == 2 and "replay with" not in result.stderr
    assert (tmp_path / "dumps" / "01-cse.txt").exists()


def test_time(burnish: Command, text_file: Path) -> None:
    lines = burnish("opt", text_file, "-p", "cse,dce", "--time").stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "cse", "dce", "total"]
    total = float(lines[3].split()[1])
    assert total == pytest.approx(sum(float(line.split()[1]) for line in lines[1:3]), abs=2e-3)


def test_stats(burnish: Command, text_file: Path) -> None:
    lines = burnish("opt", text_file, "-p", "cse,dce", "--stats").stderr.splitlines()
    assert lines[1].split()[0] == "cse"
    assert lines[1].split()[-1] == "1"
    assert lines[2].split() == ["dce", "0", "no", "change"]


def test_stats_as_json(burnish: Command, text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    result = burnish("opt", text_file, "-p", "cse,dce", "--stats", "--json", "--verify", 4, "-o", output)
    data = json.loads(result.stdout)
    assert data["file"] == str(output)
    assert [(each["pass"], each["changed"], each["nodes"], each["drift"]) for each in data["passes"]] == [
        ("cse", True, 2, 0.0),
        ("dce", False, 2, 0.0),
    ]
    assert sum(data["passes"][0]["rules"].values()) == 1
    assert Program.parse(output.read_text()).node_count() == 2


def test_limit_and_stop_after(burnish: Command, text_file: Path) -> None:
    assert Program.parse(burnish("opt", text_file, "-p", "cse", "--limit", 0).stdout).node_count() == 3
    stopped = burnish("opt", text_file, "-p", "dce,cse", "--stop-after", "dce").stdout
    assert Program.parse(stopped).history == ("dce",)
    assert burnish("opt", text_file, "-p", "dce", "--stop-after", "cse").exit_code == 2


SHARED = """# burnish 1
constant @w: f32[4, 3, 3, 3]
constant @s: f32[4]
graph main(%x: f32[1, 3, 8, 8]) {
  %conv = aten.conv2d(%x, @w) : f32[1, 4, 6, 6]
  %bn = aten.batch_norm(%conv, @s, @s, @s, @s, training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False) : f32[1, 4, 6, 6]
  %sum = aten.add.Tensor(%conv, %bn) : f32[1, 4, 6, 6]
  return %sum
}
"""  # noqa: E501


def test_explain_gives_rule_node_and_reason(burnish: Command) -> None:
    result = burnish("explain", "-", "-p", "fold-batch-norm", "--json", stdin=SHARED)
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert (found["pass"], found["node"], found["operator"]) == ("fold-batch-norm", "bn", "aten.batch_norm")
    assert "users" in found["reason"]
    table = burnish("explain", "-", "-p", "fold-batch-norm", stdin=SHARED).stdout.splitlines()
    assert len(table) == 2
    assert found["reason"] in table[1]
    assert "%bn" in table[1]


def test_explain_names_the_place_in_the_model(burnish: Command, tmp_path: Path) -> None:
    output = tmp_path / "shared.burnish"
    Program.parse(SHARED).save(output)
    assert "no rule was held back" not in burnish("explain", output, "-p", "fold-batch-norm").stdout


def test_explain_without_reasons(burnish: Command, text_file: Path) -> None:
    assert burnish("explain", text_file, "-p", "cse").stdout == "no rule was held back\n"
    assert json.loads(burnish("explain", text_file, "-p", "cse", "--json").stdout) == []


def test_passes_lists_all(burnish: Command) -> None:
    found = json.loads(burnish("passes", "--json").stdout)
    names = [each["name"] for each in found]
    assert names == sorted(names)
    assert {"canonicalize", "cse", "dce", "fold-batch-norm", "repeat"} <= set(names)
    lines = burnish("passes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == names
    assert all(each["doc"] for each in found)


def test_one_pass_in_full(burnish: Command) -> None:
    described = json.loads(burnish("passes", "fold-constants", "--json").stdout)
    (option,) = [each for each in described["options"] if each["name"] == "max_growth"]
    assert option["type"] == "int"
    assert not option["required"]
    text = burnish("passes", "fold-constants").stdout
    assert str(option["default"]) in text
    assert "numerics: exact" in text
    assert "establishes: batch-norm-folded" in burnish("passes", "fold-batch-norm").stdout


def test_passes_for_a_backend_with_calibration_data(burnish: Command, saved: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32))
    result = burnish("opt", saved, "-p", "default,quantize", "-b", "onnx{dialect=tensorrt}", "--calibration", data)
    assert result.exit_code == 0, result.stderr
    program = Program.parse(result.stdout)
    assert program.history[-1] == "quantize" and len(program.history) > 4
    result = burnish("explain", saved, "-p", "default,quantize", "-b", "onnx{dialect=tensorrt}", "--calibration", data)
    assert "too small for integers to pay" in result.stdout
    result = burnish("opt", saved, "-p", "default,quantize", "-b", "onnx")
    assert result.exit_code != 0 and "needs calibration data" in result.stderr
    result = burnish("opt", saved, "-p", "default,quantize", "-b", "onnx", "--calibration", tmp_path / "none.npz")
    assert result.exit_code == 2 and "none.npz: no such file" in result.stderr
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    result = burnish("opt", saved, "-p", "default,quantize", "-b", "onnx", "--calibration", tmp_path / "text.npz")
    assert result.exit_code == 2 and "text.npz: no tensor can hold 'x', of NumPy's type <U1" in result.stderr
    data.write_bytes(data.read_bytes()[:100])
    result = burnish("opt", saved, "-p", "default,quantize", "-b", "onnx", "--calibration", data)
    assert result.exit_code == 2 and "truncated" in result.stderr


def test_labels_of_calibration_data(burnish: Command, saved: Path, tmp_path: Path) -> None:
    program = Program.load(saved)
    inputs = {name: value.numpy() for name, value in program.samples.items()}
    rows, *_ = torch.utils._pytree.tree_leaves(program(**program.samples))
    passes, data = "canonicalize,recover{steps=2,loss=mse,distill=none}", tmp_path / "data.npz"
    np.savez(data, **inputs)
    result = burnish("opt", saved, "-p", passes, "--calibration", data, "-o", tmp_path / "out.burnish")
    assert result.exit_code == 2 and "a .npz has its target in an array of that name" in result.stderr
    np.savez(data, **inputs, target=rows.detach().numpy())
    result = burnish("opt", saved, "-p", passes, "--calibration", data, "-o", tmp_path / "out.burnish")
    assert result.exit_code == 0, result.stderr
