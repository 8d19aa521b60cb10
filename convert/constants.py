"""What lies in the arguments of a traced call: tensors of the input, numbers that follow the batch, constants."""

from typing import Any

from speedysnn.convert.builder import BatchInt, Ref


def plain(value: Any) -> Any:
    """The value with numbers that follow the batch as they were for the traced batch."""
    if isinstance(value, BatchInt):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return tuple(plain(item) for item in value) if isinstance(value, tuple | list) else value


def any_ref(value: Any) -> bool:
    """Whether a tensor that comes from the network's input lies in it."""
    return _holds(value, Ref)


def any_batch(value: Any) -> bool:
    """Whether a number that follows the batch lies in it."""
    return _holds(value, BatchInt)


def _holds(value: Any, kind: type) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds(item, kind) for item in value)
    if isinstance(value, dict):
        return any(_holds(item, kind) for item in value.values())
    return isinstance(value, kind)
