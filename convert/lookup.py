"""Which handler a call is for, and whether the call changes its first argument in place."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from speedysnn.convert.builder import Unsupported
from speedysnn.convert.call import Handler, Key

_INPLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def handler_of(handlers: Mapping[Key, Handler], node: fx.Node, module: nn.Module | None) -> Handler:
    """The handler of a call.

    Raises:
        Unsupported: there is none.
    """
    for key in _keys(node, module):
        if key in handlers:
            return handlers[key]
    if module is not None:
        name = f"{type(module).__module__}.{type(module).__name__}"
        line = f"to_spiking(..., handlers={{{type(module).__name__}: handler}})"
        raise Unsupported(f"{name} has no handler", f"use a ReLU network, or pass {line}")
    word = word_of(node, None)
    raise Unsupported(f"{word} has no handler", f"use a supported operator, or pass handlers={{{word!r}: handler}}")


def word_of(node: fx.Node, module: nn.Module | None) -> str:
    """What is called, in a word: a module's class, a method, or a function's name."""
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _keys(node: fx.Node, module: nn.Module | None) -> list[Any]:
    """Registry keys in order: a module's class (or a base whose forward it keeps), a function, a method's name."""
    if module is not None:
        kinds = [cls for cls in type(module).__mro__ if getattr(cls, "forward", None) is type(module).forward]
        return [*kinds, f"{type(module).__module__}.{type(module).__name__}"]
    if isinstance(node.target, str):
        return [node.target]
    return [node.target, f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"]


def is_inplace(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call changes its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if isinstance(node.target, str):
        return node.target.endswith("_")
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = str(getattr(node.target, "__name__", ""))  # torch.exp_, torch.nn.functional.elu_
    in_name = name.endswith("_") and not name.endswith("__")
    return in_name or node.target in _INPLACE or bool(node.kwargs.get("inplace", False))
