"""Feed damaged input to everything that reads text or files, and count what comes out by class of error.

Only a result or a BurnishError may come out; anything else is printed with the input and makes the exit status 1.

    python -m benchmarks.fuzz [--count 100000] [--seed 0] [--only text|spec|burnish|onnx|pt]
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import burnish
from burnish.compiler.errors import BurnishError
from burnish.compiler.parser import parse_program
from burnish.compiler.spec import parse_spec

TEXTS = (
    """# burnish 1
# passes: canonicalize,prune{ratio=0.4}
# facts: canonical
dims B: 2..512
inputs ((%x,), {m: %m, k: None})
parameters (x, m)
outputs !"a.B"("ctx"){y: %y, z: [%z, 1.5, "s"]}
constant @w: f32[4, 3]
constant @s: f32[] = 1.5
graph main(%x: f32[B, 3], %m: f32[S0, 2*B]) {
  %v = aten.linear(%x, @w) : f32[B, 4]
  %y = aten.mul.Tensor(%v, @s) : f32[B, 4]
  %n = aten.nonzero(%y) : i64[U0, 2]
  %b = aten.sym_size.int(%x, dim=0) : sym(B)
  %c = py.mul(%b, 2) : sym(2*B)
  %z = aten.zeros(size=[%c, 2], dtype=f16, device="cpu") : f16[2*B, 2]
  %t = aten.topk(%y, k=2) : (f32[B, 2], i64[B, 2])
  %g = getitem(%t, 0) : f32[B, 2]
  return y=%g, z=%z
}
""",
    """# burnish 1
graph first(%x: f32[B, 3]) {
  %s = aten.sum(%x) : f32[]
  %p = aten.gt.Scalar(%s, other=-1e-05) : b1[]
  %c = higher_order.cond(%p, &t, &f, (%x,)) : (f32[B, 3],)
  %h = getitem(%c, 0) : f32[B, 3]
  return h=%h
}
graph second(%h: f32[B, 3]) {
  %y = aten.view(%h, size=[-1]) : f32[3*B]
  return %y
}
branch t(%x: f32[B, 3]) {
  %y = aten.sin(%x) : f32[B, 3]
  return %y
}
branch f(%x: f32[B, 3]) {
  %y = aten.clamp(%x, min=0, max=inf) : f32[B, 3]
  return %y
}
""",
)
SPECS = ("fold-batch-norm,prune{ratio=0.4,round_to=8},repeat{max=4}(cse,dce)", 'a{b="x,y",c=[1,2],d=True},cse#2', "cse")
SMALL = """# burnish 1
constant @w: f32[2, 3]
graph main(%x: f32[B, 3]) {
  %y = aten.linear(%x, @w) : f32[B, 2]
  return %y
}
"""
_PIECES = ("%x", "@w", "&t", "f32[", "B", "(", ")", "[", "]", "{", "}", ",", ":", "=", "-", "//", "**", "inf", "None")
_PIECES += (
    "\n",
    '"',
    "\\",
    "\u2028",
    "9" * 30,
    "1e999",
    "\ud800",
    "Mod(",
    "\x00",
    "#",
    "!",
    "..",
    "é",
    "return ",
    "graph ",
)


def mutated(text: str, randomness: random.Random) -> str:
    """Return `text` with characters or lines deleted, inserted, doubled, swapped or cut off; or random text."""
    if randomness.random() < 0.05:
        return "# burnish 1\n" + "".join(randomness.choices(_PIECES, k=randomness.randrange(40)))
    for _ in range(randomness.choice((1, 1, 1, 2, 4, 8))):
        kind = randomness.randrange(6)
        place = randomness.randrange(len(text) + 1)
        if kind == 0:
            text = text[:place] + text[place + randomness.choice((1, 1, 3, 20)) :]
        elif kind == 1:
            text = text[:place] + randomness.choice((*_PIECES, chr(randomness.randrange(32, 127)))) + text[place:]
        elif kind == 2:
            other = randomness.randrange(len(text) + 1)
            text = text[:place] + text[other : other + randomness.randrange(1, 8)] + text[place + 1 :]
        elif kind in (3, 4):
            lines = text.split("\n")
            first, second = randomness.randrange(len(lines)), randomness.randrange(len(lines))
            if kind == 3:
                lines[first], lines[second] = lines[second], lines[first]
            else:
                lines[first : first + 1] = [] if randomness.random() < 0.5 else [lines[first]] * 2
            text = "\n".join(lines)
        elif randomness.random() < 0.1:
            text = text[:place]
    return text


def damaged(data: bytes, randomness: random.Random) -> bytes:
    """Return `data` with bits flipped, or cut off, or with bytes put in."""
    changed = bytearray(data)
    for _ in range(randomness.choice((1, 1, 2, 8))):
        kind = randomness.randrange(8)
        place = randomness.randrange(len(changed)) if changed else 0
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = randomness.randbytes(randomness.randrange(1, 9))
        elif kind == 2:
            del changed[place : place + randomness.randrange(1, 9)]
        elif changed:
            changed[place] ^= 1 << randomness.randrange(8)
    return bytes(changed)


def run(name: str, count: int, seed: int, one: Callable[[random.Random], tuple[object, Callable[[], object]]]) -> int:
    """Try `count` inputs, print the counts, and return the number of errors that must not be."""
    randomness = random.Random(seed)
    classes: collections.Counter[str] = collections.Counter()
    bad, slowest, start = 0, 0.0, time.perf_counter()
    for _ in range(count):
        given, attempt = one(randomness)
        began = time.perf_counter()
        try:
            attempt()
            classes["accepted"] += 1
        except BurnishError as error:
            classes[type(error).__name__] += 1
        except Exception as error:
            bad += 1
            classes[f"NOT ALLOWED {type(error).__name__}"] += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}\n  input: {given!r}"[:3000], file=sys.stderr)
        slowest = max(slowest, time.perf_counter() - began)
    seconds = time.perf_counter() - start
    print(
        f"{name}: {count} inputs in {seconds:.0f} s, slowest {slowest:.2f} s; {dict(classes.most_common())}", flush=True
    )
    return bad


def main() -> int:
    """Run the fuzzers that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("text", "spec", "burnish", "onnx", "pt"))
    options = parser.parse_args()

    def text(randomness: random.Random) -> tuple[object, Callable[[], object]]:
        given = mutated(randomness.choice(TEXTS), randomness)
        return given, lambda: parse_program(given)

    def spec(randomness: random.Random) -> tuple[object, Callable[[], object]]:
        given = mutated(randomness.choice(SPECS), randomness)
        return given, lambda: parse_spec(given)

    with tempfile.TemporaryDirectory() as folder:
        program = parse_program(SMALL)
        small = Path(folder) / "small"
        program.save(small.with_suffix(".burnish"))
        for backend, suffix in (("onnx", ".onnx"), ("torchscript", ".pt")):
            burnish.compile(program, backend=backend).save(small.with_suffix(suffix))

        def file(suffix: str) -> Callable[[random.Random], tuple[object, Callable[[], object]]]:
            path, whole = small.with_suffix(suffix), small.with_suffix(suffix).read_bytes()

            def one(randomness: random.Random) -> tuple[object, Callable[[], object]]:
                given = damaged(whole, randomness)
                # A new file each time: a mapped one must not change under its reader.
                path.unlink()
                path.write_bytes(given)
                return given, lambda: burnish.load(path)

            return one

        kinds = {"text": text, "spec": spec} | {kind: file(f".{kind}") for kind in ("burnish", "onnx", "pt")}
        chosen = [options.only] if options.only else list(kinds)
        return int(sum(run(name, options.count, options.seed, kinds[name]) for name in chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
