"""measure_cost: what an inference costs, in events, operations, updates, state and energy under named tables."""

from typing import Any

import torch

from speedysnn.analysis.counter import Counter
from speedysnn.analysis.energy import CostReport
from speedysnn.analysis.images import part, pass_size, passes
from speedysnn.network import SpikingNetwork
from speedysnn.progress import track
from speedysnn.settings import repeatable


@repeatable
def measure_cost(snn: SpikingNetwork, data: Any, *, limit: int | None = None, progress: bool = False) -> CostReport:
    """Count what an inference costs in the spiking reading, beside the source and a quantized rival.

    Synaptic operations are sum over positions of events * fan-out, from one pass over the images. They do not depend
    on how the images are batched.

    Args:
        snn: the network, measured at its present T and look-ahead; it is left as it is.
        data: as in `measure_noise`; labels are ignored.
        limit: stop after this many images.
        progress: show progress.

    Raises:
        InputError: a limit below 1.
        DataError: no data, images of different sizes, or the network does not run on them.
    """
    counter: Counter | None = None
    with torch.no_grad():
        for batch in track(passes(snn, data, pass_size(snn), limit=limit), "counting", enabled=progress):
            if counter is None:
                counter = Counter(snn, part(snn, batch, 0, 1).inputs)
            counter.add(batch.inputs)
    assert counter is not None  # passes refuses data without images
    return counter.report()
