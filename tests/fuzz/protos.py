"""ONNX files mutated field by field."""

import random
from typing import Any

from tests.fuzz import mutate

_TEXT = ("", "x", "../../outside", "/etc/passwd", "Relu", "Conv", "If", "Loop", "Reshape", "Expand", "Tile", "ConstantOfShape", "Range",
         "Gather", "Slice", "Resize", "Pad", "\x00", "é" * 20, "input", "a.b", "/a/b/Conv", "__class__", "training", "forward")  # fmt: skip


def _messages(message: Any) -> list[tuple[Any, Any]]:
    """Every (message, field) that is set below a message."""
    out = []
    for field, value in message.ListFields():
        out.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                out.extend(_messages(item))
    return out


def _scalar(rng: random.Random, field: Any, now: Any) -> Any:
    if field.type == field.TYPE_STRING:
        return rng.choice((*_TEXT, now + "x"))
    if field.type == field.TYPE_BYTES:
        return mutate.some_bytes(rng, now)
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if field.type == field.TYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    limit = 2**31 if field.type == field.TYPE_INT32 else 2**63
    return max(-limit, min(limit - 1, rng.choice((0, 1, -1, 2, 7, 10**6, 10**9, 2**40, 2**62, now + 1, now - 1, -now))))


def _edit(rng: random.Random, message: Any, field: Any) -> None:
    if field.is_repeated:
        values = getattr(message, field.name)
        at, kind = rng.randrange(len(values)), rng.randrange(4)
        if kind == 0:
            del values[at]
        elif kind == 1 and field.type == field.TYPE_MESSAGE:
            values.add().CopyFrom(values[at])
        elif kind == 1:
            values.append(values[at])
        elif field.type != field.TYPE_MESSAGE:
            values[at] = _scalar(rng, field, values[at])
    elif field.type == field.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(rng, field, getattr(message, field.name)))


def some_fields(rng: random.Random, content: bytes) -> bytes:
    """One to four fields changed, dropped or doubled."""
    import onnx

    model = onnx.load_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _edit(rng, *rng.choice(_messages(model)))
    return model.SerializeToString()
