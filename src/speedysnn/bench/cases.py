"""What is timed beside inference: a neuron layer, a training step, calibration and analysis.

Inference over all steps beside T passes of the source network and beside peers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import analysis
from speedysnn.bench import Call, Case, add_peaks, paired, rows_of
from speedysnn.bench.simulators import available, installed
from speedysnn.convert.calibrate import collect
from speedysnn.finetune.config import Config
from speedysnn.finetune.objectives import Target
from speedysnn.finetune.step import Step
from speedysnn.kernels import Rule, multistep
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading


def inference(
    snn: SpikingNetwork, x: Tensor, rounds: int, *, half: bool = True, peers: bool = True, compiled: bool = False
) -> Case:
    """All T steps, against T passes of the source network at its own best batch size."""
    steps, label = snn.timesteps, f"{snn.timesteps} x ANN"
    with torch.no_grad():
        size = best_pass(lambda size: ann(snn, x, size, 1), x)
    calls: dict[str, Call] = {
        f"{label}, {size} at a time": partial(ann, snn, x, size, steps),
        "speedysnn": lambda: snn(x),
    }
    if compiled:
        calls.update(_compiled(snn, x, max(1, size // steps)))
    half = half and _has_half(x.device)
    if half:
        calls["speedysnn, bfloat16"] = partial(_half, lambda: snn(x), x.device)
        calls[f"{label}, bfloat16"] = partial(_half, lambda: ann(snn, x, size, steps), x.device)
    with torch.no_grad():
        found, notes = available(snn, x[: min(32, len(x))]) if peers else ({}, [])
        calls.update({name: partial(peer, x) for name, peer in found.items()})
        rows = rows_of(calls, rounds, x.device)
        add_peaks(rows, calls, x.device)
        if half:
            notes.append(half_cost(snn, x))
        else:
            notes.append("bfloat16: left out, this machine has no arithmetic for it")
    for row in rows:
        row["us_per_image_step"] = row["median_s"] / len(x) / steps * 1e6
    return Case(f"inference, T={steps}, batch {len(x)}", next(iter(calls)), rows, notes)


def _compiled(snn: SpikingNetwork, x: Tensor, size: int) -> dict[str, Call]:
    """The network under torch.compile: on the CPU in passes of a size, on a GPU at once and as a replayed graph too."""
    name = "speedysnn, torch.compile"
    if x.device.type != "cuda":
        return {name: partial(_in_pieces, torch.compile(snn), x, size)}
    replayed = torch.compile(snn, mode="reduce-overhead")
    return {name: partial(torch.compile(snn), x), f"{name} and CUDA graphs": partial(replayed, x)}


def _in_pieces(net: Callable[[Tensor], Tensor], x: Tensor, size: int) -> None:
    for piece in x.split(size):  # type: ignore[no-untyped-call]
        net(piece)


def _has_half(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    told = torch.backends.cpu.get_cpu_capability()  # which may be less than the processor has
    return told.startswith("AVX512") and probe is not None and bool(probe())


def half_cost(snn: SpikingNetwork, x: Tensor) -> str:
    """What bfloat16 changes, in words."""
    with torch.no_grad():
        exact, rough = snn(x), _half(lambda: snn(x), x.device).float()
    agree = float((exact.argmax(1) == rough.argmax(1)).float().mean())
    error = float((rough - exact).norm() / exact.norm().clamp_min(1e-30))
    return f"bfloat16: the same class on {100 * agree:.1f} % of images, logits differ by {error:.1e} of their norm"


def _half(call: Callable[[], Any], device: torch.device) -> Any:
    with torch.autocast(device.type, torch.bfloat16):
        return call()


def ann(snn: SpikingNetwork, x: Tensor, size: int, times: int) -> None:
    """The analog reading, some images at a time, so often."""
    with snn.reading("analog"):
        for _ in range(times):
            for piece in x.split(size):  # type: ignore[no-untyped-call]
                snn(piece)


def best_pass(
    call: Callable[[int], object], x: Tensor, sizes: Sequence[int] = (8, 16, 32, 64, 128, 256)
) -> int:
    """Images a pass at which a call is fastest on this machine."""
    sizes = [size for size in sizes if size <= len(x)] or [len(x)]
    calls = {str(size): partial(call, size) for size in sizes}
    timings = paired(calls, str(sizes[0]), 3, x.device.type)
    return min(sizes, key=lambda size: timings[str(size)].median)


COPY, OURS = "copy into a reused buffer", "speedysnn, output over its input"
PEER = "spikingjelly IFNode multi-step"


def neuron(neurons: int, steps: int, rounds: int, device: torch.device | str = "cpu") -> Case:
    """The multi-step neuron over one layer, against copying its input and against peers' neurons."""
    generator = torch.Generator().manual_seed(0)
    drive = torch.randn(steps, neurons, generator=generator).to(device)
    out, one, none = torch.empty_like(drive), torch.tensor(1.0, device=device), torch.tensor(0.0, device=device)
    rule, work = Rule(steps), drive.clone()
    calls: dict[str, Call] = {
        COPY: lambda: out.copy_(drive),
        OURS: lambda: multistep(work, one, none, rule, inplace=True),
        "speedysnn, new output": lambda: multistep(drive, one, none, rule),
        "reference in plain torch": lambda: multistep(drive, one, none, rule, backend="reference"),
    }
    notes: list[str] = []
    if installed("spikingjelly"):
        from spikingjelly.activation_based import neuron as peer

        cell = peer.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
        calls[PEER] = partial(_fresh, cell, drive)
        with torch.no_grad():
            different = int((_fresh(cell, drive) != multistep(drive, one, none, rule)).sum())
        notes.append(f"spikingjelly: {different} of {drive.numel():,} spikes differ")
    with torch.no_grad():
        rows = rows_of(calls, rounds, drive.device)
    notes += _beside({row["name"]: row["median_s"] for row in rows})
    return Case(f"neuron, {neurons:,} neurons, T={steps}", next(iter(calls)), rows, notes)


def _beside(median: Mapping[str, float]) -> list[str]:
    """What the layer is judged by, in words."""
    pairs = [(OURS, COPY)] + [(PEER, OURS)] * (PEER in median)
    return [f"{name}: {median[name] / median[other]:.1f} times as long as {other}" for name, other in pairs]


def _fresh(cell: Any, drive: Tensor) -> Tensor:
    cell.reset()
    out: Tensor = cell(drive)
    return out


def training(snn: SpikingNetwork, x: Tensor, rounds: int, *, memory: bool = True) -> Case:
    """One step through time, forward and backward, gradients of all parameters; beside T of the source network's."""
    with torch.no_grad(), snn.reading("analog"):
        target = snn(x)
    step = Step(snn, Config(objective="mse"), "spiking", [p for p in snn.parameters() if p.requires_grad])
    size = best_pass(lambda size: _source_steps(snn, x, target, size, 1), x)
    calls: dict[str, Call] = {
        "speedysnn": lambda: step.run((x,), Target(target), {}),
        f"{snn.timesteps} x ANN, {size} at a time": partial(_source_steps, snn, x, target, size, snn.timesteps),
    }
    found, notes = available(snn, x[: min(32, len(x))], learning=True)
    for name, peer in found.items():
        calls[name] = partial(_backward, peer, x, target)
    rows = rows_of(calls, rounds, x.device)
    if memory:
        add_peaks(rows, calls, x.device)
    return Case(f"training step, T={snn.timesteps}, batch {len(x)}", "speedysnn", rows, notes)


def _source_steps(snn: SpikingNetwork, x: Tensor, target: Tensor, size: int, times: int) -> None:
    """The analog reading's own step, some images at a time, so often."""
    for parameter in snn.parameters():
        parameter.grad = None
    with snn.reading("analog"):
        for _ in range(times):
            for piece, wanted in zip(x.split(size), target.split(size), strict=True):  # type: ignore[no-untyped-call]
                F.mse_loss(snn(piece), wanted).backward()  # type: ignore[no-untyped-call]


def _backward(peer: nn.Module, x: Tensor, target: Tensor) -> None:
    for parameter in peer.parameters():
        parameter.grad = None
    F.mse_loss(peer(x), target).backward()  # type: ignore[no-untyped-call]


def measuring(snn: SpikingNetwork, x: Tensor, rounds: int) -> Case:
    """Calibration and noise analysis, against plain execution of the readings that they need."""
    copied = SpikingNetwork(
        snn.graph, {node.name: snn.tensors(node.name) for node in snn.graph.nodes if snn.tensors(node.name)},
        snn.neurons, snn.timesteps, snn.input_shapes,
    )  # fmt: skip
    calls: dict[str, Call] = {
        "three readings": partial(_readings, snn, x),
        "analog reading": partial(_readings, snn, x, ("analog",)),
        "analog reading, 64 at a time": partial(ann, snn, x, 64, 1),
        "calibration": lambda: collect(copied, iter([x]), "channel"),
        "evaluate": lambda: analysis.evaluate(snn, x),
        "measure_noise": lambda: analysis.measure_noise(snn, x),
    }
    with torch.no_grad():
        return Case(f"measuring, T={snn.timesteps}, batch {len(x)}", "three readings", rows_of(calls, rounds, x.device))


def _readings(snn: SpikingNetwork, x: Tensor, readings: Sequence[Reading] = ("analog", "quantized", "spiking")) -> None:
    for reading in readings:
        with snn.reading(reading):
            snn(x)
