"""The sums of a layer on a GPU: `RunningThere` hands tensors to Triton, and the sums stay there until asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from speedysnn.analysis.noise.moments import BINS, PER_STEP, starts
from speedysnn.analysis.noise.numba_backend import Clip, Sums
from speedysnn.analysis.noise.schema import CHANNELS, COUNTS, ELEMENT_SUMS, HISTOGRAMS, TOTALS, TRAIN_SUMS
from speedysnn.kernels import triton_backend
from speedysnn.kernels.layout import PROGRAMS, shared, values

_TILE = 256  # elements that a program looks at together, one a thread: each has thirty sums to keep
_BLOCK = 128  # units of one program


def supports(*tensors: Tensor) -> bool:
    """Tell whether the sums in Triton can read these tensors.

    Returns:
        True on one GPU that runs Triton, for float32 that is not empty.
    """
    kinds = {x.device for x in tensors}
    alike = all(x.dtype == torch.float32 and x.numel() for x in tensors)
    where = tensors[0].device.type
    return len(kinds) == 1 and where != "cpu" and alike and triton_backend.usable(where)


class RunningThere:
    """The sums of `LayerSums` on a GPU while they grow; arguments and results are those of `numba_backend.Running`."""

    def __init__(
        self, z: Tensor, channel_dim: int, theta: Tensor, start: Tensor, *, amplitude: Tensor, timesteps: int,
        max_count: int, min_count: int, trains: bool, lags: bool,
    ) -> None:  # fmt: skip
        self._shape, self._dim, self._trains, self._lags = z.shape[1:], channel_dim, trains, lags
        self._channels = z.shape[channel_dim] if z.ndim > 1 else 1
        own = (values(x, torch.float32).expand(self._channels).contiguous() for x in (theta, start, amplitude))
        self._theta, self._start, self._amplitude = own
        self._steps, self._max_count, self._min_count = float(timesteps), float(max_count), float(min_count)
        self._sums: dict[str, Tensor] = {}
        self._seen, self._fired = torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.int64, device=z.device)
        units = self._shape.numel()
        self._units = torch.zeros(3, units, dtype=torch.int32, device=z.device)  # fires, full, and peak's bits

    def fits(self, z: Tensor, trains: bool) -> bool:
        """Tell whether these images can be added to those before them.

        Returns:
            True where `add` may take them.
        """
        return (z.shape[1:], trains, z.device) == (self._shape, self._trains, self._units.device)

    def add(
        self, z: Tensor, corrected: Tensor, a: Tensor | Clip, twin: Tensor, drive: Tensor, constant: bool, out: Tensor,
        fired: int | None,
    ) -> int | Tensor:  # fmt: skip
        """Add some images; arguments as in `numba_backend.Running.add`.

        Returns:
            The spike events, which the GPU may still be counting.
        """
        clip = isinstance(a, tuple)
        (low, high), source = (a, z) if isinstance(a, tuple) else ((None, None), a)
        limits = (-torch.inf if low is None else low, torch.inf if high is None else high, clip)
        z, held, source, twin, drive, out = (self._rows(x) for x in (z, corrected, source, twin, drive, out))
        emitted, seen, factor = len(out) // len(z), *((1.0, self._steps) if constant else (self._steps, 1.0))
        with triton_backend.on(z):
            total, when, pulses = self._add_trains(out, drive, seen, emitted)
            count = self._add_errors((z, held, source, twin, drive), total, factor, emitted, limits)
            self._add_units(z, source, count, limits)
        self._more("begun", starts(when))
        self._seen += torch.tensor([z.numel(), len(z)])
        events = pulses.sum() if fired is None else fired
        self._fired = self._fired + events
        return events

    def _rows(self, x: Tensor) -> Tensor:
        """The tensor with channels last, (B, ..., C), contiguous."""
        return x.detach().reshape(-1, 1) if x.ndim < 2 else x.detach().movedim(self._dim, -1).contiguous()

    def _add_trains(self, out: Tensor, drive: Tensor, seen: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs over time, (B, ..., C), first steps, and spikes a step, (T,)."""
        from speedysnn.analysis.noise import triton_kernels

        rows, device = drive.numel() // self._channels, drive.device
        grid, tile = shared(rows, self._channels, _TILE)
        found = torch.empty(grid[0], len(TRAIN_SUMS), self._channels, dtype=torch.float64, device=device)
        pulses = torch.zeros(grid[0] * grid[1], steps, _TILE, dtype=torch.int32, device=device)
        total, when = (torch.empty(drive.shape, dtype=kind, device=device) for kind in (torch.float64, torch.int32))
        triton_kernels.trains[grid](
            out, drive, self._theta, self._amplitude, found, pulses, total, when, rows, self._channels, steps, seen,
            self._min_count / self._steps, self._max_count / self._steps, self._lags, *tile,
        )  # fmt: skip
        each = pulses.sum((0, 2))
        self._more("trains", found.sum(0))
        self._more("pulses", each)
        return total, when, each

    def _add_errors(
        self, given: tuple[Tensor, ...], total: Tensor, factor: float, emitted: int, limits: tuple[float, float, bool]
    ) -> Tensor:
        """Each element's count, (B, ..., C)."""
        from speedysnn.analysis.noise import triton_kernels

        rows, device = total.numel() // self._channels, total.device
        grid, tile = shared(rows, self._channels, _TILE)
        found = torch.empty(grid[0], len(ELEMENT_SUMS), self._channels, dtype=torch.float64, device=device)
        tables = torch.zeros(grid[0] * grid[1], len(HISTOGRAMS), BINS + 3, dtype=torch.int32, device=device)
        count = torch.empty(total.shape, device=device)
        triton_kernels.errors[grid](
            *given, total, self._theta, self._start, self._amplitude, found, tables, count, rows, self._channels,
            float(emitted), self._steps, self._max_count, self._min_count, factor, *limits, BINS, PER_STEP, *tile,
            num_warps=_TILE // 32,
        )  # fmt: skip
        self._more("errors", found.sum(0))
        self._more("bins", tables.sum(0))
        return count

    def _add_units(self, z: Tensor, source: Tensor, count: Tensor, limits: tuple[float, float, bool]) -> None:
        from speedysnn.analysis.noise import triton_kernels

        units = self._units.shape[1]
        grid = -(-units // _BLOCK), max(1, min(len(z), PROGRAMS * _BLOCK // units))
        triton_kernels.units[grid](z, source, count, *self._units, len(z), units, self._max_count, *limits, _BLOCK)

    def _more(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def found(self) -> Sums:
        """Bring the sums so far to the CPU.

        Returns:
            Every sum by name.
        """
        sums = _here(self._sums | {"fired": self._fired})
        errors, bins = sums["errors"], sums["bins"]
        total = dict(zip(ELEMENT_SUMS, errors.sum(1), strict=True)) | dict(
            zip(TRAIN_SUMS, sums["trains"].sum(1), strict=True)
        )
        total |= dict(zip(("started", "start"), sums["begun"].to(torch.float64), strict=True))
        if not self._lags:
            total |= dict.fromkeys(("lag0", "lag1"), torch.zeros((), dtype=torch.float64))
        bins[:, -1] = self._seen[0] - bins.sum(1)
        out = {
            "channels": torch.stack([errors[ELEMENT_SUMS.index(name)] for name in CHANNELS]),
            "totals": torch.stack([total[name] for name in TOTALS]),
            "counts": torch.stack([total[name] for name in COUNTS]).round().to(torch.int64),
            "bins": bins,
            "events": torch.cat([sums["fired"].reshape(1), self._seen]),
        }
        fires, full, peak = self._units.cpu()
        for name, value in (("fires", fires), ("full", full), ("peak", peak.view(torch.float32))):
            out[name] = self._in_order(value)
        return {**out, "pulses": sums["pulses"]} if self._trains else out

    def _in_order(self, units: Tensor) -> Tensor:
        """Numbers of neurons, channels last, in the order of an image."""
        if not self._shape:
            return units
        places = [size for dim, size in enumerate(self._shape, 1) if dim != self._dim % (len(self._shape) + 1)]
        return units.view(*places, self._channels).movedim(-1, self._dim - (self._dim > 0)).reshape(-1)


def _here(sums: Mapping[str, Tensor]) -> Sums:
    """Bring all sums to the CPU in one transfer; float64 holds whole numbers up to 2^53."""
    whole = torch.cat([value.to(torch.float64).reshape(-1) for value in sums.values()]).cpu()
    pieces = whole.split([value.numel() for value in sums.values()])  # type: ignore[no-untyped-call]
    own = zip(sums.items(), pieces, strict=True)
    return {name: piece.view(value.shape).to(value.dtype) for (name, value), piece in own}
