"""The registry of operators: what is called in the source network -> the handler that converts it."""

from collections.abc import Callable
from typing import Any

from speedysnn.convert.call import Call
from speedysnn.convert.ops import (
    arithmetic,
    aten,
    attention,
    choices,
    functions,
    modules,
    moves,
    nonlinear,
    norms,
    shapes,
)

Key = Any  # a module class, a function, a method name, or "package.module.function"
Handler = Callable[[Call], Any]

HANDLERS: dict[Key, Handler] = {
    **modules.MODULES,
    **norms.FUNCTIONS,
    **{
        key: value
        for room in (functions, arithmetic, moves, nonlinear, choices, attention)
        for key, value in (*room.FUNCTIONS.items(), *room.METHODS.items())
    },
    **nonlinear.MODULES,
    **norms.MODULES,
    **attention.MODULES,
    **aten.aten_handlers(),
    "torchvision.ops.stochastic_depth.stochastic_depth": shapes.same,  # by name: torchvision need not be imported
}
