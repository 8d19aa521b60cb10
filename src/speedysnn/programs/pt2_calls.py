"""The calls of an exported program's JSON graph: which operators they may name, and their arguments as plain data."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from speedysnn.programs.pt2_archive import DTYPES

__all__ = ["Json", "arguments", "identifier", "meta", "names", "target_of", "value_of"]

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
