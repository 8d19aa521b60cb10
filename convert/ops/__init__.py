"""The table of handlers: what is called in the source network -> the handler that turns the call into nodes.

There is one table for modules, functions, methods and ATen overloads, and one contract, `Handler`. The rows stand
beside the code that handles them, one file a kind, at the end of each file here. A program adds rows of its own without
a change here: `convert.HANDLERS[key] = handler` for every conversion, or `to_spiking(..., handlers={key: handler})` for
one. The latter win over the former, and both over what stands here.

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

from speedysnn.convert.handler_api import Handler, Key
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


def added_handlers() -> dict[Key, Handler]:
    """The rows that a program has put into `HANDLERS`.

    Returns:
        Key -> handler of the rows that are new or stand in the place of one of the package's own. The tracer does not
        look into the modules and functions among them.
    """
    return {key: handler for key, handler in HANDLERS.items() if _SHIPPED.get(key) is not handler}
