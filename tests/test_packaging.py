"""The wheel and the sdist install and run outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import pathlib, sys, torch, burnish
assert pathlib.Path(burnish.__file__).is_relative_to(sys.argv[1]), burnish.__file__
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
compiled = burnish.compile(net, inputs=(torch.randn(2, 3, 8, 8),), backend="torchscript")
compiled.save("net.pt")
print(tuple(burnish.load("net.pt")(torch.randn(3, 3, 8, 8)).shape), [row.label for row in compiled.report.passes])
"""


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist_run_outside_the_checkout(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    # The sdist is built from the checkout and the wheel from the sdist, as pip does for a user.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT), cwd=tmp_path)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    for archive in (wheel, sdist):
        site = tmp_path / f"site-{archive.name}"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        run(*install, "--target", str(site), str(archive), cwd=tmp_path)
        env = {**os.environ, "PYTHONPATH": str(site)}
        out = run(sys.executable, "-c", SCRIPT, str(site), cwd=tmp_path, env=env)
        assert out.splitlines()[-1].startswith("(3, 4, 6, 6) ['capture', 'canonicalize'")
        assert "0.1.0" in run(sys.executable, str(site / "bin" / "burnish"), "--version", cwd=tmp_path, env=env)
