"""Mutations of bytes, JSON trees, zip archives and safetensors files, each drawn from a `random.Random`."""

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 3.5, -0.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
    10**6, 10**9, 10**12, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, "", "x", "0", "-1", "1e9", "inf",
    "../../outside", "/tmp/outside", "C:\\outside", "a\x00b", "\ud800", "\x1b[31mred", "é" * 50, "a" * 5000,
    "__import__('os').mkdir('ran')", "full", "neuron", "input", [], {}, [[]], [None], [0], [-1], [10**12], {"": None},
    {"x": 1}, [1, 2, 3, 4, 5, 6, 7, 8], DEEP,
)  # fmt: skip
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63,
           2**64 - 1)  # fmt: skip
NAMES = ("../../outside", "/tmp/outside", "a/../../outside", "..\\outside", "", "a/b/c", "data.pkl", "\u202egpj.exe", "x" * 300)


def some_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to eight edits: bits, bytes, numbers, pieces cut, doubled, moved, blanked, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        out = rng.choice(_BYTES)(rng, out)
    return bytes(out)


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 8, 64, 512, 4096)))


def _flip(rng: random.Random, data: bytearray) -> bytearray:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _early(rng: random.Random, data: bytearray) -> bytearray:
    if data:
        data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    return data


def _number(rng: random.Random, data: bytearray) -> bytearray:
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, rng.choice((min(len(data), 40), len(data))) - size + 1))
    raw = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    data[at : at + size] = raw
    return data


def _cut(rng: random.Random, data: bytearray) -> bytearray:
    begin, end = _span(rng, data)
    del data[begin:end]
    return data


def _double(rng: random.Random, data: bytearray) -> bytearray:
    begin, end = _span(rng, data)
    data[end:end] = data[begin:end]
    return data


def _insert(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    return data


def _blank(rng: random.Random, data: bytearray) -> bytearray:
    begin, end = _span(rng, data)
    data[begin:end] = bytes([rng.choice((0, 255))]) * (end - begin)
    return data


def _shorten(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


_BYTES: tuple[Callable[[random.Random, bytearray], bytearray], ...] = (
    _flip, _flip, _early, _number, _number, _cut, _double, _insert, _blank, _shorten,
)  # fmt: skip


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*way, key)
        yield from _places(item, (*way, key))


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def some_json(rng: random.Random, document: Any) -> Any:
    """One to three edits of a JSON tree: a value replaced, dropped, doubled, moved, wrapped, scaled, or a key renamed."""
    out = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        every = list(_places(out)) if isinstance(out, dict | list) else []
        if not every or rng.random() < 0.005:
            out = rng.choice(VALUES)
            continue
        way = rng.choice(every)
        holder, last = _at(out, way[:-1]), way[-1]
        _edit(rng, holder, last, _at(out, rng.choice(every)))
    return out


def _edit(rng: random.Random, holder: Any, last: Any, other: Any) -> None:
    now = holder[last]
    kind = rng.randrange(10)
    if kind < 4:
        holder[last] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 4:
        del holder[last]
    elif kind == 5:
        holder[last] = copy.deepcopy(other)
    elif kind == 6:
        holder[last] = rng.choice(([now], {"x": now}, str(now)))
    elif kind == 7 and isinstance(now, int | float):
        holder[last] = rng.choice((now + 1, now - 1, -now, now * 1000, now + 10**9, now / 2 if abs(now) < 2**60 else 0, str(now)[:4000]))
    elif kind == 8 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(now))
    elif isinstance(holder, dict):
        holder[rng.choice(("x", "", f"{last}x", "../x"))] = holder.pop(last)
    else:
        holder.reverse()


def dumped(document: Any) -> bytes:
    """As JSON text; what JSON cannot say becomes Python's NaN and Infinity, which its reader takes."""
    return json.dumps(document).encode()


def json_bytes(rng: random.Random, content: bytes) -> bytes:
    """The content with its JSON tree, or now and then its bytes, mutated."""
    if rng.random() < 0.1:
        return some_bytes(rng, content)
    try:
        return dumped(some_json(rng, json.loads(content)))
    except ValueError:
        return some_bytes(rng, content)


def safetensors(rng: random.Random, content: bytes) -> bytes:
    """The file with its header mutated as JSON (its length right or a lie), its data, or its bytes."""
    if rng.random() < 0.2 or len(content) < 8:
        return some_bytes(rng, content)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    text = dumped(some_json(rng, header))
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
    if rng.random() < 0.1:
        data = some_bytes(rng, data)
    return struct.pack("<Q", length) + text + data


def archive(rng: random.Random, content: bytes, change: Callable[[random.Random, str, bytes], bytes]) -> bytes:
    """The zip file with one member changed, renamed, dropped, doubled or packed, or with its bytes mutated."""
    if rng.random() < 0.2:
        return some_bytes(rng, content)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    pick, kind = rng.randrange(len(members)), rng.randrange(12)
    name, data = members[pick]
    if kind == 0:
        del members[pick]
    elif kind == 1:
        members[pick] = (rng.choice(NAMES), data)
    elif kind == 2:
        members.append((name, some_bytes(rng, data)))
    elif kind == 3:
        members[pick] = (name, bytes(rng.choice((0, 10**5, 3 * 10**6))))
    else:
        members[pick] = (name, change(rng, name, data))
    packing = zipfile.ZIP_DEFLATED if kind == 3 or rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packing) as new:
        warnings.simplefilter("ignore")  # two members of one name
        for name, data in members:
            new.writestr(name or "/", data)
    return some_bytes(rng, out.getvalue()) if rng.random() < 0.05 else out.getvalue()
