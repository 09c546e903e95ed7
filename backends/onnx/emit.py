"""Lower a Program to an ONNX model: translate with torch.onnx, clean up, and give everything a readable name.

Every node carries its module path in the metadata `burnish.module` and the Program's node in `burnish.node`; it is
named after that node. Inputs, outputs and dynamic sizes have the names of the Program's text form. Buffers that the
Program updates are inputs of their own names, after its inputs, and outputs `<name>.updated`, after its outputs.

Not handled: what `check` finds.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript import optimizer
from torch import fx
from torch.export import ExportedProgram

from burnish.backends.onnx.conv_pads import pads_into_convolutions
from burnish.backends.onnx.decompose import decompose
from burnish.backends.onnx.empty_rows import allow_no_rows
from burnish.backends.onnx.quiet import quiet
from burnish.backends.onnx.spellings import keep_pads_before_pools, keep_sums_before_norms, tile_quantized_factors
from burnish.backends.onnx.tensorrt_spellings import (
    clip_integers_by_bounds,
    name_squeezed_axes,
    rearrange_blocks,
    sort_the_largest,
)
from burnish.backends.onnx.translations import table
from burnish.compiler.errors import BackendError
from burnish.compiler.graphs import NameTable, name_of, output_of, placeholders
from burnish.compiler.operators import operator_name
from burnish.compiler.printer import symbol_names
from burnish.compiler.program import Program
from burnish.compiler.provenance import provenance_of
from burnish.compiler.stand_ins import is_settled
from burnish.compiler.to_export import state_of, to_exported_program

__all__ = ["Lowered", "lower"]

MODULE = "burnish.module"
NODE = "burnish.node"
# Constants up to this many elements are worth evaluating; larger results would only make the file larger.
_FOLD_LIMIT = 1024
_FX_NAME = re.compile(r"%(\w+) :")
_SYMBOL = re.compile(r"\b[a-z]+\d+\b")


@dataclass(frozen=True, slots=True)
class Lowered:
    """An ONNX model with its calling convention.

    Attributes:
        model: the graph; its initializers refer to the Program's tensors, or to transposed copies of these.
        outputs: the graph output for every output of the Program.
        state: the graph input and the graph output of every buffer that the Program updates.
        numbers: those outputs of the Program that are plain numbers, with their type ("int", "float", "bool").
    """

    model: ir.Model
    outputs: dict[str, str]
    state: dict[str, tuple[str, str]]
    numbers: dict[str, str]


def lower(program: Program, opset: int, standard: bool) -> Lowered:
    """Translate `program`; it is not changed.

    Args:
        program: what to translate.
        opset: version of the ONNX operator set.
        standard: no operators of ONNX Runtime's own.

    Raises:
        BackendError: names the node that could not be translated, its module and its source line.
    """
    exported = to_exported_program(program, state_as_inputs=True)
    with quiet():
        if decompose(exported, opset, program.fake_mode):
            # Nothing is left to decompose: spare the exporter its second trace of the whole model.
            vars(exported)["run_decompositions"] = lambda table=None: exported
        model = _translate(program, exported, opset, standard)
        _label(model)
        if model.functions:
            common.InlinePass()(model)
        _clean(model)
        pads_into_convolutions(model.graph)
        keep_pads_before_pools(model.graph)
        allow_no_rows(model.graph, _without_rows(model, program))
        if standard:
            name_squeezed_axes(model.graph)
            sort_the_largest(model.graph)
            clip_integers_by_bounds(model.graph)
            rearrange_blocks(model.graph)
        else:
            keep_sums_before_norms(model.graph)
            tile_quantized_factors(model.graph)
        common.RemoveUnusedNodesPass()(model)
    outputs, state = _name_ends(model, program)
    _name_all(model, program)
    return Lowered(model, outputs, state, _numbers(program))


def _translate(program: Program, exported: ExportedProgram, opset: int, standard: bool) -> ir.Model:
    shape_env = program.fake_mode.shape_env
    # It types convolutions anew, and picking a kernel for one takes a small batch for what it is in the sample.
    guards = shape_env.suppress_guards() if shape_env is not None else contextlib.nullcontext()
    try:
        with guards:
            result = torch.onnx.export(
                exported,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                custom_translation_table=table(opset, standard, _constants(exported)),
            )
    except Exception as error:
        raise BackendError(f"ONNX cannot express {_blame(program, error)}") from error
    assert result is not None
    model = result.model
    found = model.opset_imports.get("")
    if found != opset:
        raise BackendError(f"the graph cannot be converted to opset {opset}: choose another one, {found} for example")
    return model


def _without_rows(model: ir.Model, program: Program) -> list[ir.Value]:
    """Return the inputs that may have no rows: values of a stage before, whose sizes depended on data."""
    types = {str(node.target): node.meta["val"] for graph in program.graphs.values() for node in placeholders(graph)}
    pairs = zip(model.graph.inputs, program.signature.input_names, strict=False)
    return [value for value, name in pairs if is_settled(types[name], program.fake_mode.shape_env)]


def _constants(exported: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the Program's constants, which are all lifted as buffers, by the names of their graph inputs."""
    return {name: exported.state_dict[held] for name, held in exported.graph_signature.inputs_to_buffers.items()}


def _blame(program: Program, error: BaseException) -> str:
    """Describe the node that the exporter stumbled over, as far as the chain of exceptions tells."""
    names = {re.sub(r"\W+", "_", name_of(node)): node for _, graph in program.all_graphs() for node in graph.nodes}
    current: BaseException | None = error
    last = error
    node: fx.Node | None = None
    while current is not None:
        for name in _FX_NAME.findall(str(current)):
            node = names.get(name, node)
        last, current = current, current.__cause__
    reason = next((line for line in str(last).splitlines() if line.strip()), type(last).__name__)
    if node is None:
        return f"the program: {reason}"
    provenance = provenance_of(node)
    origins = ", ".join(map(str, provenance.origins)) if provenance is not None else ""
    return f"{name_of(node)} ({operator_name(node.target)}) from {origins or 'an unknown place'}: {reason}"


def _label(model: ir.Model) -> None:
    """Replace torch's own metadata by ours, in a form that survives inlining and folding."""
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            origin = node.meta.get("node")
            custom = origin.meta.get("custom", {}) if origin is not None else {}
            name = custom.get("burnish_name", origin.name if origin is not None else "")
            node.metadata_props.clear()
            node.metadata_props.update({MODULE: custom.get("burnish_module", ""), NODE: name})
            node.meta.clear()
    model.graph.metadata_props.clear()


def _name_ends(model: ir.Model, program: Program) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Name inputs and outputs, and give every output a value of its own; return the names of outputs and state."""
    buffers = state_of(program)
    table = NameTable(fx.Graph())
    wanted = [*program.signature.input_names, *buffers]
    for value, name in zip(model.graph.inputs, wanted, strict=True):
        value.name = table.unique(name)
        if name in program.signature.input_names and value.name != name:
            raise BackendError(f"input {name!r} needs another name: ONNX allows letters, digits, '_' and '.'")
    wanted = [*program.signature.output_names, *(f"{name}.updated" for name in buffers)]
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(list(model.graph.outputs), wanted, strict=True)):
        if value in seen or value.producer() is None:
            # An output twice, or an output that is an input or a constant: ONNX wants a node in between.
            copy = ir.Node("", "Identity", [value], metadata_props={MODULE: "", NODE: name})
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            model.graph.append(copy)
            model.graph.outputs[index] = value = copy.outputs[0]
        seen.add(value)
        value.name = table.unique(name)
    inputs = [str(value.name) for value in model.graph.inputs]
    outputs = [str(value.name) for value in model.graph.outputs]
    own = len(program.signature.output_names)
    ends = zip(inputs[len(inputs) - len(buffers) :], outputs[own:], strict=True)
    return dict(zip(program.signature.output_names, outputs, strict=False)), dict(zip(buffers, ends, strict=True))


def _clean(model: ir.Model) -> None:
    """Remove what the translation left behind, in a few linear passes (ONNX Runtime does the rest when it loads)."""
    optimizer.fold_constants_ir(
        model, onnx_shape_inference=False, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT
    )
    for each in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    ):
        each(model)
    _share_constants(model.graph)


def _share_constants(graph: ir.Graph) -> None:
    """Merge equal small constants that the translation made; the Program's own keep their names."""
    first: dict[Any, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or _is_weight(value) or tensor.size > _FOLD_LIMIT:
            continue
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if kept is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, kept)
            del graph.initializers[name]


def _is_weight(value: ir.Value) -> bool:
    """Tell whether an initializer is one of the Program's constants."""
    return isinstance(getattr(value.const_value, "raw", None), torch.Tensor)


def _name_all(model: ir.Model, program: Program) -> None:
    """Name nodes, values and dynamic sizes; a node that folding made takes its place from its neighbours."""
    symbols = {str(symbol): name for symbol, name in symbol_names(program).names.items()}
    table = NameTable(fx.Graph())
    fixed = {*model.graph.inputs, *model.graph.outputs}
    own = [value for value in model.graph.initializers.values() if _is_weight(value)]
    for value in (*model.graph.inputs, *model.graph.outputs, *own):
        # Inputs and outputs come first and are unique: they keep their names.
        value.name = table.unique(str(value.name))
        value.metadata_props.clear()
        _rename_sizes(value, symbols)
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        if NODE not in node.metadata_props:
            _adopt(node)
    for node in nodes:
        base = node.metadata_props[NODE]
        main = len(node.outputs) == 1 and node.outputs[0] in fixed
        last = all(user.metadata_props.get(NODE) != base for value in node.outputs for user, _ in value.uses())
        node.name = table.unique(base if (main or last) and base else f"{base}.{node.op_type}".strip("."))
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            _rename_sizes(value, symbols)
            if value not in fixed:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}.{index}"
        for index, read in enumerate(node.inputs):
            # A small constant that the translation made goes by its first reader.
            if read is not None and read.is_initializer() and read not in fixed and not _is_weight(read):
                read.name = table.unique(f"{node.name}.input_{index}")
                fixed.add(read)
        for graph in _subgraphs(node):
            for value in (*graph.inputs, *graph.initializers.values()):
                value.name = table.unique(str(value.name))


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]


def _adopt(node: ir.Node) -> None:
    near = [user for value in node.outputs for user, _ in value.uses()]
    near += [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]
    for other in near:
        if NODE in other.metadata_props:
            node.metadata_props.update({key: other.metadata_props[key] for key in (MODULE, NODE)})
            return
    node.metadata_props.update({MODULE: "", NODE: node.op_type})


def _rename_sizes(value: ir.Value, symbols: dict[str, str]) -> None:
    if value.shape is None or all(isinstance(size, int) for size in value.shape):
        return

    def rename(size: Any) -> Any:
        text = None if isinstance(size, int) else size.value
        return size if text is None else _SYMBOL.sub(lambda match: symbols.get(match[0], match[0]), text)

    value.shape = ir.Shape([rename(size) for size in value.shape])


def _numbers(program: Program) -> dict[str, str]:
    (graph,) = program.graphs.values()
    named = output_of(graph).args[0]
    assert isinstance(named, dict)
    found: dict[str, str] = {}
    for name, node in named.items():
        value = node.meta.get("val")
        if isinstance(value, (bool, torch.SymBool)):
            found[name] = "bool"
        elif isinstance(value, (int, torch.SymInt)):
            found[name] = "int"
        elif isinstance(value, (float, torch.SymFloat)):
            found[name] = "float"
    return found
