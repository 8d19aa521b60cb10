"""Which rule, which stages, which terms: small runs on the digits networks, judged on held-out training images only."""

import copy
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import TensorDataset

from speedysnn import convert, finetune
from speedysnn.assets.digits import load_digits_net
from speedysnn.data import load
from speedysnn.finetune import Stage

BASE = ("quantized:8", "spiking:4")
# name -> (stages, settings of Config, settings of to_spiking)
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "default": (BASE, {}, {}),
    "theta rule: step": (BASE, {"threshold_gradient": "step"}, {}),
    "theta rule: mixed": (BASE, {"threshold_gradient": "mixed"}, {}),
    "theta per layer": (BASE, {}, {"granularity": "layer"}),
    "v_init not trained": (BASE, {"train": ("thresholds", "biases", "weights")}, {}),
    "v_init = 0, trained": (BASE, {}, {"v_init": 0.0}),
    "thresholds alone": (BASE, {"train": ("thresholds",)}, {}),
    "thresholds and v_init alone": (BASE, {"train": ("thresholds", "v_init")}, {}),
    "all but weights": (BASE, {"train": ("thresholds", "v_init", "biases")}, {}),
    "quantized stage alone": (("quantized:24",), {}, {}),
    "spiking stage alone": (("spiking:8",), {}, {}),
    "closed form first": (("blockwise:0", *BASE), {}, {}),
    "blockwise, then spiking": (("blockwise:8", "spiking:4"), {}, {}),
    "blockwise alone": (("blockwise:24",), {}, {}),
    "T 8, 4, then 2": (("quantized:4,T=8", "quantized:4", "spiking:1,T=8", "spiking:1,T=4", "spiking:2"), {}, {}),
    "look-ahead full, 1, then 0": (("quantized:8", "spiking:1,delay=full", "spiking:1,delay=1", "spiking:2"), {}, {}),
    "ternary, then binary": (("quantized:8", "spiking:2,spikes=ternary", "spiking:2"), {}, {}),
    "no layer matching": (BASE, {"layer_match_weight": 0.0}, {}),
    "layer matching x 5": (BASE, {"layer_match_weight": 5.0}, {}),
    "mse to the logits": (BASE, {"objective": "mse"}, {}),
    "labels": (BASE, {"objective": "labels", "layer_match_weight": 0.0}, {}),
    "membrane penalty 0.1": (BASE, {"membrane": 0.1}, {}),
    "no gradient clipping": (BASE, {"clip": None}, {}),
}
STEPS = 2


def _split() -> tuple[TensorDataset, TensorDataset]:
    data = load("digits", "train")
    x, y = torch.stack([data[i][0] for i in range(len(data))]), torch.tensor([int(data[i][1]) for i in range(len(data))])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, tune = order[: len(x) // 5], order[len(x) // 5 :]
    return TensorDataset(x[tune], y[tune]), TensorDataset(x[held], y[held])


def run(out: Path, seeds: tuple[int, ...] = (0, 1, 2), smoke: bool = False) -> None:
    """One row a variant and seed, T = 2, delay 0, binary; rows that are there already are kept."""
    tune, held = _split()
    done = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=["variant", "seed"])
    rows = done.to_dict("records")
    for name, (stages, settings, conversion) in list(VARIANTS.items())[: 2 if smoke else None]:
        for seed in seeds[: 1 if smoke else None]:
            if ((done.variant == name) & (done.seed == seed)).any():
                continue
            rows.append({"variant": name, "seed": seed, **_one(stages, settings, conversion, seed, tune, held)})
            pd.DataFrame(rows).to_csv(out, index=False)
            print(rows[-1], flush=True)


def _one(
    stages: tuple[str, ...], settings: dict[str, Any], conversion: dict[str, Any], seed: int, tune: TensorDataset,
    held: TensorDataset,
) -> dict[str, float]:  # fmt: skip
    snn = convert.to_spiking(load_digits_net("avg"), tune.tensors[0], timesteps=STEPS, correct="none", **conversion)
    teacher = copy.deepcopy(snn)
    config = finetune.Config(
        **{"stages": tuple(map(Stage.parse, stages)), "layer_match_weight": 1.0, "augment": "shift", "seed": seed, **settings}
    )
    begin = time.monotonic()
    result = finetune.fit(snn, tune, held, teacher=teacher, config=config)
    seconds = time.monotonic() - begin
    kl = finetune.fit(  # the same measure for every objective: an epoch at a rate of nothing, its first row
        copy.deepcopy(snn), tune, held, teacher=teacher,
        config=finetune.Config(stages=(Stage("spiking", 1, rate=1e-12),), batch_size=len(tune), layer_match_weight=0.0),
    ).history.iloc[0]  # fmt: skip
    first = result.history.iloc[0]
    return {
        "held_out_kl": kl.held_out_loss, "held_out_agreement": kl.held_out_agreement,
        "held_out_accuracy": kl.held_out_accuracy, "spikes_per_neuron": kl.spikes_per_neuron, "seconds": seconds,
        "first_stage_start_loss": first.held_out_loss,
    }  # fmt: skip
