"""The registry of operators: what is called in the source network -> the handler that converts it."""

from collections.abc import Callable
from typing import Any

from speedysnn.convert.builder import Call
from speedysnn.convert.ops import shapes
from speedysnn.convert.ops.functions import FUNCTIONS, METHODS
from speedysnn.convert.ops.modules import MODULES

Key = Any  # a module class, a function, a method name, or "package.module.function"
Handler = Callable[[Call], Any]

HANDLERS: dict[Key, Handler] = {
    **MODULES,
    **FUNCTIONS,
    **METHODS,
    "torchvision.ops.stochastic_depth.stochastic_depth": shapes.same,  # by name: torchvision need not be imported
}
