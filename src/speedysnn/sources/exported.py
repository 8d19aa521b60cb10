"""An exported program (.pt2) as an nn.Module of ATen calls, built from its JSON graph; no text in it is evaluated.

torch.export.load unpickles, evaluates shape expressions and compiles guards that stand in the file as source text. Here
a call may only be one of ATen's operators or arithmetic on sizes (`target_of`), and its arguments only plain data
(`value_of`).
"""

from __future__ import annotations

import json
import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from speedysnn.errors import SourceError
from speedysnn.files import ODD, checksum, reason
from speedysnn.sources.exported_archive import DTYPES, Archive, read_archive

Json = Mapping[str, Any]
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_FILES = ("from_file",)  # the one ATen operator that opens a file
_SIZES: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name)
       for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "eq", "ne", "ge", "gt", "le", "lt",
                    "and_", "or_")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
}  # fmt: skip
_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\w+)')
_LIBRARY = re.compile(r"[/\\](site-packages[/\\]|torch[/\\](nn|fx|export|_\w+)[/\\])|^torch[/\\]")

_CHECKS = ("_assert", "sym_constrain")  # calls that only check what was true when the network was exported
_MODES = ("train", "training")  # arguments that say so
_NO_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"


def load_program(path: str | Path) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network in a .pt2 file that torch.export.save wrote.

    Args:
        path: the file.

    Returns:
        (network, sha256, notes): the network in evaluation mode, the file's checksum, and what it says about itself.

    Raises:
        SourceError: the file cannot be read, or its graph holds what is not plain ATen.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from speedysnn.sources import load_program
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()).eval()
        >>> file = Path(tempfile.mkdtemp()) / "net.pt2"
        >>> torch.export.save(torch.export.export(net, (torch.rand(3, 4),)), file)
        >>> again, _, _ = load_program(file)
        >>> x = torch.rand(3, 4)
        >>> torch.equal(again(x), net(x))
        True
    """
    archive = read_archive(path)
    try:
        return _Reader(archive).module(), checksum([archive.path]), _notes(archive.program)
    except ODD as err:
        raise SourceError(
            f"network {archive.path} holds a graph that is not as expected ({type(err).__name__}: {reason(err)}); "
            "save it again with torch.export.save from the torch you use here"
        ) from err


def _notes(program: Json) -> tuple[str, ...]:
    free = "" if program.get("range_constraints") else "; no size in it is left open, the batch neither"
    return (f"read an exported program of torch {program.get('torch_version') or 'unknown'}{free}",)


class _Reader:
    """Builds the module; `scope` maps the file's names to nodes."""

    def __init__(self, archive: Archive) -> None:
        self.file, self.tensors = archive.path, archive.tensors
        self.contents = archive.program["graph_module"]
        self.graph, self.root = fx.Graph(), nn.Module()
        self.unknown: list[str] = []

    def module(self) -> nn.Module:
        signature = self.contents["module_call_graph"][0]["signature"]
        scope = self._inputs(self.contents["signature"]["input_specs"], signature["in_spec"])
        results = self._calls(self.contents["graph"], scope)
        if self.unknown:
            listed = ", ".join(dict.fromkeys(self.unknown))
            raise SourceError(
                f"network {self.file} calls {listed}: expected ATen operators (torch.ops.aten) alone; export it in "
                "evaluation mode and without custom operators, or try program.run_decompositions()"
            )
        self._require_no_mutation()
        leaves = iter(results)
        self.graph.output(_structure(json.loads(signature["out_spec"])[1], leaves))
        module = fx.GraphModule(self.root, self.graph, class_name=_class_name(self.file))
        return module.eval()

    def _require_no_mutation(self) -> None:
        kinds = {kind for spec in self.contents["signature"]["output_specs"] for kind in spec}
        if kinds != {"user_output"}:
            raise self._training(", ".join(sorted(kinds - {"user_output"})))

    def _training(self, what: str) -> SourceError:
        return SourceError(
            f"network {self.file} was exported in training mode ({what}); call .eval() and export it again"
        )

    def _inputs(self, specs: Sequence[Json], in_spec: str) -> dict[str, fx.Node]:
        scope: dict[str, fx.Node] = {}
        _require_flat(self.file, json.loads(in_spec)[1])
        for spec in specs:
            kind, entry = next(iter(spec.items()))
            target = entry.get(f"{kind}_name")
            if kind == "user_input" and "as_tensor" in entry["arg"]:
                name = entry["arg"]["as_tensor"]["name"]
                scope[name] = self.graph.placeholder(identifier(name))
            elif target in self.tensors:
                scope[entry["arg"]["name"]] = self._own(target, kind)
            else:
                raise SourceError(f"network {self.file} has an input that is no tensor ({kind}); give it tensors only")
        return scope

    def _own(self, name: str, kind: str) -> fx.Node:
        """Register a parameter or buffer in modules nested as its name says; returns the node that reads it."""
        *path, leaf = [identifier(part, module=True) for part in name.split(".")]
        holder = self.root
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        value = self.tensors[name].detach()
        if kind == "parameter":
            holder.register_parameter(leaf, nn.Parameter(value, requires_grad=value.is_floating_point()))
        else:
            holder.register_buffer(leaf, value)
        return self.graph.get_attr(".".join([*path, leaf]))

    def _calls(self, graph: Json, scope: dict[str, fx.Node]) -> list[Any]:
        for row in graph["nodes"]:
            if row["target"] == _NO_GRAD:
                self._inline(row, scope)
                continue
            target = target_of(row["target"])
            if target is None:
                self.unknown.append(str(row["target"]))
                self._stand_in(row, scope)
            elif not (isinstance(target, torch._ops.OpOverload) and target._schema.name[6:].startswith(_CHECKS)):
                self._call(row, target, scope)
        return [value_of(arg, scope) for arg in graph["outputs"]]

    def _call(self, row: Json, target: Callable[..., Any], scope: dict[str, fx.Node]) -> None:
        args, kwargs = arguments(row["inputs"], target, scope)
        if any(item["name"] in _MODES and value is True
               for item, value in zip(row["inputs"], (*args, *kwargs.values()), strict=True)):  # fmt: skip
            raise self._training(str(row["target"]))
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(meta(row["metadata"]))
        results = names(row["outputs"])
        returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
        if len(results) == 1 and not (len(returns) == 1 and isinstance(returns[0].type, torch.ListType)):
            scope[results[0]] = node
            return
        for position, name in enumerate(results):
            if name:
                scope[name] = self.graph.call_function(operator.getitem, (node, position))

    def _inline(self, row: Json, scope: dict[str, fx.Node]) -> None:
        """Add the calls of a block under torch.no_grad as if they stood outside it."""
        inner = row["inputs"][1]["arg"]["as_graph"]["graph"]
        operands = [value_of(item["arg"], scope) for item in row["inputs"][2:]]
        own = [names([arg])[0] for arg in inner["inputs"]]
        results = self._calls(inner, dict(zip(own, operands, strict=True)))
        scope.update(zip(names(row["outputs"]), results, strict=True))

    def _stand_in(self, row: Json, scope: dict[str, fx.Node]) -> None:
        """Put placeholders where an unknown call's results would be, so that all unknown calls are found at once."""
        for name in filter(None, names(row["outputs"])):
            scope[name] = self.graph.placeholder(identifier(name))


def _structure(spec: Json, leaves: Any) -> Any:
    """The output as the source network returns it; dataclasses and named tuples become tuples."""
    if spec["type"] is None:
        return next(leaves)
    children = [_structure(child, leaves) for child in spec["children_spec"]]
    if spec["type"] in ("builtins.dict", "collections.OrderedDict"):
        return dict(zip(map(str, json.loads(spec["context"])), children, strict=True))
    return children if spec["type"] == "builtins.list" else tuple(children)


def _require_flat(file: Path, spec: Json) -> None:
    """Refuse a network whose arguments are lists or dicts of tensors."""
    arguments = [child for group in spec["children_spec"] for child in group["children_spec"]]
    if any(child["type"] is not None for child in arguments):
        raise SourceError(f"network {file} takes lists or dicts of tensors: give it one tensor an argument")


def _class_name(file: Path) -> str:
    return "Program_" + re.sub(r"\W", "_", file.stem, flags=re.ASCII)


def target_of(text: str) -> Callable[..., Any] | None:
    """The function a call may be made to, None for any other."""
    match = _ATEN.fullmatch(text)
    if match is None:
        return _SIZES.get(text)
    found = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    return found if isinstance(found, torch._ops.OpOverload) and match[1] not in _FILES else None


def arguments(
    inputs: Sequence[Json], target: Callable[..., Any], scope: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; an old file does not say which is which, the operator's schema does."""
    named = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
    keyword_only = {argument.name for argument in named if argument.kwarg_only}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for item in inputs:
        value = value_of(item["arg"], scope)
        if item.get("kind") == 2 or (item.get("kind") != 1 and item["name"] in keyword_only):
            kwargs[identifier(item["name"])] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def value_of(arg: Json, scope: Mapping[str, Any]) -> Any:
    """An argument: a node, or plain data; every device becomes the CPU."""
    ((kind, value),) = arg.items()
    if kind in ("as_tensor", "as_optional_tensor", "as_tensors", "as_optional_tensors", "as_nested_tensors"):
        return _nodes(value, scope)
    if kind.startswith("as_sym_"):
        return [_size(item, scope) for item in value] if isinstance(value, list) else _size(value, scope)
    if kind in _CONSTANTS:
        return _CONSTANTS[kind](value)
    raise ValueError(f"an argument of the kind {kind!r}")


def _nodes(value: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_nodes(item, scope) for item in value]
    if "as_none" in value:
        return None
    return scope[value.get("as_tensor", value)["name"]]


def _size(value: Json, scope: Mapping[str, Any]) -> Any:
    ((kind, item),) = value.items()
    return scope[item] if kind == "as_name" else _CONSTANTS[kind](item)


def _list(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [_list(kind)(value) if isinstance(value, list) else kind(value) for value in values]


_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": int, "as_float": float, "as_bool": bool, "as_string": str,
    "as_ints": _list(int), "as_floats": _list(float), "as_bools": _list(bool), "as_strings": _list(str),
    "as_int_lists": _list(int), "as_float_lists": _list(float),
    "as_scalar_type": DTYPES.__getitem__,
    "as_memory_format": _MEMORY.__getitem__,
    "as_layout": {7: torch.strided}.__getitem__,
    "as_device": lambda _: torch.device("cpu"),
}  # fmt: skip


def names(outputs: Sequence[Json]) -> list[str]:
    """The names of a call's results in order; "" for one that is None."""
    out: list[str] = []
    for arg in outputs:
        ((kind, value),) = arg.items()
        for item in value if isinstance(value, list) else [value]:
            given = item if isinstance(item, Mapping) else {}
            found = given.get("name", given.get("as_name", given.get("as_tensor", {}).get("name", "")))
            out.append(str(found) if kind != "as_none" else "")
    return out


def identifier(text: str, *, module: bool = False) -> str:
    """The text, if it may stand as a name in generated code; a module's may also be "0" or "block1-0".

    Raises:
        ValueError: it may not.
    """
    allowed = r"[\w-]+" if module else r"\w+"
    if not re.fullmatch(allowed, text, re.ASCII) or keyword.iskeyword(text) or not (module or text.isidentifier()):
        raise ValueError(f"the name {text[:40]!r}")
    return text


def meta(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The lines and modules a call came from, as the converter's report shows them."""
    stack = [entry.split(",", 2) for entry in metadata.get("nn_module_stack", "").split(";")]
    frames = [match for match in _FRAME.finditer(metadata.get("stack_trace", "")) if not _LIBRARY.search(match[1])]
    lines = [f'  File "{match[1]}", line {match[2]}, in {match[3]}' for match in frames]
    return {
        "nn_module_stack": {key: (path, kind) for key, path, kind in (e for e in stack if len(e) == 3)},
        "stack_trace": "\n".join(lines) or None,
    }
