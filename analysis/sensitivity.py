"""measure_sensitivity: which layer hurts the output, in which sense of the word, and what a change of it would gain."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.branches import measured
from speedysnn.analysis.budget import DEFAULT_MIB, check
from speedysnn.analysis.change import CHANGES
from speedysnn.analysis.gains import changes_of
from speedysnn.analysis.kept import kept_images
from speedysnn.analysis.mixed import over
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.ranking import GAINS as GAINS
from speedysnn.analysis.ranking import Row, Sums, check_finalists, confirmed, ranked
from speedysnn.analysis.ranking import table as ranking
from speedysnn.analysis.sensitivity_result import MODES as MODES
from speedysnn.analysis.sensitivity_result import SCHEMA as SCHEMA
from speedysnn.analysis.sensitivity_result import Sensitivity as Sensitivity
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.settings import repeatable

AT_LAYER = ("local", "cumulative")
TABLE = ("layer", "mode", "at", "sqnr_db", "agreement", "accuracy")


@repeatable
def measure_sensitivity(
    snn: SpikingNetwork,
    data: Any,
    *,
    modes: Sequence[str] = ("isolated", "prefix", "leave_one_out"),
    gains: bool | Sequence[str] = True,
    confirm: Any = None,
    finalists: int = 8,
    limit: int | None = None,
    progress: bool = False,
    memory_mib: float = DEFAULT_MIB,
    seed: int = 0,
) -> Sensitivity:
    """Measure every layer's part in the output's noise, and what changing that layer alone would gain there.

    Everything is compared with the network's own analog reading. "isolated" noises add up to the quantized reading's
    and see no timing error, since each layer then gets a constant current; "prefix" and "leave_one_out" do see it. With
    L layers "isolated" and "prefix" cost about L/2 passes of the source each, "leave_one_out" and each kind of change
    L/2 spiking passes: a pass is shared up to the layer. No figure depends on how the data is batched.

    Args:
        snn: the network, at its present T, thresholds and look-ahead; copies are changed, never the network.
        data: as in `measure_noise`; labels give accuracies. The images are kept in memory, within the limit.
        modes: of `MODES`.
        gains: measure the changes too, all of `speedysnn.analysis.gains.CHANGES` or some of them.
        confirm: other images, on which the best changes are measured again: they alone then rank and predict those,
            without the optimism of having been chosen among many. Each costs about a spiking pass.
        finalists: how many changes are measured again.
        limit: stop after this many images.
        progress: show progress.
        memory_mib: what kept images, passes and scores may take beside the weights, MiB; predicted from the first
            image, stated in `Sensitivity.memory`. Where it is short passes take fewer images, then images are sampled.
        seed: of that sample.

    Raises:
        InputError: an option out of range, another mode, or a limit too small for a few images.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> found = measure_sensitivity(snn, calibration)                               # doctest: +SKIP
        >>> found.apply(snn)                        # carries out the best change         # doctest: +SKIP
    """
    wanted, kinds = _chosen("modes", modes, MODES), _chosen("gains", CHANGES if gains is True else gains or (), CHANGES)
    if not wanted and not kinds:
        raise InputError(f"modes: expected some of {', '.join(MODES)}, or gains, got neither")
    check_finalists(finalists)
    check(memory_mib, seed)
    with torch.no_grad():
        memory, pieces = kept_images(snn, data, wanted, kinds, memory_mib, seed, limit)
        changes = changes_of(snn, pieces, kinds, progress, memory.at_once) if kinds else []
        outputs, sums = OutputSums(), Sums()
        call = partial(measured, snn, wanted, changes, tight=memory.tight)
        for found in over(snn, pieces, call, "measuring sensitivity", progress, memory.at_once):
            outputs.merge(found.spikes)
            outputs.update(*found.outputs, found.labels)
            sums.add(found.scores)
        del pieces
        best: list[Row] = ranked(changes, sums.scores)
        if confirm is not None and best:
            best, memory = confirmed(snn, confirm, changes, best, finalists, progress, memory)
    figures = {"reference": "analog reading of the network itself", **settings(snn), **outputs.figures()}
    rows = [
        {"layer": name, "mode": mode, "at": "layer" if mode in AT_LAYER else "output",
         **sums.scores[mode, name].figures()}
        for mode in wanted
        for name in snn.neurons
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(TABLE))
    return Sensitivity(table, ranking(best), figures, {(c.layer, c.kind): c for c in changes}, memory=memory)


def _chosen(option: str, given: str | Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The chosen words in their own order."""
    chosen = (given,) if isinstance(given, str) else tuple(given)
    odd = [word for word in chosen if word not in known]
    if odd:
        raise InputError(f"{option}: expected some of {', '.join(known)}, got {odd[0]!r}")
    return tuple(word for word in known if word in chosen)
