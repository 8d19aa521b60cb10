"""Pickles and archives of torch.save that ask for more than data, or lie about the sizes in them."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable

from tests.fuzz import mutate

_CALLS = ((b"os", b"mkdir"), (b"os", b"system"), (b"builtins", b"eval"), (b"builtins", b"exec"), (b"builtins", b"getattr"),
          (b"builtins", b"__import__"), (b"subprocess", b"call"), (b"pathlib", b"Path.touch"), (b"torch", b"load"), (b"numpy", b"load"),
          (b"builtins", b"bytearray"), (b"builtins", b"open"), (b"collections", b"OrderedDict"), (b"torch._utils", b"_rebuild_tensor_v2"),
          (b"torch", b"FloatStorage"), (b"torch", b"Size"), (b"torch", b"device"), (b"_codecs", b"encode"), (b"argparse", b"Namespace"),
          (b"numpy", b"dtype"), (b"numpy.core.multiarray", b"scalar"), (b"torch._utils", b"_rebuild_parameter"),
          (b"torch._utils", b"_rebuild_sparse_tensor"), (b"torch._utils", b"_rebuild_meta_tensor_no_storage"),
          (b"torch._utils", b"_rebuild_qtensor"), (b"torch.serialization", b"_get_layout"), (b"torch", b"float32"), (b"nonsense", b"f"),
          (b"torch", b"Tensor"), (b"torch.nn.parameter", b"Parameter"), (b"builtins", b"set"), (b"collections", b"Counter"))  # fmt: skip
_PIECES = (b"(", b")", b"]", b"}", b"K\x01", b"K\x04", b"J\xff\xff\xff\x7f", b"\x8a\x06\x00\x00\x00\x00\x00\x01", b"X\x04\x00\x00\x00ran!",
           b"X\x0b\x00\x00\x00touch ran!x", b"t", b"\x85", b"\x86", b"\x87", b"R", b"\x81", b"b", b"s", b"u", b"e", b"a", b"0", b"2", b"q\x00",
           b"h\x00", b"h\x01", b"Q", b"N", b"\x88", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7fabc")  # fmt: skip


def _program(rng: random.Random) -> bytes:
    out = b""
    for _ in range(rng.randrange(1, 14)):
        module, name = rng.choice(_CALLS)
        out += b"c" + module + b"\n" + name + b"\n" if rng.random() < 0.3 else rng.choice(_PIECES)
    return out


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def hostile(rng: random.Random) -> bytes:
    """A pickle that makes a folder, runs a command, takes much memory, holds itself, or is a random program."""
    kind = rng.randrange(6)
    if kind == 0:
        call = rng.choice((_Call(os.mkdir, "ran"), _Call(os.system, "mkdir ran"), _Call(eval, "__import__('os').mkdir('ran')"),
                           _Call(bytearray, 10**11), _Call(open, "ran", "w")))  # fmt: skip
        return pickle.dumps(rng.choice(({"state_dict": call}, call, [call], {"w": call})), protocol=rng.choice((0, 2, 4)))
    if kind == 1:
        own: dict = {"a": 1}
        own[rng.choice(("state_dict", "model", "ema"))] = own
        return pickle.dumps(own, protocol=2)
    if kind == 2:
        deep: object = {}
        for _ in range(rng.choice((50, 300))):
            deep = {"model": deep}
        return pickle.dumps(deep, protocol=2)
    return b"\x80\x02" + _program(rng) + b"."


def spoiled(rng: random.Random, name: str, content: bytes) -> bytes:
    """A member of a torch archive: its pickle made hostile or edited, else its bytes."""
    if not name.endswith("data.pkl"):
        return mutate.some_bytes(rng, content)
    if rng.random() < 0.3:
        return hostile(rng)
    if rng.random() < 0.4:  # sizes, offsets and strides are small numbers after the opcode K
        out = bytearray(content)
        spots = [i + 1 for i in range(len(out) - 1) if out[i : i + 1] == b"K"]
        out[(spot := rng.choice(spots)) - 1 : spot + 1] = rng.choice(
            (b"K\x00", b"K\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x06\x00\x00\x00\x00\x00\x01", b"\x88", b"N")
        )
        return bytes(out)
    at = rng.randrange(len(content))
    return content[:at] + _program(rng) + content[at:] if rng.random() < 0.5 else mutate.some_bytes(rng, content)


def member(rng: random.Random, content: bytes, wanted: Callable[[str], bool], change: Callable[[random.Random, str, bytes], bytes]) -> bytes:
    """The archive with one of the wanted members changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        pick = rng.choice([name for name in old.namelist() if wanted(name)])
        for name in old.namelist():
            new.writestr(name, change(rng, name, old.read(name)) if name == pick else old.read(name))
    return out.getvalue()


def archive(rng: random.Random, content: bytes) -> bytes:
    """A torch archive whose pickle is changed while all else is whole, or one tensor of it said to be enormous."""
    if rng.random() < 0.5:
        return member(rng, content, lambda name: name.endswith("data.pkl"), spoiled)

    def enormous(_: random.Random, __: str, pickled: bytes) -> bytes:
        shape, strides = b"K\x04K\x03\x86", b"K\x03K\x01\x86"
        big = rng.choice((b"J" + struct.pack("<i", rng.choice((10**6, 2**31 - 1))), b"\x8a\x06" + struct.pack("<Q", 10**11)[:6]))
        pickled = pickled.replace(shape, big + b"K\x03\x86", 1)
        return pickled.replace(strides, rng.choice((b"K\x00K\x00\x86", b"K\x00K\x01\x86", strides)), 1)

    return member(rng, content, lambda name: name.endswith("data.pkl"), enormous)
