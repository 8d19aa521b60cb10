"""What to train, how long and how fast: frozen data that goes to JSON and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from speedysnn.errors import InputError
from speedysnn.finetune.keeping import KEEPS
from speedysnn.finetune.stages import Stage, stages_of
from speedysnn.neurons import THRESHOLD_RULES

GROUPS = ("thresholds", "v_init", "biases", "weights")
RATES: Mapping[str, float] = {"thresholds": 1e-2, "v_init": 1e-3, "biases": 1e-3, "weights": 1e-3}
PRECISIONS = ("float32", "bfloat16")
BUDGETS = ("spikes", "synops")


@dataclass(frozen=True)
class Config:
    """Settings of `finetune.fit`.

    Attributes:
        epochs_quantized: epochs on the quantized reading: one pass an image, the gradient of a learned step size.
        epochs_spiking: epochs on the spiking reading, through time, at the network's own look-ahead and spike kind.
        stages: the stages one by one, in place of the two counts above; a curriculum over T, look-ahead or spikes.
        train: which of "thresholds", "v_init", "biases", "weights" train; the rest stays as it is.
        threshold_rule: gradient of theta in a spiking stage: "surrogate" (through time, amplitude and reset paths),
            "step" (the learned step size's, on the spike count) or "mixed" (their mean).
        learning_rates: peak rate of each group (Adam); of thresholds it is relative, since log theta is trained.
        spiking_rate: factor on all rates in the spiking stage.
        weight_decay: of the weights only, decoupled.
        objective: "kl" or "mse" to the teacher's logits, or "labels".
        temperature: of the softmax in "kl".
        label_weight: share of the labels' cross-entropy in the loss, the objective to the teacher has the rest (Hinton
            et al. 2015); 0 needs no labels.
        match: weight of the layer-wise term that draws every neuron's mean output to the source's activation.
        budget: most spikes a neuron and image (mean over the network), None for no limit.
        budget_of: "spikes", or "synops": every layer's spikes then weigh by its fan-out (see `fit`).
        budget_weight: weight of the penalty max(0, spikes / budget - 1), which doubles after every epoch above it.
        membrane: weight of the penalty on membranes that end outside [0, theta), the sign of temporal error.
        batch_size: images a step; it runs in pieces that fit the caches and the memory, whose gradients add up.
        augment: name of an augmentation, see `finetune.augment`.
        mixup: alpha of mixing pairs of images, 0 for none; the teacher labels the mixture, labels are mixed likewise.
        holdout: fraction of the training data kept for validation where none is given.
        clip: largest norm of the gradient, None for no limit.
        warmup: fraction of a stage's steps in which the rate rises; it then falls to zero along a cosine.
        keep: whose state a stage ends in: the epoch of least held-out "loss", of most "agreement" with the teacher or
            most "accuracy" (of equal ones that with less loss), or the "last".
        average: decay of a running average of the trained state over steps, which is judged and kept in place of the
            state itself (0.99 averages about the last hundred steps); 0 for none.
        patience: epochs without a better held-out score after which a stage ends; None for never.
        precision: "float32", or "bfloat16" for automatic mixed precision.
        seed: of the split, the order and the augmentation; the same seed gives the same result, bit for bit,
            on one machine and on another of its kind (processor, number of threads, versions).
    """

    epochs_quantized: int = 8
    epochs_spiking: int = 2
    stages: tuple[Stage, ...] = ()
    train: tuple[str, ...] = GROUPS
    threshold_rule: str = "surrogate"
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    spiking_rate: float = 1.0
    weight_decay: float = 0.0
    objective: str = "kl"
    temperature: float = 1.0
    label_weight: float = 0.0
    match: float = 0.0
    budget: float | None = None
    budget_of: str = "spikes"
    budget_weight: float = 1.0
    membrane: float = 0.0
    batch_size: int = 50
    augment: str = "none"
    mixup: float = 0.0
    holdout: float = 0.1
    clip: float | None = 1.0
    warmup: float = 0.1
    keep: str = "loss"
    average: float = 0.0
    patience: int | None = None
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        unknown = [name for name in (*self.train, *self.learning_rates) if name not in GROUPS]
        if unknown or not self.train:
            raise InputError(f"train: expected some of {', '.join(GROUPS)}, got {', '.join(unknown) or 'nothing'}")
        if min(self.epochs_quantized, self.epochs_spiking) < 0 or not self.plan:
            raise InputError("epochs: expected at least one epoch in one of the stages, and none below zero")
        if self.batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {self.batch_size}")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout: expected a fraction between 0 and 1, got {self.holdout}")
        if not 0 <= self.label_weight < 1 or (self.label_weight and self.objective == "labels"):
            raise InputError(
                "label_weight: expected at least 0 and below 1, beside an objective to the teacher ('kl' or 'mse'); "
                f"got {self.label_weight} beside {self.objective!r}"
            )
        self._check_words()
        self._check_numbers()

    def _check_words(self) -> None:
        known_words = {"threshold_rule": THRESHOLD_RULES, "precision": PRECISIONS, "budget_of": BUDGETS, "keep": KEEPS}
        for name, known in known_words.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for name in ("match", "mixup", "membrane", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise InputError(f"average: expected at least 0 and below 1, got {self.average}")
        positive = {**{f"learning rate of {k}": v for k, v in self.learning_rates.items()},
                    "temperature": self.temperature, "spiking_rate": self.spiking_rate, "budget": self.budget,
                    "budget_weight": self.budget_weight, "clip": self.clip, "patience": self.patience}  # fmt: skip
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise InputError(f"{name}: expected a positive number, got {value}")

    def rate(self, group: str) -> float:
        """Peak learning rate of a parameter group."""
        return float(self.learning_rates.get(group, RATES[group]))

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages that run, in order."""
        if self.stages:
            return self.stages
        both = (("quantized", self.epochs_quantized, 1.0), ("spiking", self.epochs_spiking, self.spiking_rate))
        return tuple(Stage(name, epochs, rate=rate) for name, epochs, rate in both if epochs > 0)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON data."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**data, "train": list(self.train), "learning_rates": dict(self.learning_rates),
                "stages": [stage.to_json() for stage in self.stages]}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Config":
        """The settings written by `to_json`."""
        return cls(**{**data, "train": tuple(data["train"]), "stages": stages_of(data)})
