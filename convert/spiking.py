"""to_spiking and inspect: the two calls of this room."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.artifact import require_loadable
from speedysnn.convert.calibrate import Threshold, assign, batches_in, check_rules, collect, needs_gradients
from speedysnn.convert.clips import recognised
from speedysnn.convert.correct import DEFAULT, Sample, check_kind, correct_converted
from speedysnn.convert.handler_api import Handler, Key
from speedysnn.convert.matching import MAX_IMAGES
from speedysnn.convert.ops import added_handlers
from speedysnn.convert.read import (
    Lowered,
    exact_error,
    free_sizes,
    full_precision,
    has_staircases,
    read,
    require_equal,
)
from speedysnn.convert.report import Report
from speedysnn.convert.trace import evaluating, first_line, require_initialised
from speedysnn.data.batches import inputs_of, iter_batches, over_steps, steps_of
from speedysnn.display import Done, counting
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.graph.ir import Graph, fold_batch_norm
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Delay
from speedysnn.settings import execution, repeatable
from speedysnn.torch_utils import float_type

Example = Tensor | Sequence[Tensor]


def inspect(
    ann: nn.Module,
    example: Example,
    *,
    allow_hybrid: bool = False,
    keep_analog: Sequence[str] = (),
    handlers: Mapping[Key, Handler] | None = None,
) -> Report:
    """Say how every operator of a network would be converted, without converting it.

    Args:
        ann: the trained network; it is left as it is.
        example: an input batch (B, ...), or one for each input.
        allow_hybrid: count operators that need an analog unit as converted.
        keep_analog: layer paths, or modules above them, in which no neuron is placed.
        handlers: handlers of your own, `Key` -> `Handler`; they win over `convert.HANDLERS`.

    Returns:
        A `Report` with one row a call; `frame` is its table and `complaint()` lists what cannot be converted.

    Raises:
        ConversionError: the network cannot be traced, or does not run on the example.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
        >>> report = convert.inspect(net, torch.rand(2, 4))
        >>> [(row.path, row.treatment) for row in report.problems]
        [('3', 'hybrid')]
        >>> convert.inspect(net, torch.rand(2, 4), allow_hybrid=True).supported
        True
    """
    require_initialised(ann)
    with evaluating(ann):
        inputs = _inputs(ann, example)
        known = _known(ann, handlers)
        return read(ann, inputs, known, allow_hybrid=allow_hybrid, keep_analog=keep_analog)[2]


@repeatable
def to_spiking(
    ann: nn.Module,
    calibration: object,
    timesteps: int = 4,
    *,
    threshold: Threshold = "mse",
    granularity: str = "channel",
    v_init: float = 0.5,
    spikes: str = "binary",
    delay: Delay = 0,
    correct: str = DEFAULT,
    fold_bn: bool = True,
    allow_hybrid: bool = False,
    keep_analog: Sequence[str] = (),
    surrogate: str = "rectangle",
    handlers: Mapping[Key, Handler] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> SpikingNetwork:
    """Convert a trained network into a spiking one that needs no training to run.

    Every activation becomes an `IFNeuron`; theta is chosen from one pass over the calibration data; the analog reading
    is checked against the source network (relative error below 1e-5).

    Activations of quantization-trained networks (QCFS, PACT, LSQ) are recognised by their attributes and proven on a
    probe, see `as_clip` for others: their trained clip is N theta at every T, and their analog reading is the source's
    own staircase, so that it equals the source. As a rounding error at a tie is a whole step there, such a network is
    checked in float64; in float32 single values may lie a step apart.

    Args:
        ann: the trained network, in any mode; it is left as it is.
        calibration: a loader, a dataset, a tensor (N, ...) or an iterable of batches; labels are ignored.
        timesteps: T.
        threshold: "mse" (least squared error for this T and v_init), "output-mse" (the same, weighed by gradients at
            the output), "gaussian", "laplace" or "half-normal" (as "mse", for a fitted law), "max", "percentile:99.9",
            "clip" (the source's ceiling where there is one, else "mse"), a function of a
            `speedysnn.calibration.Request`, or layer -> value or rule. A learned clip wins over the rule, not over
            the layer's own entry.
        granularity: "channel" or "layer".
        v_init: initial membrane as a fraction of theta, 0..1.
        spikes: "binary", "ternary", "graded:N" or "power2:N" (signed powers of two); see `IFNeuron`.
        delay: steps of look-ahead, or "full".
        correct: "none", "moments", "bias", "potential" or several of them in this order joined by "+", for this T,
            delay and spikes, on 256 images drawn from all of the calibration data, the same in every call; the analog
            reading stays as it is. See `apply_correction`. Moments are left out below 16 images and in layers whose
            theta was given as a value or is a trained clip. `recalibrate` takes the correction back.
        fold_bn: fold batch-norm into the layer before it.
        allow_hybrid: take operators that need an analog unit, acting on the running mean (SiLU, softmax, layer-norm,
            products of branches, ...); False refuses the network and lists them.
        keep_analog: layer paths, or modules above them, in which no neuron is placed; for early layers above all. List
            the weight layers that they feed too: the input of a layer that is not listed is re-encoded by neurons.
        surrogate: spike derivative for training later.
        handlers: handlers of your own, `Key` -> `Handler`; they win over `convert.HANDLERS`.
        provenance: JSON data to keep with the network.
        progress: show a progress bar.

    Returns:
        The spiking network; its `provenance` holds the error of the analog reading and how many images were seen.

    Raises:
        ConversionError: some operators cannot be converted (all are listed), or the check fails.
        DataError: no calibration data, NaN, or the wrong shape.
        InputError: an option out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> snn = convert.to_spiking(net, torch.rand(64, 4), timesteps=4)
        >>> list(snn.neurons)
        ['1']
        >>> snn(torch.rand(3, 4)).shape
        torch.Size([3, 2])
        >>> snn.provenance["analog_error"] < 1e-5
        True
    """
    _check_options(granularity, v_init, correct)
    check_rules(threshold)
    require_initialised(ann)
    events = correct != "none" and steps_of(calibration) == timesteps  # corrected as such; thresholds see their mean
    device = _device(ann)
    batches = iter_batches(
        calibration, events="steps" if events else "mean", inputs=inputs_of(ann), dtype=float_type(ann)
    )
    first = next(batches)
    example = [x[:4].to(device) for x in (over_steps(first) if events else first).inputs]
    known = _known(ann, handlers)
    options: dict[str, Any] = {"v_init": v_init, "spikes": spikes, "delay": delay, "surrogate": surrogate}
    with counting("checking against the source", total=2, enabled=progress) as done:
        snn, error, report = _proven(
            ann, example, partial(read, ann, example, known, allow_hybrid=allow_hybrid, keep_analog=keep_analog),
            timesteps, options, fold_bn, done, twice=not known,
        )  # fmt: skip
        sizes = _free_sizes(ann, snn, example)
    snn.provenance = dict(provenance or {})
    try:
        require_loadable(snn)
    except ArtifactError as err:
        raise ConversionError(f"the converted network could be saved, but not loaded again: {err}") from None
    kept = Sample(0 if correct == "none" else MAX_IMAGES)
    data, gradients = kept.passing(chain([first], batches), events), needs_gradients(threshold)
    images = collect(snn, data, granularity, gradients=gradients, progress=progress, total=batches_in(calibration))
    assign(snn, threshold, granularity)
    snn.provenance = {
        **(provenance or {}),
        "network": report.network,
        "calibration_images": images,
        "analog_error": error,
        "granularity": granularity,
        "treatment": report.treatment,
        "free_sizes": sizes,
        "execution": execution(),
    }
    return snn if correct == "none" else correct_converted(snn, kept, correct, progress=progress)


def _known(ann: nn.Module, handlers: Mapping[Key, Handler] | None) -> dict[Key, Handler]:
    """Handlers beside the package's own: those the user gave or registered, and those of recognised learned clips."""
    given = {**added_handlers(), **(handlers or {})}
    return {**recognised(ann, given), **given}


def _proven(
    ann: nn.Module,
    example: Sequence[Tensor],
    reader: Callable[..., Lowered],
    timesteps: int,
    options: Mapping[str, Any],
    fold_bn: bool,
    done: Done,
    *,
    twice: bool,
) -> tuple[SpikingNetwork, float, Report]:
    """The network, its proven error and its report.

    `twice`: read it again by torch.export, with nothing in place, where the first reading fails; not where the user has
    handlers, which would be passed over there.

    Raises:
        ConversionError: operators that cannot be converted, no activation, or neither reading is the source.
    """
    first: ConversionError | None = None
    for again in (False, True) if twice else (False,):
        whole = False
        try:
            with evaluating(ann):
                graph, tensors, report = reader(again=again)
            whole = graph is not None
            if graph is None:
                raise ConversionError(report.complaint())
            if not graph.neurons:
                raise ConversionError(f"{report.network} holds no activation to replace: there is nothing to convert")
            return *_network(ann, graph, tensors, example, timesteps, options, fold_bn, done), report
        except ConversionError as err:
            if first is None and not whole:
                raise
            first = first or err
    assert first is not None
    raise first


def _network(
    ann: nn.Module,
    graph: Graph,
    tensors: Mapping[str, Mapping[str, Tensor]],
    example: Sequence[Tensor],
    timesteps: int,
    options: Mapping[str, Any],
    fold_bn: bool,
    done: Done,
) -> tuple[SpikingNetwork, float]:
    """The network, its batch-norm folded, and the relative error of its analog reading, which is proven to be small.

    `done` is called with 1 after either network's answer.
    """
    error: float | None = None
    if has_staircases(graph):
        error = exact_error(ann, graph, tensors, _neurons(graph, 1, {}), example, fold_bn, done)
    own = {name: {key: _copied(value) for key, value in tensor.items()} for name, tensor in tensors.items()}
    folded = fold_batch_norm(graph, own) if fold_bn else graph
    shapes = [x.shape[1:] for x in example]
    snn = SpikingNetwork(folded, own, _neurons(folded, timesteps, options), timesteps, shapes, copy=False)
    snn = snn.to(example[0].device)
    if error is None:
        with full_precision(example[0].device), torch.no_grad():
            with evaluating(ann):
                reference = ann(*example)
            done(1)
            try:
                with snn.reading("analog"):
                    ours = snn(*example)
            except RuntimeError as err:
                raise ConversionError(f"the converted graph does not run as its source: {first_line(err)}") from None
            done(1)
            error = _error(ann, graph, tensors, example, fold_bn, ours, reference)
    return snn, error


def _error(
    ann: nn.Module,
    graph: Graph,
    tensors: Mapping[str, Mapping[str, Tensor]],
    example: Sequence[Tensor],
    fold_bn: bool,
    ours: Any,
    reference: Any,
) -> float:
    """The proven error; in float64 where the source's own float32 is too coarse to tell."""
    try:
        return require_equal(ours, reference)
    except ConversionError:
        exact = exact_error(ann, graph, tensors, _neurons(graph, 1, {}), example, fold_bn)
        if exact is None:
            raise
        return exact


def _free_sizes(ann: nn.Module, snn: SpikingNetwork, example: Sequence[Tensor]) -> list[list[int]]:
    """Dimensions of each input that may have another size than the example's; see `free_sizes`."""
    with full_precision(example[0].device), evaluating(ann), snn.reading("analog"):
        return free_sizes(ann, snn, example)


def _copied(value: Tensor) -> Tensor:
    """A copy in the memory layout that the network wants, so that it is not copied again."""
    value = value.detach()
    if value.ndim == 4 and not value.is_contiguous(memory_format=torch.channels_last):
        return value.contiguous(memory_format=torch.channels_last)
    return value.clone()


def _neurons(graph: Graph, timesteps: int, options: Mapping[str, Any]) -> dict[str, IFNeuron]:
    own = ("ceiling", "floor", "channel_dim")
    return {
        node.name: IFNeuron(
            timesteps=timesteps, steps=node.attrs.get("steps"), **{name: node.attrs[name] for name in own}, **options
        )
        for node in graph.neurons
    }


def _inputs(ann: nn.Module, example: Example) -> list[Tensor]:
    device = _device(ann)
    items = [example] if isinstance(example, Tensor) else list(example)
    if not items or not all(isinstance(x, Tensor) and x.ndim > 0 for x in items):
        raise InputError("example: expected a tensor (B, ...), or one for each input")
    return [x.to(device) for x in items]


def _device(ann: nn.Module) -> torch.device:
    """Where the network's parameters are; the CPU where it has none."""
    return next((p.device for p in ann.parameters()), torch.device("cpu"))


def _check_options(granularity: str, v_init: float, correct: str) -> None:
    if granularity not in ("channel", "layer"):
        raise InputError(f'granularity: expected "channel" or "layer", got {granularity!r}')
    if not 0 <= v_init <= 1:
        raise InputError(f"v_init: expected a fraction of theta in 0..1, got {v_init!r}")
    check_kind(correct)
