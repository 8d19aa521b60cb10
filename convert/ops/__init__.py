"""The registry of operators: what is called in the source network -> the handler that converts it."""

from collections.abc import Callable
from typing import Any

from speedysnn.convert.call import Call
from speedysnn.convert.ops import aten, attention, functions, modules, moves, nonlinear, shapes

Key = Any  # a module class, a function, a method name, or "package.module.function"
Handler = Callable[[Call], Any]

HANDLERS: dict[Key, Handler] = {
    **modules.MODULES,
    **functions.FUNCTIONS,
    **functions.METHODS,
    **{
        key: value
        for room in (moves, nonlinear, attention)
        for key, value in (*room.FUNCTIONS.items(), *room.METHODS.items())
    },
    **nonlinear.MODULES,
    **attention.MODULES,
    **aten.aten_handlers(),
    "torchvision.ops.stochastic_depth.stochastic_depth": shapes.same,  # by name: torchvision need not be imported
}
