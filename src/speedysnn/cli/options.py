"""Options that several commands share, and how the commands load what the options name."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.markup import escape

from speedysnn import artifact
from speedysnn.analysis.reference import leaves, run
from speedysnn.cli.output import note
from speedysnn.data import HANDLERS, kinds_help, load
from speedysnn.data.batches import iter_batches
from speedysnn.data.images import ImageData, parse_normalize
from speedysnn.errors import DataError, InputError
from speedysnn.files import FILE, MODULE, kind_of
from speedysnn.integer import PROFILES, Chip, to_integer
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.neurons.parameters import Delay
from speedysnn.sources import MODELS, Source, load_model

Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda or cuda:N.")]


def device_of(text: str) -> torch.device:
    """The device named.

    Returns:
        The device, which is there.

    Raises:
        InputError: another word, or a device that is not there.
    """
    kind, colon, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise InputError(f"--device: expected cpu, cuda or cuda:N, got {text!r}")
    if kind == "cpu":
        return torch.device(kind)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= there:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            f"--device: got {text!r}, but torch {torch.__version__} ({built}) finds {there} GPU{'s' * (there != 1)}; "
            "take --device cpu, or install a driver and a torch that fit"
        )
    return torch.device(text)


_LISTINGS: list[tuple[Any, Callable[[], str]]] = []


def listing(describe: Callable[[], str], *names: str) -> Any:
    """An option whose help lists a registry; see `refresh_listings`."""
    option = typer.Option(*names, help=escape(describe()))
    _LISTINGS.append((option, describe))
    return option


def refresh_listings() -> None:
    """Write the help of these options anew: a user may have added entries since the commands were imported."""
    for option, describe in _LISTINGS:
        option.help = escape(describe())


Network = Annotated[Path, typer.Argument(metavar="NET.snn", help="A folder made by `speedysnn convert` or `finetune`.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="torchvision:NAME, FILE.py:FUNCTION, package.module:FUNCTION, or a .pt2 or .onnx file."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", help="Weights: .pt, .pth, .th or .safetensors; no code in it is run."),
]
Classes = Annotated[int | None, typer.Option("--num-classes", help="Outputs of the last layer.")]
Data = Annotated[str, listing(kinds_help, "--data", "-d")]
Normalize = Annotated[
    str | None,
    typer.Option("--normalize", help='imagenet, cifar10, none, or "mean,mean,mean/std,std,std"; kept with the net.'),
]
NormalizeNet = Annotated[
    str | None, typer.Option("--normalize", help="As in convert; by default what the network was converted with.")
]
SourceNet = Annotated[
    Path | None, typer.Option("--source", help="Compare with this network's analog reading: the one before tuning.")
]
Split = Annotated[str, typer.Option("--split", help="train or test.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Use this many images, chosen by the seed.")]
Monitor = Annotated[
    str,
    typer.Option(
        "--monitor",
        "--keep",
        help="Whose epoch's state is kept, on held-out images: loss, agreement, accuracy; or last.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
JsonFile = Annotated[
    str | None, typer.Option("--json", help="Also write the result as JSON; - for standard output only.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run of a command wrote there.")]
AllowHybrid = Annotated[
    bool, typer.Option("--allow-hybrid", help="Accept operators that need an analog unit (SiLU, softmax, layer-norm).")
]
KeepAnalog = Annotated[
    list[str] | None, typer.Option("--keep-analog", help="A layer path in which no neuron is placed; may be repeated.")
]
DelayText = Annotated[str | None, typer.Option("--delay", help="Steps of look-ahead, or full.")]
Spikes = Annotated[str | None, typer.Option("--spikes", help="binary, ternary, graded:N or power2:N.")]
WeightBits = Annotated[int, typer.Option("--weight-bits", help="c, chip: bits of a weight, 2 to 16.")]
StateBits = Annotated[int, typer.Option("--state-bits", help="c, chip: bits of a neuron's state, 8 to 32.")]
Granularity = Annotated[
    str | None, typer.Option("--granularity", help="c, chip: one scale a channel or layer; by default the profile's.")
]
ProfileName = Annotated[
    str, listing(lambda: f"The platform whose limits the chip must keep: {', '.join(PROFILES)}.", "--profile")
]

T = TypeVar("T")


def announce(*specs: str | None) -> None:
    """Say that a spec runs the user's own code, before it does; nothing is said of this package's."""
    for spec in dict.fromkeys(specs):
        if spec and kind_of(spec, (*MODELS, *HANDLERS)) in (FILE, MODULE) and not spec.startswith("speedysnn."):
            note(f"running code of {spec.rpartition(':')[0]}")


def model_of(spec: str, checkpoint: Path | None, num_classes: int | None) -> Source:
    """The source network with its weights.

    Returns:
        The network and where it came from.
    """
    announce(spec)
    source = load_model(spec, checkpoint=checkpoint, num_classes=num_classes)
    for line in source.notes:
        note(line)
    if checkpoint is None and spec.startswith("torchvision:"):
        note(f"{spec}: no --checkpoint given, so its weights are random")
    return source


def data_of(spec: str, split: str, normalize: str | None, limit: int | None, seed: int) -> ImageData:
    """The images of a data spec.

    Returns:
        The images.
    """
    announce(spec)
    return load(spec, split, normalize=normalize, limit=limit, seed=seed)


def check_fits(snn: SpikingNetwork, images: ImageData, labels: bool) -> None:
    """Run one image, so that data of another shape is refused before any work; with `labels` those must fit too.

    Raises:
        DataError: the network does not run on it, or has fewer outputs than there are classes.
        InputError: an image of another rank.
    """
    place = next(snn.parameters()).device
    one = [x.to(place) for x in next(iter_batches(images, batch_size=1)).inputs]
    with torch.no_grad():
        out = leaves(run(snn, "quantized", one))[0]
    if labels and out.ndim == 2 and images.classes > out.shape[1]:
        raise DataError(f"labels: the data has {images.classes} classes, the network {out.shape[1]} outputs")


def network_of(path: Path, device: str = "cpu") -> SpikingNetwork:
    """The saved network, on a device.

    Returns:
        The network, in evaluation mode.
    """
    place = device_of(device)
    return artifact.load(path).to(place)


def chip_of(
    snn: SpikingNetwork, bits: tuple[int, int, str | None], profile: str, normalize: str | None, events: bool = False
) -> Chip:
    """The network in whole numbers; bits of weights and states, and the granularity.

    Returns:
        The chip.
    """
    given = None if events else parse_normalize(normalize_of(snn, normalize))
    mean, std = (None, None) if given is None else (given.mean, given.std)
    weight_bits, state_bits, granularity = bits
    return to_integer(snn, weight_bits, state_bits, profile, mean, std, granularity=granularity, events=events)


def reference_of(source: Path | None, snn: SpikingNetwork, device: str = "cpu") -> SpikingNetwork | None:
    """The network to compare with; without one, a note if the analog reading is not the source network any more.

    Returns:
        The network, or None for its own analog reading.
    """
    if source is not None:
        return network_of(source, device)
    if weights_tuned(snn):
        note("its weights were tuned: without --source it is compared with its own analog reading, not with the source")
    return None


def normalize_of(snn: SpikingNetwork, given: str | None) -> str | None:
    """The normalisation given, or the one the network was converted with.

    Returns:
        A normalisation, or None.
    """
    return given if given is not None else snn.provenance.get("normalize")


def delay_of(text: str) -> Delay:
    """A look-ahead option as a value.

    Returns:
        A number of steps, or "full".

    Raises:
        InputError: neither a whole number of at least 0 nor "full".
    """
    if text == "full":
        return "full"
    if text.isdecimal():
        return int(text)
    raise InputError(f'--delay: expected a whole number of steps of at least 0, or "full", got {text!r}')


def several(text: str, option: str, parse: Callable[[str], T]) -> list[T]:
    """A comma-separated option as values.

    Returns:
        The values, at least one.

    Raises:
        InputError: nothing in it, or an item that is not what is expected.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise InputError(f"{option}: expected one or more values separated by commas, got {text!r}")
    return [parse(item) for item in items]


def steps_of(text: str) -> int:
    """A number of steps.

    Returns:
        The number.

    Raises:
        InputError: not a whole number of at least 1.
    """
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise InputError(f"-T: expected a whole number of steps of at least 1, got {text!r}")


def configure(snn: SpikingNetwork, timesteps: int | None, delay: str | None, spikes: str | None) -> None:
    """Apply T, look-ahead and spike kind where they are given."""
    if timesteps is not None:
        snn.timesteps = timesteps
    if delay is not None:
        snn.set_delay(delay_of(delay))
    if spikes is not None:
        snn.set_spikes(spikes)


def seeded(seed: int) -> None:
    """Seed torch.

    Raises:
        InputError: a negative seed, or one of more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed: expected a number of at least 0 and below 2^63, got {seed}")
    torch.manual_seed(seed)


def named(spec: str) -> str:
    """A spec without folders, fit to be kept with a network.

    Returns:
        The spec with file names alone.
    """
    kind, colon, rest = spec.rpartition(":") if ".py:" in spec else spec.partition(":")
    return f"{Path(kind).name}{colon}{Path(rest).name}"


def provenance(source: Source, **more: Any) -> dict[str, Any]:
    """Where a network came from, as JSON data without paths.

    Returns:
        What is kept with the network.
    """
    return {
        "model": named(source.spec),
        "checkpoint": None if source.checkpoint is None else Path(source.checkpoint).name,
        "checkpoint_sha256": source.sha256,
        **more,
    }
