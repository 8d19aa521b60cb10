"""The text of a C program: tables as constant arrays, a function for each stage of the layout."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from speedysnn.export.c_layout import BYTES, Buffer, Call, Layout, Order, Stage, channels_last
from speedysnn.integer.program import Add, Concat, Conv, Gain, Linear, MaxPool, Neuron, Readout, SumPool

SHORT = {"uint8_t": "u8", "int8_t": "i8", "int16_t": "i16", "int32_t": "i32"}
_LINE = 20


class Text:
    """The files of a program.

    Args:
        layout: where everything lies.

    Attributes:
        flash: bytes of all tables.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.program = layout, layout.program
        self.flash = 0
        self._tables: list[str] = []
        self._known: dict[bytes, str] = {}
        self._uses: dict[str, set[tuple[str, ...]]] = {"weights": set(), "moves": set(), "cells": set()}
        self._functions = [self._stage(number, stage) for number, stage in enumerate(layout.stages) if _does(stage)]

    def tables(self) -> str:
        """tables.h."""
        head = "/* Made by speedysnn: the numbers of the network. */\n#ifndef TABLES_H\n#define TABLES_H\n"
        return "\n".join([head + '#include <stdint.h>\n#include "kernels.h"\n', *self._tables, "#endif", ""])

    def header(self) -> str:
        """net.h."""
        given = self.program.input
        size = given.size * (self.program.timesteps if given.timing == "steps" else 1)
        return (
            "/* Made by speedysnn. */\n#ifndef NET_H\n#define NET_H\n#include <stdint.h>\n\n"
            f"#define NET_INPUT {size} /* bytes of an input */\n"
            f"#define NET_OUTPUTS {self.layout.output.size} /* logits */\n"
            f"#define NET_STEPS {self.program.timesteps}\n\n"
            "void net_run(const uint8_t *image, int32_t *logits);\n#endif\n"
        )

    def source(self) -> str:
        """net.c."""
        arrays = [f"static {kind} {SHORT[kind]}[{size}];" for kind, size in self.layout.sizes.items() if size]
        names = [number for number, stage in enumerate(self.layout.stages) if _does(stage)]
        out = self.layout.output
        place = np.empty_like(out.order)
        place[out.order] = np.arange(len(place))
        index = self._index(place) if not np.array_equal(place, np.arange(len(place))) else None
        answer = f"{_at(out)}[{index}[i]]" if index else f"{_at(out)}[i]"
        body = [f"    stage_{number}();" for number in names]
        return "\n".join([
            "/* Made by speedysnn: one function a stage, called in order. */",
            '#include "net.h"\n#include "kernels.h"\n#include "tables.h"\n',
            *self._included(), "", *arrays, "", *self._functions,
            "void net_run(const uint8_t *image, int32_t *logits)", "{", "    int32_t i;", *self._taken(), *body,
            f"    for (i = 0; i < NET_OUTPUTS; i++) logits[i] = {answer};", "}", "",
        ])  # fmt: skip

    def _included(self) -> Iterable[str]:
        """The kernels for the types that are used."""
        for source, weight in sorted(self._uses["weights"]):
            yield (f"#define SOURCE {source}\n#define WEIGHT {weight}\n"
                   f"#define WEIGHTED(name) name##_{SHORT[source]}_{SHORT[weight]}\n"
                   '#include "weights.inc.h"\n#undef SOURCE\n#undef WEIGHT\n#undef WEIGHTED')  # fmt: skip
        for (source,) in sorted(self._uses["moves"]):
            yield (f"#define SOURCE {source}\n#define MOVED(name) name##_{SHORT[source]}\n"
                   '#include "moves.inc.h"\n#undef SOURCE\n#undef MOVED')  # fmt: skip
        for state, spike in sorted(self._uses["cells"]):
            yield (f"#define STATE {state}\n#define SPIKE {spike}\n"
                   f"#define CELLS(name) name##_{SHORT[state]}_{SHORT[spike]}\n"
                   '#include "cells.inc.h"\n#undef STATE\n#undef SPIKE\n#undef CELLS')  # fmt: skip

    def _taken(self) -> list[str]:
        """Copy the image, its channels innermost."""
        given, shape = self.layout.buffers[self.program.input.name], self.program.input.shape
        channels = shape[0] if len(shape) > 1 else 1
        rest, frames = given.size // channels, given.steps
        return [
            f"    for (i = 0; i < {frames * given.size}; i++) {{",
            f"        int32_t frame = i / {given.size}, c = i % {given.size} / {rest}, p = i % {rest};",
            f"        {_at(given)}[frame * {given.size} + p * {channels} + c] = image[i];",
            "    }",
        ]

    def _stage(self, number: int, stage: Stage) -> str:
        steps, cells = self.program.timesteps, stage.cells
        calls = [line for call in stage.calls for line in self._call(call, stage.timed)]
        kept = [buffer for call in stage.calls for key, buffer in call.extra.items() if key in ("summed", "before")]
        begins = [f"    clear({_at(buffer)}, {buffer.size});" for buffer in kept]
        lines = [f"static void stage_{number}(void)", "{", *(["    int32_t t;"] if stage.timed else [])]
        if stage.kept is not None and stage.kept.kind == "total":
            lines.append(f"    clear({_at(stage.kept.out)}, {stage.kept.out.size});")
        if cells is not None:
            shape, kind = self._cells(cells)
            state, count = (_at(cells.extra["state"]), _at(cells.extra["count"]) if cells.extra["count"] else "NULL")
            op = cells.op
            assert isinstance(op, Neuron)
            emit = f"emit_{kind}(&{shape}, t + 1, {state}, {count}, {_at(cells.out)} + t * {cells.out.size});"
            late = f"t - {op.lookahead}" if op.lookahead else "t"
            early = emit.replace("t + 1", f"{late} + 1").replace("+ t *", f"+ ({late}) *")
            arrive = f"arrive_{kind}(&{shape}, {_at(cells.sources[0])}, {state});"
            when = f"if (t >= {op.lookahead}) " if op.lookahead else ""
            calls += [arrive, when + early]
            begins.append(f"    begin_{kind}(&{shape}, {state}, {count});")
        if stage.kept is not None:
            calls.append(self._kept(stage.kept, stage.timed))
        lines += begins
        if stage.timed:
            lines += [f"    for (t = 0; t < {steps}; t++) {{", *(f"        {line}" for line in calls), "    }"]
        else:
            lines += [f"    {line}" for line in calls]
        if cells is not None and isinstance(cells.op, Neuron) and cells.op.lookahead:
            lines.append(f"    for (t = {steps - cells.op.lookahead}; t < {steps}; t++) {emit}")
        return "\n".join([*lines, "}", ""])

    def _kept(self, call: Call, timed: bool) -> str:
        source = self._read(call.sources[0], timed, "moves")
        if call.kind == "total":
            numbers = f"{call.out.size}, {call.extra['times']}"
            return f"total_{SHORT[call.sources[0].kind]}({source}, {_at(call.out)}, {numbers});"
        out = f"{_at(call.out)} + t * {call.out.size}"
        return f"{{ int32_t i; for (i = 0; i < {call.out.size}; i++) ({out})[i] = ({call.out.kind})({source})[i]; }}"

    def _read(self, buffer: Buffer, timed: bool, use: str = "") -> str:
        """A buffer's place, at the step at hand."""
        if use:
            self._uses[use].add((buffer.kind,))
        return f"{_at(buffer)} + t * {buffer.size}" if buffer.steps > 1 and timed else _at(buffer)

    def _call(self, call: Call, timed: bool) -> list[str]:
        op, out = call.op, _at(call.out)
        short = SHORT[call.sources[0].kind]
        if call.kind in ("conv", "linear"):
            return [self._weighted(call, timed)]
        if call.kind in ("add", "readout"):
            return self._added(call, timed)
        source, size = self._read(call.sources[0], timed, "moves"), call.out.size
        if call.kind == "widen":
            return [f"widen_{short}({source}, {out}, {size});"]
        if call.kind == "gather":
            return [f"gather_{short}({source}, {out}, {size}, {self._index(call.extra['index'])});"]
        if call.kind == "gain":
            assert isinstance(op, Gain)
            factor, period = self._periodic(op.factor, op.shape, call.out.order, "int16_t")
            return [f"gain_{short}({source}, {out}, {size}, {factor}, {period}, {op.shift});"]
        if call.kind == "concat":
            return self._joined(call, timed)
        return self._pooled(call, source, short)

    def _weighted(self, call: Call, timed: bool) -> str:
        op, source = call.op, call.sources[0]
        assert isinstance(op, Conv | Linear)
        kind = "int8_t" if op.weight.size == 0 or np.abs(op.weight).max() < 128 else "int16_t"
        self._uses["weights"].add((source.kind, kind))
        name = f"{SHORT[source.kind]}_{SHORT[kind]}"
        if isinstance(op, Linear):
            columns = op.weight if call.extra["rows"] > 1 else op.weight[:, source.order]
            table = self._table(columns.T, kind)
            sizes = f"{call.extra['rows']}, {op.weight.shape[1]}, {op.weight.shape[0]}, {op.shift}"
            return f"linear_{name}({sizes}, {self._read(source, timed)}, {table}, {_at(call.out)});"
        flat = op.weight.reshape(*op.weight.shape[:2], -1, op.weight.shape[-1])
        grouped = flat.reshape(op.groups, -1, *flat.shape[1:])  # group, out, in, y, x
        table = self._table(np.moveaxis(grouped, 1, -1), kind)
        return f"conv_{name}(&{self._conv_shape(op, call)}, {self._read(source, timed)}, {table}, {_at(call.out)});"

    def _conv_shape(self, op: Conv, call: Call) -> str:
        def two(values: tuple[int, ...], first: int) -> tuple[int, int]:
            return (first, values[0]) if len(values) == 1 else (values[0], values[1])

        inner, outer = two(call.extra["shape"][1:], 1), two(op.shape[1:], 1)
        kernel, stride = two(op.weight.shape[2:], 1), two(op.stride, 1)
        padding, dilation = two(op.padding, 0), two(op.dilation, 1)
        values = (
            call.extra["shape"][0],
            *inner,
            op.shape[0],
            *outer,
            *kernel,
            *stride,
            *padding,
            *dilation,
            op.groups,
            op.shift,
        )
        return self._struct("conv_shape", ", ".join(map(str, values)))

    def _added(self, call: Call, timed: bool) -> list[str]:
        op, out, size = call.op, _at(call.out), call.out.size
        if isinstance(op, Readout):
            first = call.sources[0]
            read = self._read(first, timed, "moves")
            lines = [] if call.out is first else [f"widen_{SHORT[first.kind]}({read}, {out}, {size});"]
            bias, period = self._periodic(op.bias, op.shape, call.out.order, "int32_t")
            return [*lines, f"{{ int32_t i; for (i = 0; i < {size}; i++) ({out})[i] += {bias}[i % {period}]; }}"]
        assert isinstance(op, Add)
        lines = []
        for position, (source, sign) in enumerate(zip(call.sources, op.signs, strict=True)):
            read = self._read(source, timed, "moves")
            if position == 0:
                lines += [] if source is call.out else [f"widen_{SHORT[source.kind]}({read}, {out}, {size});"]
                lines += [] if sign > 0 else [f"negate({out}, {size});"]
            else:
                lines.append(f"total_{SHORT[source.kind]}({read}, {out}, {size}, {sign});")
        return lines

    def _joined(self, call: Call, timed: bool) -> list[str]:
        op = call.op
        assert isinstance(op, Concat)
        axis = op.axis if len(op.shape) < 2 else (len(op.shape) - 1 if op.axis == 0 else op.axis - 1)
        whole = op.shape if len(op.shape) < 2 else (*op.shape[1:], op.shape[0])
        blocks, inner = int(np.prod(whole[:axis])), int(np.prod(whole[axis + 1 :]))
        lines, before = [], 0
        for source, shape in zip(call.sources, call.extra["shapes"], strict=True):
            length = shape[op.axis] * inner
            read = self._read(source, timed, "moves")
            lines.append(
                f"place_{SHORT[source.kind]}({read}, {_at(call.out)} + {before}, {blocks}, {length}, "
                f"{whole[axis] * inner});"
            )
            before += length
        return lines

    def _pooled(self, call: Call, source: str, short: str) -> list[str]:
        op, out = call.op, _at(call.out)
        assert isinstance(op, SumPool | MaxPool)
        shape = self._pool_shape(op, call)
        if "summed" not in call.extra:
            return [f"pool_{short}(&{shape}, {source}, {out}, {int(isinstance(op, MaxPool))});"]
        summed, before = call.extra["summed"], call.extra["before"]
        self._uses["moves"].add(("int32_t",))
        return [f"total_{short}({source}, {_at(summed)}, {summed.size}, 1);",
                f"pool_i32(&{shape}, {_at(summed)}, {out}, 1);",
                f"increase({out}, {_at(before)}, {before.size});"]  # fmt: skip

    def _pool_shape(self, op: SumPool | MaxPool, call: Call) -> str:
        inner, dilation = call.extra["shape"], op.dilation if isinstance(op, MaxPool) else (1,) * len(op.windows)
        axes = [0] if len(inner) == 1 else [*range(1, len(inner)), 0]
        rows = [(inner[a], op.shape[a], op.windows[a], dilation[a]) for a in axes]
        rows = [(1, 1, None, 1)] * (3 - len(rows)) + rows
        first = ["NULL" if w is None else self._table(np.array([f for f, _ in w]), "int32_t") for _, _, w, _ in rows]
        stop = ["NULL" if w is None else self._table(np.array([s for _, s in w]), "int32_t") for _, _, w, _ in rows]
        columns = (
            [str(row[0]) for row in rows],
            [str(row[1]) for row in rows],
            first,
            stop,
            [str(row[3]) for row in rows],
        )
        return self._struct("pool_shape", ", ".join("{" + ", ".join(column) + "}" for column in columns))

    def _cells(self, call: Call) -> tuple[str, str]:
        op = call.op
        assert isinstance(op, Neuron)
        least, most = self.program.state_range
        tables = [
            self._periodic(values, op.shape, call.out.order, "int32_t") for values in (op.threshold, op.start, op.bias)
        ]
        numbers = (
            op.size,
            1,
            self.program.timesteps,
            op.lookahead,
            op.highest,
            least,
            most,
            int(op.signed),
            int(op.ternary),
            int(op.powers),
        )
        text = (
            [_number(value) for value in numbers] + [name for name, _ in tables] + [str(period) for _, period in tables]
        )
        kinds = (call.extra["state"].kind, call.out.kind)
        self._uses["cells"].add(kinds)
        return self._struct("cell_shape", ", ".join(text)), "_".join(SHORT[kind] for kind in kinds)

    def _periodic(self, values: NDArray[np.int64], shape: tuple[int, ...], order: Order, kind: str) -> tuple[str, int]:
        """A table that repeats after as few values as it may, as they lie in memory, and that number."""
        full = np.broadcast_to(values, shape).reshape(-1)[order]
        size = len(full)
        for period in sorted({1, shape[0], size} if shape else {1}):
            if size % period == 0 and bool((full.reshape(-1, period) == full[:period]).all()):
                return self._table(full[:period], kind), period
        return self._table(full, kind), size

    def _index(self, index: Order) -> str:
        return self._table(index, "int32_t")

    def _table(self, values: NDArray[np.int64], kind: str) -> str:
        """The name of a table with these values, which is written once."""
        flat = np.ascontiguousarray(values).reshape(-1)
        key = kind.encode() + flat.astype(np.int64).tobytes()
        if key not in self._known:
            name = self._known[key] = f"table_{len(self._known)}"
            numbers = [_number(int(value)) for value in flat]
            rows = [", ".join(numbers[i : i + _LINE]) for i in range(0, len(numbers), _LINE)]
            self._tables.append(f"static const {kind} {name}[{len(numbers)}] = {{\n" + ",\n".join(rows) + "\n};")
            self.flash += BYTES[kind] * len(numbers)
        return self._known[key]

    def _struct(self, kind: str, text: str) -> str:
        key = f"{kind}:{text}".encode()
        if key not in self._known:
            name = self._known[key] = f"{kind}_{len(self._known)}"
            braces = "{" + text + "}"
            self._tables.append(f"static const {kind} {name} = {braces};")
            self.flash += 4 * (text.count(",") + 1)
        return self._known[key]


def _number(value: int) -> str:
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def _at(buffer: Buffer) -> str:
    short = SHORT[buffer.kind]
    return f"({short} + {buffer.offset})" if buffer.offset else short


def _does(stage: Stage) -> bool:
    return bool(stage.calls or stage.cells or stage.kept)


__all__ = ["SHORT", "Text", "channels_last"]
