"""ONNX layers as modules of torch.nn (`LAYERS`), and operators that take parts of values or join them (`PARTS`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from speedysnn.sources.onnx_node import Node, Numbers, Row, Unsupported

__all__ = ["LAYERS", "PARTS"]

_END = 2**31 - 1  # ends of slices at or above this mean "to the end"



def _same_pads(node: Node, kernel: Sequence[int], strides: Sequence[int], *, upper: bool) -> list[int]:
    """The pads that give ceil(size / stride), from sizes that the file fixes; an odd one goes behind or before."""
    sizes = node.reader.shape(node.proto.input[0])
    if sizes is None or any(size is None for size in sizes[2:]) or node.proto.op_type == "ConvTranspose":
        raise Unsupported(f"auto_pad=SAME with strides {list(strides)} and open sizes: fix them, or export the pads")
    dilations = node.attribute("dilations", [1] * len(kernel))
    begin, end = [], []
    for size, width, step, apart in zip(sizes[2:], kernel, strides, dilations, strict=True):
        total = max((-(-int(size or 0) // step) - 1) * step + apart * (width - 1) + 1 - int(size or 0), 0)
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return [*begin, *end]


def _pads(node: Node, dims: int, kernel: Sequence[int]) -> tuple[Any, list[int]]:
    """A symmetric padding a dimension, and what must be padded before, in torch's order (last dimension first)."""
    auto = node.attribute("auto_pad", "NOTSET")
    strides = node.attribute("strides", [1] * dims)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if auto == "SAME_UPPER" and all(stride == 1 for stride in strides) and node.proto.op_type == "Conv":
            return "same", []
        pads = _same_pads(node, kernel, strides, upper=auto == "SAME_UPPER")
        begin, end = pads[:dims], pads[dims:]
        return (0,) * dims, [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair]
    pads = [0] * (2 * dims) if auto == "VALID" else node.attribute("pads", [0] * (2 * dims))
    begin, end = pads[:dims], pads[dims:]
    if begin == end:
        return tuple(begin), []
    return (0,) * dims, [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair]


def _padded(node: Node, before: list[int], value: float = 0.0) -> Any:
    return node.apply(F.pad, node.input(0), before, value=value) if before else node.input(0)


def _dims(node: Node, weight: Tensor | None = None) -> int:
    dims = weight.ndim - 2 if weight is not None else len(node.attribute("kernel_shape", []))
    if dims not in (1, 2, 3):
        raise Unsupported(f"{dims} spatial dimensions, expected 1 to 3")
    return dims


def _filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    owner: Any = module
    owner.weight = nn.Parameter(weight)
    owner.bias = None if bias is None else nn.Parameter(bias)
    return module


def _weight(node: Node) -> Tensor:
    weight = node.constant(1, "weight")
    if weight is None:
        raise Unsupported("it has no weight")
    return weight


def conv(node: Node) -> Any:
    weight = _weight(node)
    dims = _dims(node, weight)
    padding, before = _pads(node, dims, weight.shape[2:])
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    groups = node.attribute("group", 1)
    with torch.device("meta"):
        module = kind(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
                      tuple(node.attribute("strides", [1] * dims)), padding,
                      tuple(node.attribute("dilations", [1] * dims)), groups, bias=False)  # fmt: skip
    return node.layer(_filled(module, weight, node.constant(2, "bias")), _padded(node, before))


def conv_transpose(node: Node) -> Any:
    weight = _weight(node)
    dims = _dims(node, weight)
    padding, before = _pads(node, dims, weight.shape[2:])
    if before or node.attribute("output_shape") or node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported("its padding is not the same on both sides: export it with the pads as numbers")
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    groups = node.attribute("group", 1)
    with torch.device("meta"):
        module = kind(weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]),
                      tuple(node.attribute("strides", [1] * dims)), padding,
                      tuple(node.attribute("output_padding", [0] * dims)), groups, False,
                      tuple(node.attribute("dilations", [1] * dims)))  # fmt: skip
    return node.layer(_filled(module, weight, node.constant(2, "bias")))


def _linear(node: Node, weight: Tensor, bias: Tensor | None) -> Any:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    return node.layer(_filled(module, weight.contiguous(), bias))


def gemm(node: Node) -> Any:
    weight, bias = _weight(node), node.constant(2, "bias")
    if node.attribute("transA", 0):
        raise Unsupported("transA: it would mix the batch; export it without")
    weight = weight if node.attribute("transB", 0) else weight.t()
    weight = weight * node.attribute("alpha", 1.0)
    if bias is not None and bias.numel() not in (1, bias.shape[-1] if bias.ndim else 1):
        raise Unsupported("a bias of another value for each image")
    if bias is not None:
        bias = (bias * node.attribute("beta", 1.0)).flatten().expand(weight.shape[0]).clone()
    return _linear(node, weight, bias)


def matmul(node: Node) -> Any:
    weight = node.input(1)
    if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(node.input(0), Tensor):
        return _linear(node, weight.t(), None)
    return node.apply(torch.matmul, node.input(0), weight)


def batch_norm(node: Node) -> Any:
    if node.attribute("training_mode", 0):
        raise Unsupported("batch-norm in training mode: call .eval() and export it again")
    scale, bias, mean, var = (node.constant(i, name) for i, name in ((1, "scale"), (2, "B"), (3, "mean"), (4, "var")))
    return node.apply(F.batch_norm, node.input(0), mean, var, scale, bias, False, 0.0, node.attribute("epsilon", 1e-5))


def layer_norm(node: Node) -> Any:
    scale = node.constant(1, "scale")
    axis = node.attribute("axis", -1)
    if scale is None or axis not in (-scale.ndim, (node.rank() or 0) - scale.ndim):
        raise Unsupported(f"axis {axis} with a scale of another rank")
    bias = node.constant(2, "B")
    return node.apply(F.layer_norm, node.input(0), list(scale.shape), scale, bias, node.attribute("epsilon", 1e-5))


def instance_norm(node: Node) -> Any:
    scale, bias = node.constant(1, "scale"), node.constant(2, "B")
    return node.apply(F.instance_norm, node.input(0), None, None, scale, bias, True, 0.0,
                      node.attribute("epsilon", 1e-5))  # fmt: skip


def group_norm(node: Node) -> Any:
    scale, bias = node.constant(1, "scale"), node.constant(2, "bias")
    groups = node.attribute("num_groups", 1)
    if scale is not None and bias is not None and node.opset < 21:  # one value a group
        raise Unsupported("GroupNormalization before opset 21 scales a group: export it with opset 21")
    return node.apply(F.group_norm, node.input(0), groups, scale, bias, node.attribute("epsilon", 1e-5))


def max_pool(node: Node) -> Any:
    if len(node.proto.output) > 1 and node.proto.output[1]:
        raise Unsupported("max-pooling that returns indices: use one that returns values only")
    dims = _dims(node)
    padding, before = _pads(node, dims, node.attribute("kernel_shape", []))
    kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
    module = kind(tuple(node.attribute("kernel_shape")), tuple(node.attribute("strides", [1] * dims)), padding,
                  tuple(node.attribute("dilations", [1] * dims)),
                  ceil_mode=bool(node.attribute("ceil_mode", 0)))  # fmt: skip
    if before:
        raise Unsupported("its padding is not the same on both sides: pad before it")
    return node.layer(module)


def avg_pool(node: Node) -> Any:
    dims = _dims(node)
    padding, before = _pads(node, dims, node.attribute("kernel_shape", []))
    counted = bool(node.attribute("count_include_pad", 0))
    if before and not counted:
        raise Unsupported("its padding is not the same on both sides and is not counted: pad before it")
    if node.attribute("dilations", [1] * dims) != [1] * dims:
        raise Unsupported("average pooling with dilation")
    kind: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1]
    module = kind(tuple(node.attribute("kernel_shape")), tuple(node.attribute("strides", [1] * dims)), padding,
                  ceil_mode=bool(node.attribute("ceil_mode", 0)), count_include_pad=counted)  # fmt: skip
    return node.layer(module, _padded(node, before))


def global_pool(reduce: Callable[..., Any]) -> Row:
    def row(node: Node) -> Any:
        rank = node.rank()
        if rank is None:
            raise Unsupported("the rank of its input is unknown: run onnx.shape_inference on the file")
        return node.apply(reduce, node.input(0), list(range(2, rank)), True)

    return row


def _local_response(node: Node) -> Any:
    return node.layer(nn.LocalResponseNorm(node.attribute("size"), node.attribute("alpha", 1e-4),
                                           node.attribute("beta", 0.75), node.attribute("bias", 1.0)))  # fmt: skip


def depth_to_space(node: Node) -> Any:
    size = node.attribute("blocksize")
    if node.attribute("mode", "DCR") == "CRD":
        return node.layer(nn.PixelShuffle(size))
    return node.apply(_blocks_first, node.input(0), size)


def _blocks_first(x: Tensor, size: int) -> Tensor:
    """Depth to space with the block's rows and columns before the channels, as TensorFlow has them."""
    b, c, h, w = x.shape
    x = x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // size**2, h * size, w * size)


def resize(node: Node) -> Any:
    """Resize and Upsample of the dimensions behind the channels, wherever the channels stand."""
    old = node.proto.op_type == "Upsample" or node.opset < 11
    x, sizes = node.input(0), node.reader.shape(node.proto.input[0])
    if sizes is None:
        raise Unsupported("the rank of its input is unknown: run onnx.shape_inference on the file")
    node.input(1)  # a region of interest, which only a mode that is refused looks at
    by_size = not old and node.input(3) is not None
    given = node.numbers(3 if by_size else 1 if old else 2, "scales" if old else "")
    if not given:
        raise Unsupported("neither sizes nor scales")
    axes = [axis % len(sizes) for axis in node.attribute("axes") or range(len(sizes))]
    whole: list[Any] = list(sizes) if by_size else [1.0] * len(sizes)
    for axis, value in zip(axes, given, strict=True):
        whole[axis] = value
    changed = [at for at, value in enumerate(whole) if (value != sizes[at] if by_size else value != 1)]
    changed = [at for at in changed if at or not isinstance(whole[at], fx.Node)]  # the batch follows the batch
    if not changed:
        return x
    last = len(sizes) - 1
    if min(changed) > 1:
        return node.apply(_resized, x, whole[2:], *_sampling(node, whole[2:], by_size, old))
    if min(changed) == 1 and last not in changed:
        return node.apply(_resized_last, x, whole[1:-1], *_sampling(node, whole[1:-1], by_size, old))
    raise Unsupported(f"it resizes the dimensions {changed} of {len(sizes)}; expected those behind the channels")


def _sampling(node: Node, target: list[Any], by_size: bool, old: bool) -> tuple[bool, str, bool | None, bool]:
    """How torch samples so: (target is a size, mode, align_corners, antialias).

    Raises:
        Unsupported: torch has no such sampling.
    """
    mode = node.attribute("mode", "nearest")
    where = "asymmetric" if old else node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else node.attribute("nearest_mode", "round_prefer_floor")
    antialias, inside = bool(node.attribute("antialias", 0)), bool(node.attribute("exclude_outside", 0))
    whole = not by_size and all(float(value).is_integer() for value in target)  # then no place lies between two pixels
    if mode == "nearest" and (where, rounding) == ("asymmetric", "floor"):
        return by_size, "nearest", None, False
    halves = where in ("half_pixel", "pytorch_half_pixel")
    exact = rounding == "round_prefer_ceil" or (rounding == "round_prefer_floor" and whole)
    if mode == "nearest" and halves and exact:
        return by_size, "nearest-exact", None, False
    corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(where)
    smooth = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}.get(mode, {})
    odd = (where == "pytorch_half_pixel" and 1 in target and by_size) or (antialias and mode != "linear")
    odd |= bool(corners) and (antialias or not (by_size or whole))  # ONNX aligns with the size before it is cut off
    odd |= inside != antialias and (antialias or mode == "cubic")
    odd |= abs(node.attribute("cubic_coeff_a", -0.75) + 0.75) > 1e-6 and mode == "cubic"
    if len(target) in smooth and corners is not None and not old and not odd:
        return by_size, smooth[len(target)], corners, antialias
    how = f"{mode!r} with {where!r}, {rounding!r}{', antialias' if antialias else ''}"
    raise Unsupported(f"{how}: torch does not sample so; expected nearest (asymmetric, floor) or linear (half_pixel)")


def _resized(x: Tensor, target: list[Any], by_size: bool, mode: str, corners: bool | None, antialias: bool) -> Tensor:
    size, scale = (target, None) if by_size else (None, target)
    return F.interpolate(x, size=size, scale_factor=scale, mode=mode, align_corners=corners, antialias=antialias)


def _resized_last(x: Tensor, *how: Any) -> Tensor:
    """The same where the channels are last."""
    return _resized(x.movedim(-1, 1), *how).movedim(1, -1)


LAYERS: dict[str, Row] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul,
    "BatchNormalization": batch_norm, "LayerNormalization": layer_norm, "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm, "LRN": _local_response,
    "Resize": resize, "Upsample": resize, "DepthToSpace": depth_to_space,
    "MaxPool": max_pool, "AveragePool": avg_pool,
    "GlobalAveragePool": global_pool(torch.mean), "GlobalMaxPool": global_pool(torch.amax),
}  # fmt: skip


def gather(node: Node) -> Any:
    x, axis = node.input(0), node.attribute("axis", 0)
    index = node.known(1)
    if index is None:
        raise Unsupported("it has no index")
    source = node.input(1)
    scalar = source.scalar if isinstance(source, Numbers) else source.ndim == 0
    if isinstance(x, Numbers):
        return Numbers([x.items[i] for i in index], scalar)
    if scalar:
        return node.apply(torch.select, x, axis, index[0])
    if isinstance(source, Tensor) and source.ndim > 1:
        raise Unsupported("an index of more than one dimension")
    if min(index) < 0:
        raise Unsupported("an index that counts from the end")
    return node.apply(torch.index_select, x, axis, torch.tensor(index))


def concat(node: Node) -> Any:
    axis = node.attribute("axis")
    if any(isinstance(value, Numbers) for value in node.inputs):
        return Numbers([item for i in range(len(node.inputs)) for item in node.numbers(i) or []])
    return node.apply(_cat, list(node.inputs), axis)


def _cat(values: list[Tensor], dim: int) -> Tensor:
    return torch.cat(values, dim)


def slices(node: Node) -> Any:
    """Slice along some axes; the ends may be sizes that are known only when the network runs."""
    x = node.input(0)
    starts, ends = node.numbers(1, "starts") or [], node.numbers(2, "ends") or []
    axes = node.known(3, "axes") or list(range(len(starts)))
    steps = node.known(4) or [1] * len(starts)
    rank = node.rank()
    if isinstance(x, Tensor):
        whole = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            whole[axis] = slice(start, None if abs(end) >= _END else end, step)
        return torch.from_numpy(x.numpy()[tuple(whole)].copy())
    if any(step < 1 for step in steps):
        raise Unsupported("a step below 1")
    if rank is None:
        raise Unsupported("the rank of its input is unknown")
    ends = [None if isinstance(end, int) and end >= _END else end for end in ends]
    if isinstance(x, Numbers):
        return Numbers(x.items[starts[0] : ends[0] : steps[0]])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = node.apply(_cut, x, axis % rank, start, end, step)
    return x


def _cut(x: Tensor, axis: int, start: int, end: int | None, step: int) -> Tensor:
    return x[(*(slice(None),) * axis, slice(start, end, step))]


def split(node: Node) -> Any:
    sizes, axis = node.known(1, "split"), node.attribute("axis", 0)
    outputs = len(node.proto.output)
    node.attribute("num_outputs")  # as many as there are
    if isinstance(node.input(0), Numbers):
        raise Unsupported("it splits sizes")
    whole = node.apply(torch.split, node.input(0), sizes, axis) if sizes else (
        node.apply(torch.chunk, node.input(0), outputs, axis)
    )  # fmt: skip
    if isinstance(whole, tuple):
        return whole
    return tuple(node.reader.graph.call_function(_item, (whole, i)) for i in range(outputs))


def _item(values: Any, position: int) -> Any:
    return values[position]


PARTS: dict[str, Row] = {"Gather": gather, "Concat": concat, "Slice": slices, "Split": split}
