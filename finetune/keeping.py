"""Which epoch's state a stage keeps."""

from collections.abc import Mapping

from speedysnn.errors import InputError

KEEPS = ("loss", "agreement", "accuracy", "last")
_OVER = 100.0  # a state within the budget is better than any above it
_TIE = 1e-6  # of the loss, which decides between states of equal agreement or accuracy


def score(keep: str, held_out: Mapping[str, float | None], epoch: int, over: float) -> float:
    """Higher is better: minus the held-out loss, the agreement, the accuracy, or the epoch; less 100 times `over`.

    Args:
        keep: one of KEEPS.
        held_out: held_out_loss, held_out_agreement and held_out_accuracy.
        epoch: its number.
        over: share by which the spikes exceed their budget.

    Raises:
        InputError: accuracy without labels in the held-out part, agreement without a teacher.
    """
    loss = held_out["held_out_loss"]
    assert loss is not None
    figure: float | None
    if keep == "loss":
        figure = -loss
    elif keep == "last":
        figure = float(epoch)
    else:
        figure = held_out[f"held_out_{keep}"]
        if figure is None:
            lack = "the held-out images have no labels" if keep == "accuracy" else "the objective is labels, no teacher"
            raise InputError(f"keep: expected 'loss' or 'last', got {keep!r}: {lack}")
        figure -= _TIE * loss
    return figure - _OVER * over
