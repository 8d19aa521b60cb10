"""Reconstruction: block by block from a few hundred unlabelled images, then the whole network towards its outputs.

First the weights of every layer are fitted in closed form (see `regression`). Then a block learns to give what the
source's block gives, from inputs that are ours with some values replaced by the source's own, and each channel of its
output weighs by the squared gradient of the source's answer there. It takes the memory of one block and of the values
that cross its borders. A block, all of them, and in the end the whole keep their changes only where images that took no
part in the training say that they are better. Before a block trains its layers are fitted once more, to what the blocks
before it give after their training.
"""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from speedysnn.display import track
from speedysnn.errors import TrainingError
from speedysnn.finetune import checkpoint
from speedysnn.finetune.augment import as_dataset, gather, hold_out
from speedysnn.finetune.blocks import ReconstructConfig
from speedysnn.finetune.blocks.training import BlockTrainer, put_back, settings_of, worse
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.step import Need, print_need
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.settings import repeatable

COLUMNS = ("block", "layers", "error_before", "error_after", "kept", "seconds")


@dataclass(frozen=True)
class Reconstructed:
    """What a reconstruction did.

    Attributes:
        blocks: one row a block: its name and number of neuron layers, its relative squared error on the held-out images
            before and after, whether the change was kept, and seconds.
        output: held-out figures "before", "closed_form" and "blocks" (after these), and "after": "loss" (divergence
            from the source's answer, or relative squared error where there are no classes) and, for classes,
            "agreement"; in the quantized reading and, as "spiking", in the network's own.
        taken_back: whether nothing was kept, since the network had become worse.
        seconds: wall time.
    """

    blocks: pd.DataFrame
    output: Mapping[str, Any]
    taken_back: bool
    seconds: float

    def __repr__(self) -> str:
        before, after = (self.output[key]["quantized"]["loss"] for key in ("before", "after"))
        return f"Reconstructed(blocks={len(self.blocks)}, loss={before:.4g} -> {after:.4g}, {self.seconds:.0f} s)"


@repeatable
def reconstruct(
    snn: SpikingNetwork,
    images: Any,
    config: ReconstructConfig | None = None,
    *,
    validation: Any = None,
    teacher: SpikingNetwork | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_memory: Callable[[str, Need], None] | None = None,
) -> Reconstructed:
    """Train a network in place towards its source, block by block and then as a whole, from a few hundred images.

    A block's loss is sum_c w_c (r_c - a_c)^2 over its output's channels c: r from the quantized reading, a the
    source's, w_c the mean squared gradient of the source's log-probability of its own answer. Before it the weights are
    fitted in closed form, after the blocks the whole network learns the source's outputs, and a network with less than
    full look-ahead is fitted in closed form once more, for its spiking reading. The same call gives the same bits.

    Args:
        snn: the network; its parameters change, its T, spikes and look-ahead do not.
        images: a dataset, a loader, tensors or batches; labels are not used.
        config: the settings.
        validation: images that judge; without them `config.holdout` of the given ones are kept for that.
        teacher: the network before any tuning, read analog; by default `snn` itself as it is now.
        folder: where the state is kept after every block.
        resume: go on from the state in `folder`.
        progress: show progress, and before it the memory that is needed.
        on_memory: called with "reconstruct" and the memory that is needed, before anything is done.

    Returns:
        What came of each block and of the whole; `snn.provenance["reconstructed"]` holds it too.

    Raises:
        TrainingError: nothing to resume, a folder that cannot be written to, too little memory, or no teacher beside a
            network whose weights were tuned before.
        DataError: no data, NaN, or the wrong shape.

    Reference: li2021brecq, wei2022

    Example:
        >>> import torch
        >>> from speedysnn import convert, finetune
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> images = torch.rand(64, 8)
        >>> snn = convert.to_spiking(ann, images, timesteps=2)
        >>> done = finetune.reconstruct(snn, images, finetune.ReconstructConfig(epochs=4, output_epochs=4))
        >>> before, after = (done.output[key]["quantized"]["loss"] for key in ("before", "after"))
        >>> after <= before
        True
    """
    config, begin = config or ReconstructConfig(), time.monotonic()
    place = None if folder is None else Path(folder)
    if resume and place is None:
        raise TrainingError("resume: expected the folder of the run to go on with")
    if teacher is None and weights_tuned(snn):
        raise TrainingError(
            "the network's weights were tuned before, so its analog reading is not the source network any more; give "
            "the network before tuning (teacher=)"
        )
    origin = checkpoint.Origin.of(snn, config)
    train, held = (as_dataset(images), as_dataset(validation)) if validation is not None else hold_out(
        images, config.holdout, config.seed
    )  # fmt: skip
    parts = [gather(data, range(len(data))).inputs for data in (train, held)]  # type: ignore[arg-type]
    source = copy.deepcopy(teacher or snn).requires_grad_(False)
    work = BlockTrainer(snn, source, parts, config, on_memory or (print_need if progress else None))
    before, original = work.scores(), settings_of(snn)
    closed = before
    if config.trains or work.own_reading == "quantized":
        work.correct_quantized(progress)
        closed = work.scores()
    fitted = settings_of(snn)
    state = checkpoint.read(place, snn, origin) if resume and place is not None else RunState()
    with nullcontext() if place is None else checkpoint.reserved_folders(place, None):
        _blocks(work, state, None if place is None else (lambda: checkpoint.write(place, snn, state, origin)), progress)
    middle = work.scores() if config.epochs else closed
    if middle["quantized"]["loss"] > closed["quantized"]["loss"]:
        put_back(snn, fitted)
    work.train_whole(progress)
    work.correct_spiking(progress)
    after, own = work.scores(), work.own_reading
    taken_back = worse(before[own], after[own])
    if taken_back:
        put_back(snn, original)
        after = before
    snn.reset()
    output = {"before": before, "closed_form": closed, "blocks": middle, "after": after}
    entry = {"config": config.to_json(), "timesteps": snn.timesteps, "output": output, "taken_back": taken_back}
    snn.provenance = {**snn.provenance, "reconstructed": [*snn.provenance.get("reconstructed", []), entry]}
    seconds = time.monotonic() - begin
    return Reconstructed(pd.DataFrame(state.history, columns=list(COLUMNS)), output, taken_back, seconds)


def _blocks(work: BlockTrainer, state: RunState, save: Callable[[], None] | None, progress: bool) -> None:
    """Train every block that the run has not done yet; `state.stage` counts those that it has."""
    total = len(work.blocks) if work.config.epochs else 0  # with none the closed form is all
    for index, block in enumerate(track(work.blocks[:total], "reconstruct", enabled=progress, total=total)):
        if index < state.stage:
            work.skip(block)
            continue
        state.history.append(work.train_block(block, index))
        state.stage = index + 1
        if save is not None:
            save()
