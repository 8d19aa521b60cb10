"""When a convolution multiplies its events only: a rule by shape and density, the same on every machine of a kind.

The event-driven way costs a fixed part (finding the events, writing the sums) and a part in proportion to them, so that
it pays below some share of values that are not zero. The shares below are the lower end of what `speedysnn.crossover`
measures for the shapes of ResNet-20 (32 px) and ResNet-18 (224 px) on x86-64 with AVX2, one thread. Near them both ways
take about the same time, so that little is lost where a machine would have decided otherwise. Nothing but the call
enters: the layer's sizes, the pictures of the call and the share of nonzero values in what the layer reads.
"""

from speedysnn.kernels.event_conv import ConvShape

# (fewest channels read or written, largest share of nonzero values)
FORWARD = ((32, 0.3), (16, 0.22), (0, 0.15))
GRADIENT = ((64, 0.6), (32, 0.5), (16, 0.45), (0, 0.05))  # of the weights, kernels of more than one place
POINTWISE_GRADIENT = 0.05  # a product of matrices is hard to beat
BESIDE_TILES = 0.5  # tiles take about half of torch's time, and so halve the share up to which events pay


def forward_density(shape: ConvShape, tiled: bool) -> float:
    """The share of nonzero inputs up to which a convolution runs by events; `tiled`: else it would run by tiles."""
    return _largest(FORWARD, shape) * (BESIDE_TILES if tiled else 1)


def gradient_density(shape: ConvShape, tiled: bool) -> float:
    """The same for the gradient of its weights."""
    share = POINTWISE_GRADIENT if shape.kernel == (1, 1) else _largest(GRADIENT, shape)
    return share * (BESIDE_TILES if tiled else 1)


def _largest(table: tuple[tuple[int, float], ...], shape: ConvShape) -> float:
    return next(share for fewest, share in table if min(shape.channels) >= fewest)
