"""Networks that torch.ao or torchao has prepared or quantized: what they compute is not what their layers say."""

from collections.abc import Mapping

from torch import nn

from speedysnn.convert.call import Handler, Key
from speedysnn.errors import ConversionError

_ROOMS = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic.q", "torchao.", "torch.quantization")
_LISTED = 5


def refuse_quantized(model: nn.Module, handlers: Mapping[Key, Handler]) -> None:
    """Refuse fake-quantizers, observers and quantized layers, which round weights too and run on integers.

    Raises:
        ConversionError: there are some that no handler was given for; lists their layer paths.
    """
    found = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__module__.startswith(_ROOMS) and type(module) not in handlers and not _plain(module)
    }
    if not found:
        return
    listed = ", ".join(f"{name or 'the network'} ({kind})" for name, kind in list(found.items())[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise ConversionError(
        f"{type(model).__name__} was prepared for quantization: {listed}{more}. Expected a network in floating point: "
        "build the network without prepare_qat or convert and load the trained weights into it (batch-norm moves from "
        "'0.bn.' to its own layer), or train the clips (QCFS, PACT, LSQ), which become thresholds. What the thresholds "
        "cost is then measured by `speedysnn analyze`"
    )


def _plain(module: nn.Module) -> bool:
    """Whether it only groups float layers, or does nothing until the network is converted."""
    return type(module).__name__ in ("ConvReLU2d", "LinearReLU", "QuantStub", "DeQuantStub", "QuantWrapper") and (
        not type(module).__module__.startswith(("torch.ao.nn.intrinsic.q", "torch.ao.nn.q"))
    )
