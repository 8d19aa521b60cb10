"""Put a checkpoint's weights into a network, or say in one paragraph why they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from speedysnn.errors import SourceError
from speedysnn.sources.checkpoint import PREFIXES, Checkpoint, some, strip_prefixes

_COUNTER = "num_batches_tracked"  # batch-norm's counter: absent from old files, and of no use after training


@dataclass(frozen=True)
class _Mismatch:
    """How the names and shapes of a checkpoint and a network differ."""

    file: Mapping[str, Tensor]
    network: Mapping[str, Tensor]

    @property
    def missing(self) -> list[str]:
        return [key for key in self.network if key not in self.file and not key.endswith(_COUNTER)]

    @property
    def unexpected(self) -> list[str]:
        return [key for key in self.file if key not in self.network and not key.endswith(_COUNTER)]

    @property
    def misshaped(self) -> list[str]:
        shared = [key for key in self.network if key in self.file]
        return [key for key in shared if self.file[key].shape != self.network[key].shape]

    def shapes(self, key: str) -> str:
        return f"{key} {tuple(self.file[key].shape)} in the file, {tuple(self.network[key].shape)} in the network"


def load_weights(model: nn.Module, checkpoint: Checkpoint, spec: str) -> tuple[str, ...]:
    """Load the weights into the model, all of them; values of another precision are cast.

    Args:
        model: the network, changed in place.
        checkpoint: the opened weights; more names than the network's are taken only where a wrapper saved both.
        spec: what messages call the network.

    Returns:
        Notes on what was left out of the file.

    Raises:
        SourceError: names or shapes differ; says which, the most likely cause and what to do.

    Example:
        >>> from torch import nn
        >>> from speedysnn.assets import asset_path, digits, weights_name
        >>> from speedysnn.errors import SourceError
        >>> from speedysnn.sources import load_weights, open_checkpoint
        >>> opened = open_checkpoint(asset_path(weights_name("avg")))
        >>> load_weights(digits.avg_net(), opened, "the digits network")
        ()
        >>> try:
        ...     load_weights(digits.avg_net(num_classes=5), opened, "a network")
        ... except SourceError as error:
        ...     print(str(error).rpartition(". ")[2])
        The checkpoint has 10 classes and the network 5: pass --num-classes 10
    """
    network = model.state_dict()
    weights, notes = _inner(_renamed(checkpoint.weights, network), network)
    try:
        model.load_state_dict(weights)
    except RuntimeError as err:
        mismatch = _Mismatch(weights, network)
        if mismatch.missing or mismatch.unexpected or mismatch.misshaped:
            raise SourceError(_message(mismatch, checkpoint, spec)) from None
        try:
            model.load_state_dict(weights, strict=False)
        except RuntimeError:
            reason = " ".join(str(err).split())
            raise SourceError(f"checkpoint {checkpoint.path} does not load into {spec}: {reason}") from err
    return notes


def _inner(weights: dict[str, Tensor], network: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The network inside a wrapper's weights, as a LightningModule saves them: all of its names behind one prefix.

    Taken only where every name of the network is there, and nothing of it is without the prefix.
    """
    needed = {key for key in network if not key.endswith(_COUNTER)}
    if needed <= weights.keys():
        return weights, ()
    for prefix in dict.fromkeys(f"{key.partition('.')[0]}." for key in weights):
        inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        others = [key for key in weights if not key.startswith(prefix)]
        if needed <= inner.keys() and not needed & set(others):
            left = f"; left out {len(others)} others ({some(others)})" if others else ""
            return inner, (f"took the names behind {prefix!r}{left}",)
    return weights, ()


def _renamed(weights: dict[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put back a prefix that reading removed where it is the network's own."""
    if weights.keys() & network.keys():
        return weights
    bare, removed = strip_prefixes(network)
    if not weights.keys() & bare.keys():
        return weights
    return {"".join(removed) + key: value for key, value in weights.items()}


def _message(mismatch: _Mismatch, checkpoint: Checkpoint, spec: str) -> str:
    parts = [
        f"{len(keys)} {what} ({some(keys)})"
        for what, keys in (("missing", mismatch.missing), ("unexpected", mismatch.unexpected))
        if keys
    ]
    if mismatch.misshaped:
        shown = some([mismatch.shapes(key) for key in mismatch.misshaped], 2)
        parts.append(f"{len(mismatch.misshaped)} of another shape ({shown})")
    cause = next(filter(None, (find(mismatch) for find in _CAUSES)))
    return f"checkpoint {checkpoint.path} does not fit {spec}: {'; '.join(parts)}. {cause}"


def _other_classes(mismatch: _Mismatch) -> str:
    """Shapes differ in the first dimension alone, and everywhere in the same way: another number of classes."""
    if mismatch.missing or mismatch.unexpected:
        return ""
    sizes = set()
    for key in mismatch.misshaped:
        ours, theirs = mismatch.network[key].shape, mismatch.file[key].shape
        if ours[1:] != theirs[1:] or not ours or not theirs:
            return ""
        sizes.add((theirs[0], ours[0]))
    if len(sizes) != 1:
        return ""
    file, network = sizes.pop()
    return f"The checkpoint has {file} classes and the network {network}: pass --num-classes {file}"


def _no_common_name(mismatch: _Mismatch) -> str:
    if mismatch.file.keys() & mismatch.network.keys():
        return ""
    return (
        f"No name is in both (the file begins with {next(iter(mismatch.file))!r}, the network with "
        f"{next(iter(mismatch.network), 'nothing')!r}): the checkpoint is of another network, or of the same one "
        "written with other names; give the code it was trained with as 'FILE.py:FUNCTION'"
    )


def _prefix_in_part(mismatch: _Mismatch) -> str:
    for prefix in PREFIXES:
        bare = {key.removeprefix(prefix) for key in mismatch.unexpected if key.startswith(prefix)}
        if bare and bare & set(mismatch.missing):
            return (
                f"The network's names are in the file behind {prefix!r}, beside other ones: "
                "save the weights of the network alone, as in torch.save(wrapper.model.state_dict(), 'weights.pth')"
            )
    return ""


def _other_variant(mismatch: _Mismatch) -> str:
    shared = len(mismatch.file.keys() & mismatch.network.keys()) - len(mismatch.misshaped)
    return (
        f"{shared} of the network's {len(mismatch.network)} entries fit, so this is another variant of it (depth, "
        "width, extra heads, batch-norm or biases); build the one the checkpoint was trained with"
    )


_CAUSES: tuple[Callable[[_Mismatch], str], ...] = (_other_classes, _prefix_in_part, _no_common_name, _other_variant)
