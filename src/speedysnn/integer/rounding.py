"""Rounding by reconstruction: of the whole numbers beside each weight, those that keep the layer's drive on images.

With X the inputs that a layer sees on calibration images and H = X X^T, weights are rounded one after the other, and
what one gets wrong is given to those that are still to be rounded, so that |(W - W_int) X| stays small.

Reference: frantar2023
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from speedysnn.integer.program import Conv, Floats, Linear, Operation, Program
from speedysnn.integer.simulate import run
from speedysnn.torch_utils import windows

DAMPING = 0.01  # of the mean of H's diagonal, added to it


def input_products(program: Program, images: Tensor) -> dict[str, Floats]:
    """H of every weight layer: the products of its inputs, summed over images, steps and places.

    Args:
        program: an integer network.
        images: as `simulate.run` takes them.

    Returns:
        Name of the layer -> (groups, weights of a channel, weights of a channel).
    """
    found: dict[str, Floats] = {}
    by_name = program.by_name
    readers: dict[str, list[Conv | Linear]] = {}
    for op in program.operations:
        if isinstance(op, Conv | Linear):
            readers.setdefault(op.sources[0], []).append(op)

    def see(op: Operation, value: Tensor) -> None:
        flat = value.flatten(0, 1) if by_name[op.name].timing == "steps" else value
        for layer in readers.get(op.name, ()):
            found[layer.name] = found.get(layer.name, 0.0) + _products(layer, flat.to(torch.float64))

    for part in images.split(50, int(program.input.timing == "steps")):  # type: ignore[no-untyped-call]
        run(program, part, None, see)
    return found


def _products(op: Conv | Linear, x: Tensor) -> Floats:
    rows = x.reshape(1, -1, x.shape[-1]) if isinstance(op, Linear) else _patches(op, x)
    return np.asarray((rows.transpose(1, 2) @ rows).numpy())


def _patches(op: Conv, x: Tensor) -> Tensor:
    """What each output place multiplies, (groups, places, weights of a channel)."""
    pads, taps = [], op.weight.shape[2:]
    for axis, (tap, step, apart) in enumerate(zip(taps, op.stride, op.dilation, strict=True)):
        reach = (op.shape[axis + 1] - 1) * step + apart * (tap - 1) + 1
        pads.append((op.padding[axis], reach - x.shape[axis + 2] - op.padding[axis]))
    seen = windows(x, taps, op.stride, op.dilation, pads)  # images, channels, *places, *taps
    flat = seen.flatten(2, 1 + len(taps)).flatten(3).transpose(1, 2)  # images, places, channels, taps
    grouped = flat.reshape(*flat.shape[:2], op.groups, -1)
    return grouped.flatten(0, 1).transpose(0, 1)


def reconstructed(weights: Floats, products: Mapping[str, Floats], name: str, largest: int) -> Floats:
    """Whole numbers for a layer's weights.

    Args:
        weights: in units of one integer, (out channels, ...).
        products: of `input_products`.
        name: the layer.
        largest: the largest whole number.

    Returns:
        Whole numbers in the same shape.
    """
    if name not in products:
        return np.clip(np.round(weights), -largest, largest)
    groups = products[name]
    rows = weights.reshape(len(groups), -1, groups.shape[1])
    out = [_one_after_another(w, h, largest) for w, h in zip(rows, groups, strict=True)]
    return np.stack(out).reshape(weights.shape)


def _one_after_another(weights: Floats, products: Floats, largest: int) -> Floats:
    """Columns are rounded in order, those of the largest inputs first; the rest takes up what each gets wrong."""
    order = np.argsort(-np.diag(products), kind="stable")
    h = products[np.ix_(order, order)].copy()
    h[np.diag_indices_from(h)] += DAMPING * max(float(np.diag(h).mean()), 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, out = weights[:, order].copy(), np.empty_like(weights)
    for i in range(left.shape[1]):
        rounded = np.clip(np.round(left[:, i]), -largest, largest)
        out[:, order[i]] = rounded
        left[:, i + 1 :] -= np.outer((left[:, i] - rounded) / upper[i, i], upper[i, i + 1 :])
    return out
