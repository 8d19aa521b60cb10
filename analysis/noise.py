"""measure_noise: three readings of every image, layer by layer."""

from typing import Any

from torch import nn

from speedysnn.analysis.noise_sums import DETAILS as DETAILS
from speedysnn.analysis.noise_sums import NoiseSums as NoiseSums
from speedysnn.analysis.result import NoiseReport
from speedysnn.network import SpikingNetwork
from speedysnn.settings import repeatable


@repeatable
def measure_noise(
    snn: SpikingNetwork,
    data: Any,
    source: nn.Module | None = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    progress: bool = False,
    detail: str = "standard",
    memory_mib: float | None = None,
    seed: int = 0,
) -> NoiseReport:
    """Measure how far every layer's spikes are from the source's activations, and why; one pass over the data.

    Each image is read three times, analog, quantized and spiking, and every element's error e = r - a is split into

        clip        clamp(z, 0, N theta) - a           the range is too small
        round       Q(z) - clamp(z, 0, N theta)        the step is too coarse
        propagated  Q(z') - Q(z)                       the input is off already
        temporal    r - Q(z')                          the input's spikes came unevenly

    with a, z the source's activation and pre-activation, z' the mean over time of the spiking layer's input and r that
    of its output. The parts add up to e, and their shares sum(part e) / sum(e^2) to 1; a share may be below 0. The
    order of the parts is a convention. All sums are float64 over all elements of all images, taken in passes of a
    fixed size, so that no figure depends on how the data is batched.

    Args:
        snn: the network, at its present T, thresholds and look-ahead; it is left as it is.
        data: a Dataset, a DataLoader, a tensor (B, ...), a tuple (x, y), or batches; labels give accuracies.
        source: what to compare with: None for the network's own analog reading; a SpikingNetwork with the same
            neurons, as it was before tuning (theta stays this network's own); or the original nn.Module, whose outputs
            alone can be compared, the layers then with the own analog reading.
        batch_size: images read at a time where the data is not in batches yet; no figure depends on it.
        limit: stop after this many images.
        progress: show progress.
        detail: "full" also compares every two channels' errors and steps beside one another.
        memory_mib: what sums and readings may take beside the weights, MiB; predicted from the first image's shapes and
            stated in `NoiseReport.memory`. None for 1024 or, for a large network, what passes of 8 images take, up to
            a quarter of the machine's memory. Where it is short fewer images are read at once, then dead and saturated
            neurons are looked for in a sample of the largest layers; every sum over elements stays whole.
        seed: of that sample.

    Raises:
        InputError: an option out of range, a source that does not fit, or a limit too small for one image.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> noise = measure_noise(snn, data)                                            # doctest: +SKIP
        >>> noise.layers[["layer", "sqnr_db", "share_temporal"]]                        # doctest: +SKIP
    """
    sums = NoiseSums(snn, source, detail=detail, memory_mib=memory_mib, seed=seed)
    return sums.add(data, batch_size=batch_size, limit=limit, progress=progress).report()
