"""The package's errors: one base class; a message says what was expected, what came, where, and what to do."""

LONGEST = 1500  # characters of one line


class SpeedySNNError(Exception):
    """Base of every error this package raises on purpose; what a file put into it cannot garble or flood a terminal."""

    def __str__(self) -> str:
        """The message: control characters escaped, the middle of very long lines left out."""
        return "\n".join(map(_fit, super().__str__().split("\n")))


def _fit(line: str) -> str:
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


class InputError(SpeedySNNError, ValueError):
    """An argument, tensor or command-line value is not what was expected."""


class SizeError(InputError):
    """An input has another size than the one to which the network was fixed."""


class DataError(SpeedySNNError):
    """A data source is missing, empty, of the wrong shape, or holds NaN or infinity."""


class SourceError(SpeedySNNError):
    """A network or checkpoint could not be loaded."""


class ConversionError(SpeedySNNError):
    """A network holds parts that cannot be converted; the message lists all of them."""


class ArtifactError(SpeedySNNError):
    """A saved network is missing, damaged, of another version, or in the way of a new one."""


class TrainingError(SpeedySNNError):
    """Fine-tuning cannot start, continue or resume."""
