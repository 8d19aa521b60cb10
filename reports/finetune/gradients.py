"""The two gradients of theta on real layers: how they correlate, how often they agree in sign."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from speedysnn.finetune.objectives import Target, kl
from speedysnn.finetune.run import threshold_gradient
from speedysnn.network import SpikingNetwork


def gradients(snn: SpikingNetwork, x: Tensor, rule: str, reading: str = "spiking") -> dict[str, Tensor]:
    """D KL(source || spiking) / d log theta of every layer and image batch, by neuron name."""
    with torch.no_grad(), snn.reading("analog"):
        target = snn(x)
    names, parameters = zip(*((name, n.log_threshold) for name, n in snn.neurons.items()), strict=True)
    with threshold_gradient(snn, rule), snn.reading(reading):  # type: ignore[arg-type]
        loss = kl(snn(x), Target(target), 1.0)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def compare(snn: SpikingNetwork, images: Tensor, out: Path, batch: int = 32) -> None:
    """One row a layer, surrogate and look-ahead: over batches and channels, the surrogate's gradient beside the step's.

    `twin` compares with the quantized reading's gradient, what the first stage follows.
    """
    rows = []
    for name, width in (("rectangle", 1.0), ("sigmoid", 1.0), ("sigmoid", 0.25), ("triangle", 1.0)):
        for neuron in snn.neurons.values():
            neuron.surrogate, neuron.width = name, width
        for delay in (0, 1):
            snn.set_delay(delay)
            seen: dict[str, dict[str, list[Tensor]]] = {"surrogate": {}, "step": {}, "twin": {}}
            for x in images.split(batch):
                for kind, found in seen.items():
                    reading = "quantized" if kind == "twin" else "spiking"
                    given = gradients(snn, x, "surrogate" if kind == "twin" else kind, reading)
                    for layer, gradient in given.items():
                        found.setdefault(layer, []).append(gradient.flatten())
            for layer in snn.neurons:
                one, *others = (torch.cat(seen[kind][layer]).numpy() for kind in ("surrogate", "step", "twin"))
                rows.append({"surrogate": f"{name} {width:g}", "delay": delay, "layer": layer,
                             **{f"{key}_{kind}": value for kind, other in zip(("step", "twin"), others, strict=True)
                                for key, value in _alike(one, other).items()}})  # fmt: skip
            pd.DataFrame(rows).to_csv(out, index=False)


def _alike(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return {"correlation": float(np.corrcoef(a, b)[0, 1]), "same_sign": float((np.sign(a) == np.sign(b)).mean())}
