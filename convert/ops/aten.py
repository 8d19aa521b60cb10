"""Handlers of ATen operators, as torch.export leaves them; most share a functional form's handler."""

from dataclasses import replace
from typing import Any

import torch

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported
from speedysnn.convert.ops import activations, functions, modules, moves, shapes
from speedysnn.graph.activations import overloads


def _norm(handler: Handler, *more: str) -> Handler:
    """ATen's (x, weight, bias, mean, var, *more), where torch.nn.functional has the statistics before the weight."""
    names = ("weight", "bias", "running_mean", "running_var", *more)

    return lambda call: _renamed(call, handler, names)


def _renamed(call: Call, handler: Handler, names: tuple[str, ...]) -> Any:
    """A handler that finds arguments by other names than ATen has for their places."""
    inner = replace(call, args=call.args[:1], kwargs=dict(zip(names, call.args[1:], strict=False)), read=set())
    out = handler(inner)
    call.read.update({0, *(at for at, name in enumerate(names, 1) if name in inner.read)})
    return out


def _conv_transpose(call: Call) -> Ref:
    weight = call.get(1, "weight")
    dims = weight.ndim - 2
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    defaults = (1, 0, 0, 1, 1)
    attrs: dict[str, Any] = {}
    for i, (name, default) in enumerate(zip(names, defaults, strict=True)):
        value = call.get(3 + i, name, default)
        attrs[name] = value if name == "groups" else functions.as_list(value, dims)
    return call.emit(f"conv_transpose{dims}d", (call.ref(),), attrs, {"weight": weight, "bias": call.get(2, "bias")})


def _convolution(call: Call) -> Ref:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = call.args
    call.read_from_result()
    if transposed:
        return _conv_transpose(replace(call, args=(x, weight, bias, stride, padding, output_padding, groups, dilation)))
    return functions.conv(replace(call, args=(x, weight, bias, stride, padding, dilation, groups)))


def _addmm(call: Call) -> Ref:
    """A decomposed program's linear layer: beta bias + alpha x weight."""
    bias, x, weight = (call.get(at, name) for at, name in enumerate(("input", "mat1", "mat2")))
    if not isinstance(x, Ref) or not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
        raise Unsupported("a matrix product of two branches with a sum", "add after the product, or use a linear layer")
    alpha, beta = (call.number(3, name, 1) for name in ("alpha", "beta"))
    return call.emit("linear", (x,), None, {"weight": alpha * weight.t(), "bias": beta * bias.expand(weight.shape[1])})


def _upsample(mode: str, antialias: bool = False) -> Handler:
    """(x, size, [align_corners], scale of each dimension or a list of them); the scale says where it samples."""
    cornered = mode in ("linear", "bilinear", "bicubic", "trilinear")

    def handle(call: Call) -> Ref:
        corners = bool(call.get(2, "align_corners")) if cornered else None
        given = [scale for scale in call.rest(2 + cornered, "scale_factors") if scale is not None]
        sizes, dims = list(call.result[2:]), call.ref().shape[2:]
        call.read.update((1, "output_size", "size"))
        fits = len(given) == len(sizes) and all(int(n * s) == out for n, s, out in zip(dims, given, sizes, strict=True))
        if given and not fits:
            raise Unsupported(f"the scales {given} with sizes {sizes} that are not theirs", "give one of them")
        attrs = {"size": None if given else sizes, "scale": given or None, "mode": mode, "align_corners": corners}
        return functions.resized(call, {**attrs, "antialias": antialias})

    return handle


_UPSAMPLED: dict[str, Handler] = {
    **{f"upsample_nearest{dims}d": _upsample("nearest") for dims in (1, 2, 3)},
    **{f"_upsample_nearest_exact{dims}d": _upsample("nearest-exact") for dims in (1, 2, 3)},
    "upsample_linear1d": _upsample("linear"),
    "upsample_bilinear2d": _upsample("bilinear"),
    "upsample_bicubic2d": _upsample("bicubic"),
    "upsample_trilinear3d": _upsample("trilinear"),
    "_upsample_bilinear2d_aa": _upsample("bilinear", antialias=True),
    "_upsample_bicubic2d_aa": _upsample("bicubic", antialias=True),
}


def _lrelu(call: Call) -> Ref:
    return activations.two_neurons(call, float(call.get(1, "negative_slope", 0.01)))


def _elu(call: Call) -> Ref:
    if (call.get(2, "scale", 1), call.get(3, "input_scale", 1)) != (1, 1):
        raise Unsupported("a scaled ELU", "use torch.nn.SELU")
    return call.emit("elu", (call.ref(),), {"alpha": float(call.get(1, "alpha", 1.0))})


def _first(handler: Handler) -> Handler:
    """Of an operator that may also give what only a gradient needs (places, statistics): the value alone is used."""

    def handle(call: Call) -> Any:
        if not call.result or not isinstance(call.result[0], tuple):
            return handler(call)
        return (handler(replace(call, result=call.result[0])), *[None] * (len(call.result) - 1))

    return handle


def _same(call: Call) -> Any:
    return call.get(0, "self")


def _cast(call: Call) -> Any:
    shapes.cast(call) if isinstance(call.args[0], Ref) and not call.args[0].order else call.read_from_result()
    return call.args[0]


def _dropout(call: Call) -> Any:
    if call.get(2, "train") and call.get(1, "p"):
        raise Unsupported("dropout that also drops when evaluating", "export the network in evaluation mode")
    return call.get(0, "input")


# The name of an overload packet of torch.ops.aten -> handler. Arguments keep ATen's order.
_BY_NAME: dict[str, Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), functions.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "convolution": _convolution,
    "linear": functions.linear,
    "addmm": _addmm,
    "batch_norm": _norm(functions.batch_norm, "training", "momentum", "eps"),
    "_native_batch_norm_legit_no_training": _first(_norm(functions.batch_norm, "momentum", "eps")),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), functions.avg_pool),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), functions.max_pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _first(functions.max_pool)),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
                     "_adaptive_avg_pool3d"), functions.adaptive_pool("avg")),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _first(functions.adaptive_pool("max"))),
    **dict.fromkeys(("hardtanh", "hardtanh_"), functions.hardtanh),
    **dict.fromkeys(("clamp", "clamp_"), functions.clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), functions.clamp_min),
    **dict.fromkeys(("clamp_max", "clamp_max_"), functions.clamp_max),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _lrelu),
    **dict.fromkeys(("prelu", "_prelu_kernel"), activations.prelu),
    **dict.fromkeys(("elu", "elu_"), _elu),
    **dict.fromkeys(("add", "add_"), functions.add(1)),
    **dict.fromkeys(("sub", "sub_"), functions.add(-1)),
    **dict.fromkeys(("mul", "mul_"), functions.multiply),
    **dict.fromkeys(("div", "div_"), functions.divide),
    "neg": functions.negate,
    "mean": functions.reduce("mean"),
    "sum": functions.reduce("sum"),
    "cat": shapes.cat,
    "stack": shapes.stack,
    "flatten": shapes.flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten"), shapes.reshape),
    "permute": shapes.permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), shapes.transpose),
    "squeeze": shapes.squeeze,
    "unsqueeze": shapes.unsqueeze,
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), shapes.split),
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad_aten),
    "slice": moves.slice_dim,
    "slice_scatter": moves.slice_scatter,
    "select": moves.select,
    "narrow": moves.narrow,
    "unbind": moves.unbind,
    **dict.fromkeys(("expand", "expand_as"), moves.expand),
    "repeat": moves.repeat,
    "roll": moves.roll,
    "flip": moves.flip,
    "index": moves.index,
    "index_select": moves.index_select,
    "masked_fill": moves.masked_fill,
    "movedim": moves.movedim,
    **dict.fromkeys(("softmax", "_softmax"), activations.along("softmax")),
    **dict.fromkeys(("log_softmax", "_log_softmax"), activations.along("log_softmax")),
    "glu": activations.along("glu"),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _first(functions.layer_norm)),
    "rms_norm": functions.rms_norm,
    "group_norm": functions.group_norm,
    "instance_norm": _norm(functions.instance_norm, "use_input_stats", "momentum", "eps"),
    "pow": activations.power,
    **{op: moves.compare(op) for op in ("gt", "ge", "lt", "le")},
    "where": moves.where,
    "maximum": moves.pairwise("maximum"),
    "minimum": moves.pairwise("minimum"),
    "amax": moves.reduce("amax"),
    "amin": moves.reduce("amin"),
    **dict.fromkeys(("matmul", "mm", "bmm"), modules.matmul),
    "einsum": modules.einsum,
    "linalg_vector_norm": functions.vector_norm,
    "new_zeros": moves.new_constant(0.0),
    "new_ones": moves.new_constant(1.0),
    "new_full": moves.new_constant(None),
    **{f"{word}_like": moves.new_constant(value, 1) for word, value in (("zeros", 0.0), ("ones", 1.0), ("full", None))},
    "scaled_dot_product_attention": modules.scaled_dot_product,
    **_UPSAMPLED,
    "pixel_shuffle": lambda call: call.emit("pixel_shuffle", (call.ref(),), {"factor": call.get(1, "upscale_factor")}),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "feature_dropout_"), _dropout),
    **dict.fromkeys(("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy"), _same),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
}  # fmt: skip


# Keyed by every overload of the packets named above, as an exported graph calls them.
ATEN_ROWS: dict[Key, Handler] = {
    overload: handler for name, handler in _BY_NAME.items() for overload in overloads(name)
}
