"""Training block by block: towards the source's activations layer by layer, or towards what its blocks give.

`ReconstructConfig` holds the settings of a reconstruction, as frozen data that goes to JSON.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from speedysnn.convert.correct import check_kind
from speedysnn.errors import InputError
from speedysnn.finetune.augment import augmentation
from speedysnn.finetune.config import GROUPS, check_groups

RATES: Mapping[str, float] = {"thresholds": 5e-3, "v_init": 5e-4, "biases": 3e-3, "weights": 3e-3}


@dataclass(frozen=True)
class ReconstructConfig:
    """Settings of `finetune.reconstruct`.

    Attributes:
        epochs: passes over the images for each block.
        output_epochs: passes over the images in which the whole network learns the source's outputs, after the blocks.
        train: which of "thresholds" (with amplitudes), "v_init", "biases", "weights" train.
        learning_rates: peak rate of each group (Adam), relative to a parameter's own scale.
        source_share: share of a block's input values that are taken from the source, drawn anew each step.
        correct: the closed form before it, see `convert.apply_correction`.
        regress: whether the weights and biases of every layer, where both train, are fitted in closed form before the
            blocks, and once more for the spiking reading after them. With `epochs` and `output_epochs` 0 this closed
            form is all that is done, for the network's own reading alone.
        images: most images that the closed form uses; its time grows with them.
        neurons: most neuron layers of a block; a residual sum may span more.
        batch_size: images a step.
        augment: name of an augmentation, see `finetune.augment`, that makes further images of the given ones.
        copies: how many of each image are trained on: itself, and the others augmented.
        holdout: fraction of the images that judges and takes no part in the training.
        seed: of the split, the order and the draws.

    Example:
        >>> from speedysnn import finetune
        >>> finetune.ReconstructConfig(epochs=4).rate("weights")
        0.003
    """

    epochs: int = 8
    output_epochs: int = 4
    train: tuple[str, ...] = GROUPS
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    source_share: float = 0.5
    correct: str = "moments"
    regress: bool = True
    images: int = 512
    neurons: int = 3
    batch_size: int = 16
    augment: str = "none"
    copies: int = 1
    holdout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        check_groups(self.train, self.learning_rates)
        check_kind(self.correct)
        augmentation(self.augment)
        for name in ("epochs", "output_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("images", "neurons", "batch_size", "copies"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.source_share <= 1:
            raise InputError(f"source_share: expected a fraction from 0 to 1, got {self.source_share}")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout: expected a fraction between 0 and 1, got {self.holdout}")

    @property
    def trains(self) -> bool:
        """Whether anything is trained with gradients."""
        return bool(self.epochs or self.output_epochs)

    def rate(self, group: str) -> float:
        """Look up the peak learning rate of a parameter group, relative to each parameter's scale.

        Args:
            group: "thresholds", "v_init", "biases" or "weights".

        Returns:
            The rate given, or the default of the group.
        """
        return float(self.learning_rates.get(group, RATES[group]))

    def to_json(self) -> dict[str, Any]:
        """Write the settings as JSON data.

        Returns:
            The settings by name.
        """
        return {**asdict(self), "train": list(self.train), "learning_rates": dict(self.learning_rates)}
