"""The table of handlers: what is called in the source network -> the handler that turns the call into nodes.

There is one table for modules, functions, methods and ATen overloads, and one contract, `Handler`. The rows stand
beside the code that handles them, one file a kind, at the end of each file here. A program adds rows of its own without
a change here: `convert.HANDLERS[key] = handler` for every conversion, or `to_spiking(..., handlers={key: handler})` for
one. The latter win over the former, and both over what stands here.

No row ignores an option. A handler reads arguments and settings through its `Call`, which remembers what was read;
`require_read` then refuses by name every option that is neither read nor at its default. A handler of a program's own
is trusted to know what it leaves out.

Example:
    >>> import torch
    >>> from torch import nn
    >>> from speedysnn import convert
    >>> class UpToTwo(nn.Module):
    ...     def forward(self, x):
    ...         return torch.minimum(x.relu(), torch.full((), 2.0))
    >>> convert.HANDLERS[UpToTwo] = convert.as_neuron(ceiling=2.0)
    >>> net = nn.Sequential(nn.Linear(4, 8), UpToTwo(), nn.Linear(8, 2))
    >>> convert.inspect(net, torch.rand(2, 4)).supported
    True
    >>> del convert.HANDLERS[UpToTwo]
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from speedysnn.convert.handler_api import Call, Handler, Key, Unsupported
from speedysnn.convert.ops.activations import ACTIVATION_ROWS, NONLINEAR_ROWS
from speedysnn.convert.ops.aten import ATEN_ROWS
from speedysnn.convert.ops.functions import FUNCTION_ROWS, LAYER_ROWS
from speedysnn.convert.ops.modules import ATTENTION_ROWS, MODULE_ROWS
from speedysnn.convert.ops.moves import MOVE_ROWS
from speedysnn.convert.ops.shapes import SHAPE_ROWS

HANDLERS: dict[Key, Handler] = {
    **ACTIVATION_ROWS,
    **NONLINEAR_ROWS,
    **MODULE_ROWS,
    **LAYER_ROWS,
    **FUNCTION_ROWS,
    **ATTENTION_ROWS,
    **SHAPE_ROWS,
    **MOVE_ROWS,
    **ATEN_ROWS,
}

_SHIPPED = dict(HANDLERS)


_OWN = frozenset(_SHIPPED.values())

# Options that change nothing of a trained network's values when it evaluates, or that its tensors say again.
_WITHOUT_EFFECT = frozenset({
    "inplace", "momentum", "p", "dropout", "cudnn_enable", "cudnn_enabled", "half_to_float", "implicit",
    "memory_format", "device", "layout", "pin_memory", "non_blocking", "copy", "track_running_stats", "affine",
    "elementwise_affine",
    "bias", "in_channels", "out_channels", "in_features", "out_features", "num_features", "num_parameters",
    "embed_dim", "process_group", "normalized_shape", "num_channels", "init",
})  # fmt: skip
_MISSING = inspect.Parameter.empty


def require_read(call: Call, handler: Handler, target: Any) -> None:
    """Refuse a call with an option that its handler did not read and that is not at its default.

    Args:
        call: the call, after its handler ran.
        handler: the handler; only those of the package are held to this.
        target: what a node of a traced network calls: a module's path, a function, a method's name, an overload.

    Raises:
        Unsupported: names the option.
    """
    if handler not in _OWN:
        return
    for name, value, defaults in (*_settings(call), *_arguments(call, target)):
        if name not in _WITHOUT_EFFECT and not any(_same(value, default) for default in defaults):
            advice = f"leave it at {defaults[0]!r}" if defaults else "leave it out"
            raise Unsupported(f"its option {name}={_shown(value)} is not read", advice)


def _settings(call: Call) -> Iterator[tuple[str, Any, list[Any]]]:
    """Settings of the called module that were not read, by the parameters of its class: name, value, default."""
    module = call.module
    if module is None:
        return
    known = next((kind for kind in type(module).__mro__ if kind in _SHIPPED), type(module))
    for name, parameter in inspect.signature(known).parameters.items():
        read = f".{name}" in call.read or (name == "kernel_size" and ".weight" in call.read)
        if hasattr(module, name) and not read:
            yield name, getattr(module, name), [] if parameter.default is _MISSING else [parameter.default]


def _arguments(call: Call, target: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    """Arguments that were not read: name, value, defaults of all forms of the function."""
    forms = list(_forms(type(call.module).forward if call.module is not None else target))
    skipped = int(call.module is not None)  # the module itself
    for position, value in enumerate(call.args):
        places = [[name for name in form if name not in only] for form, only in forms]
        names = [place[position + skipped] for place in places if len(place) > position + skipped]
        if position not in call.read and not any(name in call.read for name in names):
            name = names[0] if names else f"number {position}"
            yield name, value, _defaults(forms, name)
    for name, value in call.kwargs.items():
        if name not in call.read:
            yield name, value, _defaults(forms, name)


Form = tuple[dict[str, Any], set[str]]  # defaults of the parameters in order, and those that are given by name only


def _defaults(forms: list[Form], name: str) -> list[Any]:
    return [form[name] for form, _ in forms if form.get(name, _MISSING) is not _MISSING]


def _forms(target: Any) -> Iterator[Form]:
    """The parameters of a function: one form, or torch's overloads of the name."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        yield _of_schema(schema)
        return
    if not isinstance(target, str):
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):  # a function in C says nothing of itself, its schemas do
            pass
        else:
            only = {name for name, item in parameters.items() if item.kind is inspect.Parameter.KEYWORD_ONLY}
            yield {name: item.default for name, item in parameters.items()}, only
            return
    word = target if isinstance(target, str) else getattr(target, "__name__", "")
    for found in torch._C._jit_get_schemas_for_operator(f"aten::{word}"):
        yield _of_schema(found)


def _of_schema(schema: Any) -> Form:
    defaults = {item.name: item.default_value if item.has_default_value() else _MISSING for item in schema.arguments}
    return defaults, {item.name for item in schema.arguments if item.kwarg_only}


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, torch.dtype) and default is None:
        return value.is_floating_point  # sums in another precision
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return bool(value == default) or (value in (None, False) and default in (None, False))


def _shown(value: Any) -> str:
    plain = isinstance(value, bool | int | float | str | list | tuple | torch.dtype | None)
    return repr(value) if plain else "a tensor"


def added_handlers() -> dict[Key, Handler]:
    """The rows that a program has put into `HANDLERS`.

    Returns:
        Key -> handler of the rows that are new or stand in the place of one of the package's own. The tracer does not
        look into the modules and functions among them.
    """
    return {key: handler for key, handler in HANDLERS.items() if _SHIPPED.get(key) is not handler}
