"""Settings of a training run: what trains, how long and how fast, as frozen data that goes to JSON and back."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from speedysnn.errors import InputError
from speedysnn.kernels import parse_spikes
from speedysnn.neurons.parameters import THRESHOLD_GRADIENTS, Delay, Reading

KINDS = ("quantized", "spiking", "blockwise", "reconstruct")
_CLOSED_FORMS = ("blockwise", "reconstruct")
_CLOSED = " and ".join(_CLOSED_FORMS)
GROUPS = ("thresholds", "v_init", "biases", "weights")
RATES: Mapping[str, float] = {"thresholds": 1e-2, "v_init": 1e-3, "biases": 5e-3, "weights": 5e-3}  # in own scales
PRECISIONS = ("float32", "bfloat16")
MONITORS = ("loss", "agreement", "accuracy", "last")
BUDGETS = ("spikes", "synops")
OLD_NAMES = {"match": "layer_match_weight", "keep": "monitor", "threshold_rule": "threshold_gradient"}
Settings = TypeVar("Settings", bound="Config")


@dataclass(frozen=True)
class Stage:
    """One stage of a run; where a setting is None, the network keeps its own.

    Attributes:
        kind: "quantized" (the twin, one pass an image), "spiking" (through time), "blockwise" (every layer towards
            the source's activations by itself, no gradient between layers: first in closed form, then Adam), or
            "reconstruct" (block by block, as `finetune.reconstruct` does it, without its epochs on the whole).
        epochs: passes over the training data; 0 is allowed for "blockwise" and "reconstruct", which then are the closed
            form alone.
        timesteps: T of this stage; on the way from another T every theta is scaled by the ratio of the calibrated
            thetas at both.
        delay: look-ahead in steps, or "full".
        spikes: spike kind.
        rate: factor on all learning rates.

    Example:
        >>> from speedysnn import finetune
        >>> stage = finetune.Stage("spiking", 2, timesteps=8)
        >>> str(stage), stage.reading
        ('spiking:2,T=8', 'spiking')
        >>> finetune.Stage.parse(str(stage)) == stage
        True
    """

    kind: str
    epochs: int
    timesteps: int | None = None
    delay: Delay | None = None
    spikes: str | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        if self.kind not in KINDS:
            raise InputError(f"stage: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.epochs < (0 if self.kind in _CLOSED_FORMS else 1):
            raise InputError(f"stage {self.kind}: epochs: expected at least 1 (0 in {_CLOSED}), got {self.epochs}")
        if self.timesteps is not None and self.timesteps < 1:
            raise InputError(f"stage {self.kind}: T: expected at least 1, got {self.timesteps}")
        if self.delay is not None and self.delay != "full" and self.delay < 0:
            raise InputError(f"stage {self.kind}: delay: expected at least 0, or full, got {self.delay}")
        if self.spikes is not None:
            parse_spikes(self.spikes)
        if not self.rate > 0:
            raise InputError(f"stage {self.kind}: rate: expected a positive number, got {self.rate}")

    @property
    def reading(self) -> Reading:
        """The reading that is trained and judged; for stages layer by layer or block by block the quantized one."""
        return "spiking" if self.kind == "spiking" else "quantized"

    def __str__(self) -> str:
        given = {"T": self.timesteps, "delay": self.delay, "spikes": self.spikes}
        more = [f"{key}={value}" for key, value in given.items() if value is not None]
        more += [f"rate={self.rate:g}"] if self.rate != 1 else []
        return ",".join([f"{self.kind}:{self.epochs}", *more])

    @staticmethod
    def parse(text: str) -> "Stage":
        """A stage from text, `KIND:EPOCHS[,T=8][,delay=1][,spikes=ternary][,rate=0.5]`.

        Args:
            text: the stage as the command line writes it.

        Returns:
            The stage; what is not written is the network's own.

        Raises:
            InputError: it is written another way.

        Example:
            >>> from speedysnn import finetune
            >>> finetune.Stage.parse("spiking:2,T=8,delay=full")
            Stage(kind='spiking', epochs=2, timesteps=8, delay='full', spikes=None, rate=1.0)
        """
        head, *rest = (part.strip() for part in text.split(","))
        kind, _, epochs = head.partition(":")
        options = dict(part.partition("=")[::2] for part in rest)
        known = {"T": "timesteps", "delay": "delay", "spikes": "spikes", "rate": "rate"}
        wrong = [key for key in options if key not in known]
        try:
            if wrong:
                raise ValueError(wrong[0])
            values: dict[str, Any] = {known[key]: _value(key, value) for key, value in options.items()}
            return Stage(kind, int(epochs), **values)
        except ValueError as err:
            raise InputError(
                f"stage {text!r}: expected KIND:EPOCHS[,T=N][,delay=N|full][,spikes=KIND][,rate=X] ({err})"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Write the stage as JSON data.

        Returns:
            Its settings by name.
        """
        return asdict(self)


def _value(key: str, value: str) -> Any:
    if key == "spikes" or (key == "delay" and value == "full"):
        return value
    return float(value) if key == "rate" else int(value)


def stages_of(data: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Read the stages from the JSON data of settings.

    Args:
        data: what `Config.to_json` gave.

    Returns:
        The stages, none where the data names none.
    """
    return tuple(Stage(**stage) for stage in data.get("stages", ()))


def check_groups(train: Sequence[str], learning_rates: Mapping[str, float]) -> None:
    """Refuse groups of parameters that there are not.

    Args:
        train: the groups that train.
        learning_rates: rates by group.

    Raises:
        InputError: a group is none of GROUPS, or none trains.
    """
    unknown = [name for name in (*train, *learning_rates) if name not in GROUPS]
    if unknown or not train:
        raise InputError(f"train: expected some of {', '.join(GROUPS)}, got {', '.join(unknown) or 'nothing'}")


def _warn_of_old_name(old: str, new: str) -> None:
    warnings.warn(
        f"finetune.Config: {old!r} is now called {new!r}; the old name goes in the next minor version",
        DeprecationWarning,
        stacklevel=3,
    )


def _old_setting(old: str) -> property:
    """Make a read-only property that gives a setting under its old name, with a warning."""

    def read(self: "Config") -> Any:
        _warn_of_old_name(old, OLD_NAMES[old])
        return getattr(self, OLD_NAMES[old])

    return property(read)


def with_old_names(cls: type[Settings]) -> type[Settings]:
    """Let a settings class take its old keywords (`OLD_NAMES`) too, with a warning.

    Args:
        cls: a dataclass.

    Returns:
        The same class.
    """
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self: Settings, *args: Any, **given: Any) -> None:
        for old in OLD_NAMES.keys() & given.keys():
            new = OLD_NAMES[old]
            if new in given:
                raise InputError(f"{new}: expected one value, got {given[new]!r} and, as {old}, {given[old]!r}")
            _warn_of_old_name(old, new)
            given[new] = given.pop(old)
        plain(self, *args, **given)

    setattr(cls, "__init__", init)  # noqa: B010 - the checker keeps the typed signature
    return cls


@with_old_names
@dataclass(frozen=True)
class Config:
    """Settings of `finetune.fit`.

    Example:
        >>> from speedysnn import finetune
        >>> config = finetune.Config(stages=(finetune.Stage.parse("quantized:8"), finetune.Stage.parse("spiking:2")))
        >>> config.layer_match_weight, config.monitor
        (0.0, 'loss')
        >>> finetune.Config.from_json(config.to_json()) == config
        True

    Attributes:
        epochs_quantized: epochs on the quantized reading: one pass an image, the gradient of a learned step size. None
            leaves them to `fit`: as many as show the network about 50,000 images, at least 3 and at most 20.
        epochs_spiking: epochs on the spiking reading, through time, at the network's own look-ahead and spike kind.
            None leaves them to `fit`: 1, or none where every layer waits for its whole input and both readings are one.
        stages: the stages one by one, in place of the two counts above; a curriculum over T, look-ahead or spikes.
        train: which of "thresholds", "v_init", "biases", "weights" train; the rest stays as it is.
        threshold_gradient: gradient of theta in a spiking stage: "surrogate" (through time, amplitude and reset paths),
            "step" (the learned step size's, on the spike count) or "mixed" (their mean).
        learning_rates: peak rate of each group (Adam), the same for all of its parameters; of thresholds it is
            relative, since log theta is trained. A group that is not named has a default rate relative to each
            parameter's own scale, the root mean square of its values: `config.RATES`.
        spiking_rate: factor on all rates in the spiking stage.
        weight_decay: of the weights only, decoupled.
        objective: "kl" or "mse" to the teacher's logits, or "labels".
        temperature: of the softmax in "kl".
        label_weight: share of the labels' cross-entropy in the loss, the objective to the teacher has the rest (Hinton
            et al. 2015); 0 needs no labels.
        layer_match_weight: weight of the layer-wise term that draws every neuron's mean output to the source's
            activation. It is off by default: with batch-norm in place every layer's channels keep their scale by
            themselves, and the best rows of reports/finetune have none. A small network gains a little by 1 to 5 (all
            seeds there, batch-norm folded); it needs a teacher with the same layers.
        budget: most spikes a neuron and image (mean over the network), None for no limit.
        budget_of: "spikes", or "synops": every layer's spikes then weigh by its fan-out (see `fit`).
        budget_weight: weight of the penalty spikes / budget, which acts while the spikes are above 97 % of the budget;
            it doubles after every epoch that ends above the budget.
        membrane: weight of the penalty on membranes that end outside [0, theta), the sign of temporal error.
        batch_norm: whether quantized and spiking stages train with batch-norm in place: behind every weight layer that
            leads to a neuron, with the statistics of the whole batch, folded at the end of the stage. Without it, and
            where that cannot be (several processes, batches of one image, weights or biases that do not train), a batch
            runs in pieces that fit the caches, whose gradients add up. None leaves it to `fit`: in place unless the
            images are few for the parameters (`fit.planned`).
        batch_size: images a step.
        augment: name of an augmentation, see `finetune.augment`; "auto" chooses by the shape of the images.
        mixup: alpha of mixing pairs of images, 0 for none; the teacher labels the mixture, labels are mixed likewise.
        holdout: fraction of the training data kept for validation where none is given.
        clip: largest norm of the gradient, None for no limit.
        warmup: fraction of a stage's steps in which the rate rises; it then falls to zero along a cosine.
        monitor: whose state a stage ends in: the epoch of least held-out "loss", of most "agreement" with the teacher
            or most "accuracy" (of equal ones that with less loss), or the "last".
        average: decay of a running average of the trained state over steps, which is judged and kept in place of the
            state itself (0.99 averages about the last hundred steps); 0 for none.
        patience: epochs without a better held-out score after which a stage ends; None for never.
        precision: "float32", or "bfloat16" for automatic mixed precision.
        weight_bits: rounds weights to 2 to 16 bits wherever the network runs, as `to_integer` of as many bits will, and
            passes the gradient straight through to the weights before rounding, which are what is kept; None for not.
        seed: of the split, the order and the augmentation; the same seed gives the same result, bit for bit,
            on one machine and on another of its kind (processor, number of threads, versions).
    """

    epochs_quantized: int | None = None
    epochs_spiking: int | None = None
    stages: tuple[Stage, ...] = ()
    train: tuple[str, ...] = GROUPS
    threshold_gradient: str = "surrogate"
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    spiking_rate: float = 0.3
    weight_decay: float = 0.0
    objective: str = "kl"
    temperature: float = 4.0
    label_weight: float = 0.0
    layer_match_weight: float = 0.0
    budget: float | None = None
    budget_of: str = "spikes"
    budget_weight: float = 1.0
    membrane: float = 0.0
    batch_norm: bool | None = None
    batch_size: int = 32
    augment: str = "auto"
    mixup: float = 0.2
    holdout: float = 0.1
    clip: float | None = 1.0
    warmup: float = 0.1
    monitor: str = "loss"
    average: float = 0.99
    patience: int | None = None
    precision: str = "float32"
    weight_bits: int | None = None
    seed: int = 0
    default_rates: ClassVar[Mapping[str, float]] = RATES
    match = _old_setting("match")
    keep = _old_setting("keep")
    threshold_rule = _old_setting("threshold_rule")

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        check_groups(self.train, self.learning_rates)
        if min(self.epochs_quantized or 0, self.epochs_spiking or 0) < 0 or not self.plan:
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
        known_words = {
            "threshold_gradient": THRESHOLD_GRADIENTS,
            "precision": PRECISIONS,
            "budget_of": BUDGETS,
            "monitor": MONITORS,
        }
        for name, known in known_words.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for name in ("layer_match_weight", "mixup", "membrane", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected at least 0, got {getattr(self, name)}")
        bits = self.weight_bits
        if bits is not None and not (type(bits) is int and 2 <= bits <= 16):
            raise InputError(f"weight_bits: expected a whole number of 2 to 16, or None, got {bits!r}")
        if not 0 <= self.average < 1:
            raise InputError(f"average: expected at least 0 and below 1, got {self.average}")
        positive = {**{f"learning rate of {k}": v for k, v in self.learning_rates.items()},
                    "temperature": self.temperature, "spiking_rate": self.spiking_rate, "budget": self.budget,
                    "budget_weight": self.budget_weight, "clip": self.clip, "patience": self.patience}  # fmt: skip
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise InputError(f"{name}: expected a positive number, got {value}")

    def rate(self, group: str) -> float:
        """Look up the peak learning rate of a parameter group.

        Args:
            group: "thresholds", "v_init", "biases" or "weights".

        Returns:
            The rate given, or the default of the group, which may be relative.

        Example:
            >>> from speedysnn import finetune
            >>> config = finetune.Config(learning_rates={"weights": 3e-4})
            >>> config.rate("weights"), config.rate("thresholds")
            (0.0003, 0.01)
        """
        return float(self.learning_rates.get(group, self.default_rates[group]))

    def relative(self, group: str) -> bool:
        """Say whether the rate of a group is relative to each parameter's own scale (`optimization.scale_of`).

        Args:
            group: one of GROUPS.

        Returns:
            True for the defaults of `fit`, False for rates that were given.
        """
        return group not in self.learning_rates and self.default_rates is RATES

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages that run, in order; epochs that are left open stand for one until `fit` fills them in."""
        if self.stages:
            return self.stages
        left_open = [1 if epochs is None else epochs for epochs in (self.epochs_quantized, self.epochs_spiking)]
        both = zip(("quantized", "spiking"), left_open, (1.0, self.spiking_rate), strict=True)
        return tuple(Stage(name, epochs, rate=rate) for name, epochs, rate in both if epochs > 0)

    def to_json(self) -> dict[str, Any]:
        """Write the settings as JSON data.

        Returns:
            What `from_json` reads.
        """
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**data, "train": list(self.train), "learning_rates": dict(self.learning_rates),
                "stages": [stage.to_json() for stage in self.stages]}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Config":
        """Read settings that `to_json` wrote, in this version or in one with the old names.

        Args:
            data: JSON data.

        Returns:
            Settings equal to those written.
        """
        data = {OLD_NAMES.get(name, name): value for name, value in data.items()}
        return cls(**{**data, "train": tuple(data["train"]), "stages": stages_of(data)})
