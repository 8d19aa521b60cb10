"""What an integer program means, in NumPy and by loops: nothing of the library's simulator is used here."""

import numpy as np


def logits(program, images):
    """(B, classes) of images (B, ...), or events (T, B, ...): one value a step for everything, in Python's order."""
    steps, values = program.timesteps, {}
    for op in program.operations:
        kind = type(op).__name__
        if kind == "Input":
            x = np.asarray(images).astype(object if False else np.int64)
            values[op.name] = [x[t] if op.timing == "steps" else x for t in range(steps)]
            continue
        given = [values[name] for name in op.sources]
        if kind == "Neuron":
            values[op.name] = neurons(op, given[0], steps, program.state_bits)
        elif kind == "Total":
            values[op.name] = [sum(given[0])] * steps
        elif kind == "MaxPool" and op.timing == "steps":
            reached = [window(op, sum(given[0][: t + 1]), np.max) for t in range(steps)]
            values[op.name] = [b - a for a, b in zip([0, *reached], reached, strict=False)]
        else:
            values[op.name] = [OPERATIONS[kind](op, *(x[t] for x in given)) for t in range(steps)]
    return values[program.operations[-1].name][-1]


def neurons(op, drive, steps, bits):
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    count, out, arrived = 0, [], 0
    state = np.clip(np.zeros_like(drive[0]) + (op.start if op.lookahead == 0 else 0), least, most)
    for t in range(1, steps + 1):
        k = min(t + op.lookahead, steps)
        while arrived < k:
            state = np.clip(state + drive[arrived] + op.bias, least, most)
            arrived += 1
        if op.lookahead == 0:
            level, threshold = state, op.threshold
        else:
            level, threshold = t * state + k * op.start - k * op.threshold * count, k * op.threshold
        spikes = np.clip(level // threshold, -op.highest if op.signed else 0, op.highest)
        if op.powers:
            spikes, size = np.zeros_like(level), 1
            while size <= op.highest:  # u >= (3 size + 2)/4, and u < 1 minus that where so many were sent
                edge = 4 * threshold if size == 1 else (3 * size + 2) * threshold
                spikes = np.where(4 * level >= edge, size, spikes)
                spikes = np.where((4 * level < 4 * threshold - edge) & (op.signed | (count >= size)), -size, spikes)
                size *= 2
        if op.ternary:
            spikes = spikes - ((level < 0) & (count > 0))
        count = count + spikes
        state = state - spikes * op.threshold * (op.lookahead == 0)
        out.append(spikes)
    return out


def convolve(op, x):
    weight, dims = op.weight.astype(np.int64), len(op.stride)
    out, groups = np.zeros((len(x), *op.shape), np.int64), op.groups
    wide = np.pad(x, [(0, 0), (0, 0), *[(p, 64) for p in op.padding]])
    inside, outside = weight.shape[1], len(weight) // groups
    for tap in np.ndindex(*weight.shape[2:]):
        at = tuple(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, s, n in
                   zip(tap, op.dilation, op.stride, op.shape[1:], strict=True))  # fmt: skip
        for g in range(groups):
            rows = slice(g * outside, (g + 1) * outside)
            part = wide[(slice(None), slice(g * inside, (g + 1) * inside), *at)]
            out[:, rows] += np.einsum("oi,bi...->bo...", weight[(rows, slice(None), *tap)], part)
    assert dims == x.ndim - 2
    return out * 2**op.shift


def window(op, x, over):
    for axis, windows in enumerate(op.windows):
        if windows is not None:
            step = op.dilation[axis] if hasattr(op, "dilation") else 1
            x = np.stack([over(np.moveaxis(x, axis + 1, -1)[..., a:b:step], axis=-1) for a, b in windows], axis=-1)
            x = np.moveaxis(x, -1, axis + 1)
    return x


def move(op, x):
    flat = x.reshape(len(x), -1)
    taken = flat if op.index is None else np.where(op.index < 0, 0, flat[:, np.maximum(op.index, 0)])
    return taken.reshape(len(x), *op.shape)


OPERATIONS = {
    "Conv": convolve,
    "Linear": lambda op, x: (x @ op.weight.astype(np.int64).T) * 2**op.shift,
    "Gain": lambda op, x: x * op.factor * 2**op.shift,
    "SumPool": lambda op, x: window(op, x, np.sum),
    "MaxPool": lambda op, x: window(op, x, np.max),
    "Add": lambda op, *xs: sum(sign * x for sign, x in zip(op.signs, xs, strict=True)),
    "Concat": lambda op, *xs: np.concatenate(xs, op.axis + 1),
    "Move": move,
    "Readout": lambda op, x: x + op.bias,
}
