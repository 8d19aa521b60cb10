"""Counts of values by channel and float32 code in Triton. Imported only where Triton is there."""

import triton
import triton.language as tl


@triton.jit
def _count(bits, here, channel, table, codes: tl.constexpr, shift: tl.constexpr):  # pragma: no cover - compiled
    code = bits >> shift
    tl.atomic_add(table + channel * codes + code, 1, mask=here & (code > 0), sem="relaxed")


@triton.jit
def _raise(bits, at, inside, peaks, axis: tl.constexpr):  # pragma: no cover - compiled
    most = tl.max(bits, axis)
    before = tl.load(peaks + at, mask=inside, other=0)  # may be old, but then it is smaller: few need to be written
    tl.atomic_max(peaks + at, most, mask=inside & (most > before), sem="relaxed")


@triton.jit
def count_bins(
    x, table, peaks, worst, rows, width, channels, codes: tl.constexpr, shift: tl.constexpr, across: tl.constexpr,
    signed: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """Count a matrix (rows, width) whose columns are channels if `across`, else row r is of channel r % channels.

    `table` (channels, codes) and `peaks` (channels,) have as many rows more, of values negated, if `signed`; `worst`
    takes the largest magnitude's bits.
    """
    r = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    c = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    here = (r < rows)[:, None] & (c < width)[None, :]
    value = tl.load(x + r[:, None] * width + c[None, :], mask=here, other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    if across:
        at, inside = c, c < width
        channel = at[None, :] + tl.zeros_like(bits)
    else:
        at, inside = r % channels, r < rows
        channel = at[:, None] + tl.zeros_like(bits)
    tl.atomic_max(worst, tl.max(tl.max(bits & 0x7FFFFFFF, 1), 0), sem="relaxed")
    _count(bits, here, channel, table, codes, shift)
    _raise(bits, at, inside, peaks, 0 if across else 1)
    if signed:
        negated = (-value).to(tl.int32, bitcast=True)
        _count(negated, here, channel + channels, table, codes, shift)
        _raise(negated, at + channels, inside, peaks, 0 if across else 1)
