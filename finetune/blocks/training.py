"""Train the blocks of a network one after the other, with the images held where two blocks meet."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from speedysnn.convert.correct import correct_on
from speedysnn.display import track
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.runner import accept, value_sizes
from speedysnn.finetune import checkpoint
from speedysnn.finetune.augment import augmentation
from speedysnn.finetune.blocks import ReconstructConfig
from speedysnn.finetune.blocks.regression import regress, regress_block
from speedysnn.finetune.optimization import group_of, keep_in_range, rate_factor, scale_of
from speedysnn.finetune.step import Need, free_bytes, require_memory, saved_bytes, state_bytes
from speedysnn.graph import Block, blocks
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading
from speedysnn.torch_utils import compare_outputs

Values = dict[str, Tensor]
Loss = Callable[[Tensor, torch.Generator], Tensor]
_FISHER_IMAGES, _FISHER_BATCH = 64, 16
_EVALUATION_BATCH = 25


class BlockTrainer:
    """The images between two blocks, in the source and in ours, and the training of the next block."""

    def __init__(
        self, snn: SpikingNetwork, source: SpikingNetwork, data: Sequence[Sequence[Tensor]], config: ReconstructConfig,
        on_memory: Callable[[str, Need], None] | None = None,
    ) -> None:  # fmt: skip
        self.snn, self.source, self.config = snn, source, config
        self.run, self.source_run = Execution.of(snn), Execution.of(source)
        device = next(snn.parameters()).device
        self.train, self.held = ([x.to(device) for x in part] for part in data)
        self.originals, self.train = self.train, _augmented(self.train, config)
        self.count = self.train[0].shape[0]
        self.own_reading: Reading = "quantized" if snn.synchronous else "spiking"
        with torch.no_grad():
            self.sizes = value_sizes(snn, [x[:1] for x in self.train])
            self.blocks = blocks(snn.graph, self.sizes, config.neurons)
            require_memory(self._need(), on_memory)
            self.goals = [self._outputs(source, "analog", part) for part in (self.train, self.held)]
        self.clean = [self._entering(part) for part in (self.train, self.held)]  # by data, then by name
        self.noisy = [dict(values) for values in self.clean]
        self.weights = self._sensitivity()

    def _entering(self, inputs: Sequence[Tensor]) -> Values:
        names = [node.name for node in self.snn.graph.inputs]
        return {
            name: self.run.mean(accept(self.snn, x, i)) for i, (name, x) in enumerate(zip(names, inputs, strict=True))
        }

    def _need(self) -> Need:
        """What a reconstruction keeps: values between two blocks of all images, ours and the source's, and a step."""
        images, bytes_each, most = self.count + self.held[0].shape[0], self.train[0].element_size(), 0
        entering = sum(self.sizes[node.name] for node in self.snn.graph.inputs)
        for block in self.blocks:
            leaving = sum(self.sizes[name] for name in block.outputs)
            most, entering = max(most, 2 * entering + 2 * leaving, entering + 3 * leaving), leaving
        at_once = max(_FISHER_BATCH, self.config.batch_size if self.config.output_epochs else 0)
        step = at_once * saved_bytes(self.snn, self.train, "quantized") + state_bytes(self.snn.parameters(), 1)
        return Need(most * bytes_each, step, images, free_bytes(self.train[0].device),
                    "what crosses between two blocks", "reconstruction")  # fmt: skip

    def _sensitivity(self) -> dict[str, Tensor]:
        """By channel of each value that leaves a block, the mean squared gradient of the source's answer."""
        names = {name for block in self.blocks[:-1] for name in block.outputs}
        sums: dict[str, Tensor] = {}
        first = {name: x[:_FISHER_IMAGES] for name, x in self.clean[0].items()}
        for piece in _pieces(first, _FISHER_BATCH) if names else ():
            for name, power in self._squared_gradients(piece, names).items():
                sums[name] = sums[name] + power if name in sums else power
        return {name: power / power.mean().clamp_min(1e-30) + 0.1 for name, power in sums.items()}

    def _squared_gradients(self, inputs: Values, names: set[str]) -> Values:
        """By channel of these values, the squared gradient of the source's answers, summed over some images."""
        values = {name: Value(x) for name, x in inputs.items()}
        found: dict[str, Tensor] = {}
        with torch.enable_grad():
            for block in self.blocks:
                values = self.source_run.part(values, "analog", block.start, block.stop)
                for name in set(block.outputs) & names - found.keys():
                    leaf = values[name].tensor
                    if not leaf.requires_grad:
                        leaf = leaf.detach().requires_grad_(True)
                    found[name] = leaf
                    values[name] = Value(leaf)
            answer = [values[name].tensor for name in self.snn.graph.output_names]
            loss = _answer_score(answer)
            gradients = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
        out = {}
        for (name, x), gradient in zip(found.items(), gradients, strict=True):
            power = torch.ones_like(x) if gradient is None else gradient.square()
            others = [dim for dim in range(x.ndim) if dim != 1]
            out[name] = power.sum(others, keepdim=True) if x.ndim > 1 else power.sum()
        return out

    def correct_quantized(self, progress: bool) -> None:
        """Correct the network in closed form for its quantized reading.

        The conversion's own correction, made for the spikes, gives way to it; one that was tuned upon is built upon.
        """
        made, tuned = self.snn.provenance.get("correction"), bool(self.snn.provenance.get("finetuned"))
        anew = made is None or made.get("taken_back", False) or (self.config.correct != "none" and not tuned)
        if anew:
            self.snn.uncorrect()
        self._closed_form("quantized", self.config.correct if anew else "none", progress)
        self.snn.provenance.pop("correction", None)  # what is trained on top of it cannot be taken back without it

    def correct_spiking(self, progress: bool) -> None:
        """Correct it for the spiking reading, where that is its own and differs from the quantized one."""
        if self.own_reading == "spiking":
            self._closed_form("spiking", "none" if self.config.correct == "none" else "moments", progress)

    def _closed_form(self, reading: Reading, kind: str, progress: bool) -> None:
        """Fit the weights or, where the held-out images lose by it, correct without them."""
        if self.regresses:
            state, before = settings_of(self.snn), self.score(reading)["loss"]
            self.snn.provenance.pop("correction", None)
            most = self.config.images
            regress(self.snn, self.source, self.originals, reading=reading, images=most, progress=progress)
            if self.score(reading)["loss"] < before:
                return
            put_back(self.snn, state)
        if kind != "none":
            correct_on(self.snn, self.originals, kind, reading=reading, progress=progress)

    @property
    def regresses(self) -> bool:
        """Whether weights and biases are fitted in closed form."""
        return self.config.regress and {"weights", "biases"} <= set(self.config.train)

    def train_block(self, block: Block, index: int) -> dict[str, Any]:
        """Train one block, keep the change if held-out images say so, and take all images through it."""
        begin = time.monotonic()
        goals = [self._through(self.source_run, "analog", block, values) for values in self.clean]
        last = block is self.blocks[-1]
        if self.regresses:
            both = self.clean[0], self.noisy[0]
            regress_block(self.snn, self.source, block, self.sizes, both, self.config.copies)
        before = self._error(block, goals[1], last)
        parameters = self._parameters(block)
        state = [parameter.detach().clone() for parameter, _ in parameters]

        def loss(chosen: Tensor, generator: torch.Generator) -> Tensor:
            ours = self._part(self.run, "quantized", block, self._mixed(chosen, generator))
            return self._loss(ours, {name: x[chosen] for name, x in goals[0].items()}, last)

        if parameters and self.config.epochs:
            self._train(parameters, self.config.epochs, index, loss)
        after = self._error(block, goals[1], last)
        kept = after < before
        if not kept:
            for (parameter, _), value in zip(parameters, state, strict=True):
                parameter.data.copy_(value)
        self.clean = goals
        self.noisy = [self._through(self.run, "quantized", block, values) for values in self.noisy]
        row = {"block": block.name, "layers": len(block.neurons), "error_before": before}
        return {**row, "error_after": after if kept else before, "kept": kept, "seconds": time.monotonic() - begin}

    def skip(self, block: Block) -> None:
        """Take all images through a block that an earlier run has done."""
        self.clean = [self._through(self.source_run, "analog", block, values) for values in self.clean]
        self.noisy = [self._through(self.run, "quantized", block, values) for values in self.noisy]

    def train_whole(self, progress: bool) -> None:
        """Train the whole network towards the source's outputs, and end in the best epoch by held-out images."""
        epochs, every = self.config.output_epochs, [pair for block in self.blocks for pair in self._parameters(block)]
        parameters = list({id(parameter): (parameter, rate) for parameter, rate in every}.values())
        if not epochs or not parameters:
            return
        best, state = self.score("quantized")["loss"], [p.detach().clone() for p, _ in parameters]

        def judge() -> None:
            nonlocal best, state
            now = self.score("quantized")["loss"]
            if now < best:
                best, state = now, [p.detach().clone() for p, _ in parameters]

        self._train(parameters, epochs, len(self.blocks), self._whole, judge, progress)
        for (parameter, _), value in zip(parameters, state, strict=True):
            parameter.data.copy_(value)

    def _whole(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of the whole network; nothing of it is drawn at random."""
        goal = [x[chosen] for x in self.goals[0]]
        return _distance(self._outputs(self.snn, "quantized", [x[chosen] for x in self.train]), goal)

    def _train(
        self, parameters: Sequence[tuple[nn.Parameter, float]], epochs: int, stage: int, loss_of: Loss,
        judge: Callable[[], None] | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        """Adam with a rate for each parameter, over all images so many times."""
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in parameters]
        optimizer = torch.optim.Adam(groups)
        steps = epochs * -(-self.count // self.config.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps, 0.05))
        chosen = [parameter for parameter, _ in parameters]
        flags = [parameter.requires_grad for parameter in chosen]
        for epoch in track(range(epochs), "reconstruct the whole", enabled=progress):
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + stage * 1009 + epoch)
            for parameter in chosen:
                parameter.requires_grad_(True)
            for indices in torch.split(torch.randperm(self.count, generator=generator), self.config.batch_size):
                with torch.enable_grad():
                    loss = loss_of(indices, generator)
                    gradients = torch.autograd.grad(loss, chosen, allow_unused=True)
                for parameter, gradient in zip(chosen, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                schedule.step()
                keep_in_range(self.snn)
            for parameter, flag in zip(chosen, flags, strict=True):
                parameter.grad = None
                parameter.requires_grad_(flag)
            if judge is not None:
                judge()

    def _mixed(self, chosen: Tensor, generator: torch.Generator) -> Values:
        """A batch of a block's inputs, ours with some values replaced by the source's."""
        out = {}
        for name, ours in self.noisy[0].items():
            x, clean = ours[chosen], self.clean[0][name][chosen]
            drawn = torch.rand(x.shape, generator=generator).to(x.device) < self.config.source_share
            out[name] = torch.where(drawn, clean, x)
        return out

    def _parameters(self, block: Block) -> list[tuple[nn.Parameter, float]]:
        """The parameters of a block that train, each with its rate in its own scale."""
        out = []
        for node in block.nodes:
            module = self.snn.neurons[node.name] if node.op == "neuron" else self.snn.layer(node.name)
            for name, parameter in () if module is None else module.named_parameters():
                group = group_of(name)
                if group in self.config.train:
                    out.append((parameter, self.config.rate(group) * scale_of(group, parameter)))
        return out

    def _part(self, run: Execution, reading: Reading, block: Block, values: Values) -> Values:
        """What leaves a block."""
        found = run.part({name: Value(x) for name, x in values.items()}, reading, block.start, block.stop)
        return {name: found[name].tensor for name in block.outputs}

    def _through(self, run: Execution, reading: Reading, block: Block, values: Values) -> Values:
        """What leaves a block for many images."""
        parts: list[Values] = []
        with torch.no_grad():
            for piece in _pieces(values):
                parts.append(self._part(run, reading, block, piece))
        return {name: torch.cat([part[name] for part in parts]) for name in block.outputs}

    def _loss(self, ours: Values, goals: Values, last: bool) -> Tensor:
        """The weighted squared error of what leaves a block; of the last one the distance of the outputs."""
        if last:
            return _distance(*([found[name] for name in self.snn.graph.output_names] for found in (ours, goals)))
        parts = [((x - goals[name]).square() * self.weights[name]).mean() / goals[name].square().mean().clamp_min(1e-30)
                 for name, x in ours.items() if name in self.weights]  # fmt: skip
        return torch.stack(parts).mean()

    def _error(self, block: Block, goals: Values, last: bool) -> float:
        """The same over the held-out images."""
        with torch.no_grad():
            ours = self._through(self.run, "quantized", block, self.noisy[1])
            return float(self._loss(ours, goals, last))

    def _outputs(self, snn: SpikingNetwork, reading: Reading, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The network's outputs, one tensor each."""
        recording = torch.is_grad_enabled()
        pieces = (
            [tuple(inputs)]
            if recording
            else list(zip(*(torch.split(x, _EVALUATION_BATCH) for x in inputs), strict=True))
        )
        found = [tree_leaves(snn.read(reading, *piece)) for piece in pieces]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def scores(self) -> dict[str, dict[str, float]]:
        """Held-out figures of the quantized reading and of the network's own."""
        return {reading: self.score(reading) for reading in dict.fromkeys(("quantized", self.own_reading))}

    def score(self, reading: Reading) -> dict[str, float]:
        """Held-out figures of one reading."""
        with torch.no_grad():
            return compared(self._outputs(self.snn, reading, self.held), self.goals[1])


def settings_of(snn: SpikingNetwork) -> dict[str, Any]:
    """Everything of a network that a reconstruction may change."""
    neurons = {name: (copy.deepcopy(neuron.log_amplitude), neuron.offset) for name, neuron in snn.neurons.items()}
    return {"tensors": checkpoint.snapshot(snn), "neurons": neurons, "correction": snn.provenance.get("correction")}


def put_back(snn: SpikingNetwork, settings: Mapping[str, Any]) -> None:
    """Give a network the settings that it had."""
    for name, neuron in snn.neurons.items():
        neuron.log_amplitude, neuron.offset = settings["neurons"][name]
    snn.load_state_dict(settings["tensors"])
    snn.provenance.pop("correction", None)  # one of the network that is given up
    if settings["correction"] is not None:
        snn.provenance["correction"] = settings["correction"]


def compared(ours: Sequence[Tensor], goals: Sequence[Tensor]) -> dict[str, float]:
    """How far outputs are from the source's, and for classes how many answers agree.

    Args:
        ours: the network's outputs, (N, ...) each.
        goals: the source's.

    Returns:
        "loss", and for classes "agreement" and "images", over how many.
    """
    found = compare_outputs([ours], [goals])
    loss, agreement = found["error"] if found["kl"] is None else found["kl"], found["agreement"]
    assert loss is not None
    return {"loss": loss} if agreement is None else {"loss": loss, "agreement": agreement, "images": len(ours[0])}


def worse(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Say whether the loss rose or, where more images than chance moves changed sides, whether agreement fell.

    An image more or less says little: the divergence from the source's answers judges where agreement moved by no more
    than its standard error sqrt(p (1 - p) / n), or by one image.

    Args:
        before: what `compared` gave for a network.
        after: the same for the network that would take its place.

    Returns:
        True where the loss is no number, too.

    Example:
        >>> from speedysnn.finetune.blocks.training import worse
        >>> worse({"loss": 0.2, "agreement": 0.5, "images": 100}, {"loss": 0.3, "agreement": 0.56, "images": 100})
        False
        >>> worse({"loss": 0.2, "agreement": 0.99, "images": 100}, {"loss": 0.1, "agreement": 0.98, "images": 100})
        False
        >>> worse({"loss": 0.2}, {"loss": 0.3})
        True
    """
    share, images = before.get("agreement", 0.0), before.get("images", 1)
    gained = after.get("agreement", 0.0) - share
    chance = max(1 / images, (share * (1 - share) / images) ** 0.5) * (1 + 1e-9)
    if abs(gained) > chance:
        return gained < 0
    return not after["loss"] <= before["loss"]


def _is_classes(outputs: Sequence[Tensor]) -> bool:
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1


def _answer_score(outputs: Sequence[Tensor]) -> Tensor:
    """What the sensitivity of values is measured on: log-probabilities of the answers, without classes the outputs."""
    if _is_classes(outputs):
        return -outputs[0].log_softmax(1).amax(1).sum()
    return torch.stack([x.square().sum() for x in outputs]).sum()


def _distance(ours: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
    """The divergence from the source's answers, KL(source || ours); without classes the relative squared error."""
    if _is_classes(goals):
        return F.kl_div(ours[0].log_softmax(1), goals[0].log_softmax(1), reduction="batchmean", log_target=True)
    error = sum((x - goal).square().sum() for x, goal in zip(ours, goals, strict=True))
    power = sum(goal.square().sum() for goal in goals)
    return torch.as_tensor(error) / torch.as_tensor(power).clamp_min(1e-30)


def _augmented(inputs: Sequence[Tensor], config: ReconstructConfig) -> list[Tensor]:
    """The images and, beside them, augmented copies of each."""
    augment, generator = augmentation(config.augment), torch.Generator().manual_seed(config.seed)
    further = [[augment(x, generator) for x in inputs] for _ in range(config.copies - 1)]
    return [torch.cat(parts) for parts in zip(inputs, *further, strict=True)]


def _pieces(values: Mapping[str, Tensor], images: int = _EVALUATION_BATCH) -> list[Values]:
    """Values of many images in parts."""
    split = zip(*(torch.split(x, images) for x in values.values()), strict=True)
    return [dict(zip(values, piece, strict=True)) for piece in split]
