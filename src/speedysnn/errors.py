"""The package's errors: one base class; a message says what was expected, what came, where, and what to do."""


class SpeedySNNError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(SpeedySNNError, ValueError):
    """An argument, tensor or command-line value is not what was expected."""


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
