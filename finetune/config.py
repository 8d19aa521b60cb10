"""What to train, how long and how fast: frozen data that goes to JSON and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from speedysnn.errors import InputError

GROUPS = ("thresholds", "v_init", "biases", "weights")
RATES: Mapping[str, float] = {"thresholds": 1e-2, "v_init": 1e-3, "biases": 1e-3, "weights": 1e-3}


@dataclass(frozen=True)
class Config:
    """Settings of `finetune.fit`.

    Attributes:
        epochs_quantized: epochs on the quantized reading: one pass an image, the gradient of a learned step size.
        epochs_spiking: epochs on the spiking reading, through time, at the network's own look-ahead and spike kind.
        train: which of "thresholds", "v_init", "biases", "weights" train; the rest stays as it is.
        learning_rates: peak rate of each group (Adam); of thresholds it is relative, since log theta is trained.
        spiking_rate: factor on all rates in the spiking stage.
        weight_decay: of the weights only, decoupled.
        objective: "kl" or "mse" to the teacher's logits, or "labels".
        temperature: of the softmax in "kl".
        match: weight of the layer-wise term that draws every neuron's mean output to the source's activation.
        batch_size: images a step.
        augment: "none", "flip", "shift" or "flip-crop"; the images stay as they are otherwise.
        mixup: alpha of mixing pairs of images (the teacher labels the mixture), 0 for none.
        holdout: fraction of the training data kept for validation where none is given.
        clip: largest norm of the gradient, None for no limit.
        warmup: fraction of a stage's steps in which the rate rises; it then falls to zero along a cosine.
        seed: of the split, the order and the augmentation; the same seed gives the same result.
    """

    epochs_quantized: int = 8
    epochs_spiking: int = 2
    train: tuple[str, ...] = GROUPS
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    spiking_rate: float = 1.0
    weight_decay: float = 0.0
    objective: str = "kl"
    temperature: float = 1.0
    match: float = 0.0
    batch_size: int = 50
    augment: str = "none"
    mixup: float = 0.0
    holdout: float = 0.1
    clip: float | None = 1.0
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        unknown = [name for name in (*self.train, *self.learning_rates) if name not in GROUPS]
        if unknown or not self.train:
            raise InputError(f"train: expected some of {', '.join(GROUPS)}, got {', '.join(unknown) or 'nothing'}")
        if min(self.epochs_quantized, self.epochs_spiking) < 0 or self.epochs_quantized + self.epochs_spiking < 1:
            raise InputError("epochs: expected at least one epoch in one of the stages, and none below zero")
        if self.batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {self.batch_size}")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout: expected a fraction between 0 and 1, got {self.holdout}")
        if self.match < 0 or self.mixup < 0:
            raise InputError(f"match and mixup: expected at least 0, got {self.match} and {self.mixup}")
        if self.mixup and self.objective == "labels":
            raise InputError("mixup: a mixture of two images has no one label; use the objective 'kl' or 'mse'")
        positive = {**{f"learning rate of {k}": v for k, v in self.learning_rates.items()},
                    "temperature": self.temperature, "spiking_rate": self.spiking_rate}  # fmt: skip
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name}: expected a positive number, got {value}")

    def rate(self, group: str) -> float:
        """Peak learning rate of a parameter group."""
        return float(self.learning_rates.get(group, RATES[group]))

    @property
    def stages(self) -> tuple[tuple[str, int], ...]:
        """(reading, epochs) of the stages that run, in order."""
        both = (("quantized", self.epochs_quantized), ("spiking", self.epochs_spiking))
        return tuple((name, epochs) for name, epochs in both if epochs)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON data."""
        data = asdict(self)
        return {**data, "train": list(self.train), "learning_rates": dict(self.learning_rates)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Config":
        """The settings written by `to_json`."""
        return Config(**{**data, "train": tuple(data["train"])})
