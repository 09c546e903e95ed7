"""`burnish doctor`: what this machine has, which runtimes it can use, and the options that pay here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from burnish.tools.console import print_json, print_lines, print_table
from burnish.tools.verb import JsonFlag

if TYPE_CHECKING:
    from burnish.tools.hardware_matrix import Advice, Runtime
    from burnish.tools.machine import Machine

__all__ = ["doctor"]

_TYPES = ("float32", "float16", "bfloat16", "int8")


def doctor(as_json: JsonFlag = False) -> None:
    """Describe this machine: devices, versions, what each runtime computes fast, and the options that pay here.

    [dim]burnish doctor --json[/]
    """
    from burnish.compiler.quiet import quiet
    from burnish.tools import hardware_matrix
    from burnish.tools.machine import Machine

    with quiet():
        machine = Machine.here()
        found = hardware_matrix.runtimes(
            machine,
            hardware_matrix.providers(),
            hardware_matrix.openvino_capabilities(),
            hardware_matrix.tensorrt_reason(),
        )
    advice = hardware_matrix.advice(machine, found)
    if as_json:
        print_json(_as_data(machine, found, advice))
    else:
        _print(machine, found, advice)


def _print(machine: Machine, found: list[Runtime], advice: list[Advice]) -> None:
    print_table(("machine", ""), machine.lines())
    print_lines("")
    print_table(("library", "version"), [(name, text or "not installed") for name, text in machine.versions.items()])
    print_lines("")
    rows = [
        (
            each.name,
            each.options,
            "yes" if each.usable else "no",
            *(getattr(each, name) for name in _TYPES),
            each.reason,
        )
        for each in found
    ]
    print_table(("runtime", "burnish", "usable", *_TYPES, ""), rows)
    print_lines("")
    print_table(("for", "use", "because"), [(each.purpose, each.options, each.reason) for each in advice])


def _as_data(machine: Machine, found: list[Runtime], advice: list[Advice]) -> dict[str, Any]:
    processor = machine.processor
    return {
        "system": machine.system,
        "python": machine.python,
        "processor": {
            "name": processor.name,
            "cores": processor.cores,
            "capability": processor.capability,
            "features": None if processor.features is None else sorted(processor.features),
        },
        "memory": machine.memory,
        "gpus": [dataclasses.asdict(each) for each in machine.gpus],
        "versions": dict(machine.versions),
        "runtimes": [dataclasses.asdict(each) for each in found],
        "advice": [dataclasses.asdict(each) for each in advice],
    }
