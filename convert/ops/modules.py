"""Handlers of torch.nn modules: read the module's settings, emit nodes with copies of its tensors."""

from typing import Any

from torch import nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported
from speedysnn.convert.ops.shapes import pad_mode


def _tuple(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def conv(call: Call) -> Ref:
    """Convolution; other paddings than zeros become a pad node before it."""
    m: Any = call.module
    x, dims = call.ref(), m.weight.ndim - 2
    padding = _tuple(m.padding)
    if m.padding_mode != "zeros":
        x = pad_mode(call, x, list(m._reversed_padding_repeated_twice), m.padding_mode)
        padding = [0] * dims
    attrs = {"stride": _tuple(m.stride), "padding": padding, "dilation": _tuple(m.dilation), "groups": m.groups}
    return call.emit(f"conv{dims}d", (x,), attrs, {"weight": m.weight, "bias": m.bias})


def conv_transpose(call: Call) -> Ref:
    """Transposed convolution."""
    m: Any = call.module
    attrs = {
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "output_padding": _tuple(m.output_padding),
        "groups": m.groups,
        "dilation": _tuple(m.dilation),
    }
    if m.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={m.padding_mode!r} in a transposed convolution", "use zeros")
    return call.emit(f"conv_transpose{m.weight.ndim - 2}d", (call.ref(),), attrs, {"weight": m.weight, "bias": m.bias})


def linear(call: Call) -> Ref:
    """Linear layer."""
    m: Any = call.module
    return call.emit("linear", (call.ref(),), None, {"weight": m.weight, "bias": m.bias})


def batch_norm(call: Call) -> Ref:
    """Batch-norm in evaluation mode, an affine map a channel; folded later where a layer precedes it."""
    m: Any = call.module
    if m.running_mean is None:
        raise Unsupported("batch-norm without running statistics works across the batch", "track running statistics")
    tensors = {"mean": m.running_mean, "var": m.running_var, "weight": m.weight, "bias": m.bias}
    return call.emit("batch_norm", (call.norm_input(),), {"eps": m.eps}, tensors)


def avg_pool(call: Call) -> Ref:
    """Average pooling."""
    m: Any = call.module
    x = call.ref()
    attrs = {
        "kernel": _tuple(m.kernel_size),
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "ceil_mode": m.ceil_mode,
        "count_include_pad": m.count_include_pad,
        "divisor_override": getattr(m, "divisor_override", None),
    }
    return call.emit(f"avg_pool{len(x.shape) - 2}d", (x,), attrs)


def max_pool(call: Call) -> Ref:
    """Max-pooling, exact in rate."""
    m: Any = call.module
    x = call.ref()
    if m.return_indices:
        raise Unsupported("max-pooling that returns indices", "use one that returns values only")
    attrs = {
        "kernel": _tuple(m.kernel_size),
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "dilation": _tuple(m.dilation),
        "ceil_mode": m.ceil_mode,
    }
    return call.emit(f"max_pool{len(x.shape) - 2}d", (x,), attrs)


def adaptive_avg_pool(call: Call) -> Ref:
    """Adaptive average pooling."""
    m: Any = call.module
    x = call.ref()
    return call.emit(f"adaptive_avg_pool{len(x.shape) - 2}d", (x,), {"size": _tuple(m.output_size)})


def adaptive_max_pool(call: Call) -> Ref:
    """Adaptive max-pooling, exact in rate."""
    m: Any = call.module
    x = call.ref()
    if m.return_indices:
        raise Unsupported("max-pooling that returns indices", "use one that returns values only")
    return call.emit(f"adaptive_max_pool{len(x.shape) - 2}d", (x,), {"size": _tuple(m.output_size)})


def hardtanh(call: Call) -> Ref:
    """A clamp to a range that holds 0 becomes a neuron, signed where it reaches below 0."""
    m: Any = call.module
    low, high = float(m.min_val), float(m.max_val)
    if low > 0 or high <= 0:
        return call.emit("clamp", (call.ref(),), {"min": low, "max": high})
    return call.neuron(call.ref(), ceiling=high, floor=low)


def same(call: Call) -> Ref:
    """Dropout in evaluation mode and identities disappear."""
    return call.ref()


def flatten(call: Call) -> Ref:
    """Flatten, batch kept."""
    m: Any = call.module
    x = call.ref()
    start, end = call.dims([m.start_dim, m.end_dim], len(x.shape))
    return call.emit("flatten", (x,), {"start": start, "end": end})


def unflatten(call: Call) -> Ref:
    """Unflatten is a reshape to the traced shape."""
    return call.emit("reshape", (call.ref(),), {"shape": [0, *call.result[1:]]})


def pad(call: Call) -> Ref:
    """Padding layers: zeros, constants, reflection, replication, circular."""
    m: Any = call.module
    kinds = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect", "Replication": "replicate",
             "Circular": "circular"}  # fmt: skip
    mode = next(mode for word, mode in kinds.items() if type(m).__name__.startswith(word))
    return pad_mode(call, call.ref(), list(m.padding), mode, getattr(m, "value", 0.0), final=True)


def upsample(call: Call) -> Ref:
    """Upsampling, which is linear in its input; bicubic too."""
    m: Any = call.module
    attrs = {"size": _tuple(m.size), "scale": _tuple(m.scale_factor), "mode": m.mode, "align_corners": m.align_corners}
    return call.emit("interpolate", (call.ref(),), attrs)


def pixel_shuffle(call: Call) -> Ref:
    """Pixel shuffle."""
    m: Any = call.module
    return call.emit("pixel_shuffle", (call.ref(),), {"factor": m.upscale_factor})


def channel_shuffle(call: Call) -> Ref:
    """Channel shuffle."""
    m: Any = call.module
    return call.emit("channel_shuffle", (call.ref(),), {"groups": m.groups})


MODULE_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_transpose),
    nn.Linear: linear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), batch_norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), avg_pool),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), max_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), adaptive_avg_pool),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), adaptive_max_pool),
    nn.Hardtanh: hardtanh,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), same),
    **dict.fromkeys((nn.FeatureAlphaDropout, nn.Identity), same),
    nn.Flatten: flatten,
    nn.Unflatten: unflatten,
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), pad),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), pad),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), pad),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), pad),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), pad),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d), upsample),
    nn.PixelShuffle: pixel_shuffle,
    nn.ChannelShuffle: channel_shuffle,
}
