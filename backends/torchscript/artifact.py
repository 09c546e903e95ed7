"""A Program lowered to TorchScript: called like the model, saved as a `.pt` that plain `torch.jit.load` runs.

Calls run the module with its layers packed for this processor; the file has them as they are.

In the file `forward` takes the input leaves in the order of the model's flattened (args, kwargs), and returns the one
output, or a tuple of the outputs, likewise flattened. The pytrees are in the extra file `burnish.json`.

Cases not handled: two threads that call an artifact with updated buffers at a time; other devices than the CPU.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.backends.torchscript.jit import constant_storages, load_module, operator_count, save_module
from burnish.backends.torchscript.packed import PackedModule, runs_packed
from burnish.backends.torchscript.profiling import profile_calls
from burnish.compiler.artifact import ArtifactBase
from burnish.compiler.atomic import atomic_path
from burnish.compiler.binding import Binding
from burnish.compiler.capture import Inputs
from burnish.compiler.errors import FileFormatError
from burnish.compiler.profile import Profile

if TYPE_CHECKING:
    from burnish.compiler.cost import Cost

__all__ = ["Convention", "TorchScriptArtifact", "load_artifact"]

_FORMAT = "burnish torchscript"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Convention:
    """How the TorchScript module is called.

    Attributes:
        binding: the model's calling convention.
        inputs: names of the parameters of `forward`, in order.
        outputs: names of what it returns, in order: a tuple unless there is exactly one.
        state: attributes of the module that a call updates.
    """

    binding: Binding
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    state: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a description that `json.dumps` takes."""
        names = {"inputs": list(self.inputs), "outputs": list(self.outputs), "state": list(self.state)}
        return {"format": _FORMAT, "version": _VERSION, "binding": self.binding.to_json(), **names}

    @staticmethod
    def from_json(data: Any) -> Convention:
        """Read what `to_json` returned.

        Raises:
            FileFormatError: `data` has another form, or comes from another version.
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise FileFormatError("the description in the file is not one of a torchscript artifact")
        if data.get("version") != _VERSION:
            raise FileFormatError(f"the file has version {data.get('version')!r}, this burnish reads {_VERSION}")
        names = [data.get(each) for each in ("inputs", "outputs", "state")]
        if not all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names):
            raise FileFormatError("the names of the inputs and outputs in the file cannot be read")
        inputs, outputs, state = (tuple(each) for each in names if each is not None)
        return Convention(Binding.from_json(data.get("binding")), inputs, outputs, state)


class TorchScriptArtifact(ArtifactBase):
    """See the module's docstring; made by `TorchScriptBackend`.

    Args:
        module: the frozen TorchScript module.
        convention: how it is called.
        samples: an input per name, for `benchmark` and `profile`; may be empty.
        lines: name and module path of the node on each line of the source; empty when loaded.
        notes: what the user should know of the lowering.
        cost: gives the cost of the Program that was lowered.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        convention: Convention,
        samples: Mapping[str, Any] | None = None,
        lines: Mapping[int, tuple[str, str]] | None = None,
        notes: tuple[str, ...] = (),
        cost: Callable[[], Cost] | None = None,
    ) -> None:
        super().__init__(samples)
        self.module = module
        self.convention = convention
        self._lines = dict(lines or {})
        self._notes = notes
        self._cost = cost
        self._initial = self.state()
        self._size: int | None = None
        self._constants = constant_storages(module)

    @property
    def binding(self) -> Binding:
        """How it is called."""
        return self.convention.binding

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run; same pytree in and out as the model, torch tensors.

        Raises:
            InputError: an argument is missing, left over, or differs from capture in structure, dtype or static size.
        """
        values = self.convention.binding.bind(args, kwargs)
        run = self._packed if runs_packed() else self.module
        with torch.no_grad():
            result = run(*[values[name] for name in self.convention.inputs])
        names = self.convention.outputs
        found = {names[0]: result} if len(names) == 1 else dict(zip(names, result or (), strict=True))
        found = {name: self._own(value) for name, value in found.items()}
        # An input that the model returns as it is, is no output of the graph.
        return self.convention.binding.result({**values, **found})

    @functools.cached_property
    def _packed(self) -> PackedModule:
        # At the first call: who only saves needs no second copy of the weights.
        return PackedModule(self.module)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what is packed: it has the state of this module, and the copy packs its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _own(self, value: Any) -> Any:
        # TorchScript hands out its constants themselves: who writes to a result must not reach the weights.
        shared = isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in self._constants
        return value.clone() if shared and value.numel() else value

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.pt`, with the present values of the buffers that calls update; an old file survives a failure."""
        with atomic_path(path) as temporary:
            save_module(self.module, temporary, self.convention.to_json())

    def reset(self) -> None:
        """Give the buffers that calls update the values that they had when the artifact was made or loaded."""
        self.restore(self._initial)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the present values of the buffers that a run updates, by name."""
        return {name: getattr(self.module, name).clone() for name in self.convention.state}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the buffers that a run updates these values, by name."""
        for name, value in state.items():
            getattr(self.module, name).copy_(value)

    def notes(self) -> list[str]:
        """Return what the user should know of the lowering."""
        return list(self._notes)

    def size(self) -> int:
        """Return the bytes of the file that `save` writes."""
        if self._size is None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "model.pt")
                save_module(self.module, file, self.convention.to_json())
                self._size = file.stat().st_size
        return self._size

    def node_count(self) -> int:
        """Return the number of operators in the frozen graph, those on sizes included."""
        return operator_count(self.module)

    def profile(self, inputs: Inputs | None = None) -> Profile:
        """Return the time of every node of one run, the mean of several; updated buffers are put back.

        A loaded artifact knows neither the modules that its nodes came from nor their FLOPs.

        Raises:
            InputError: there are no inputs, or unfitting ones.
        """
        args, kwargs = self.arguments(inputs)
        with self.undisturbed():
            return profile_calls(lambda: self(*args, **kwargs), self._lines, self._flops(args, kwargs))

    def _flops(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
        """Return the FLOPs of the nodes by name, of those that do not depend on data."""
        if self._cost is None:
            return {}
        cost = self._cost().at(self.convention.binding.bind(args, kwargs))
        return {node.name: node.figures.flops for node in cost.nodes if isinstance(node.figures.flops, int)}


def load_artifact(path: str | os.PathLike[str]) -> TorchScriptArtifact:
    """Read what `TorchScriptArtifact.save` wrote.

    Raises:
        InputError: no such file.
        FileFormatError: the file is truncated, damaged, foreign, or of another version.
    """
    module, description = load_module(path)
    try:
        convention = Convention.from_json(description)
        return TorchScriptArtifact(module, convention)
    except (FileFormatError, AttributeError) as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error
