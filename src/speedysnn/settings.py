"""Everything that a user may set for the process: each setting once, with its environment variable and its default.

A value comes from the innermost `using` block, else from an assignment (`settings.events = "never"`), else from the
environment, else it is the default. Blocks hold for the thread that enters them and for the threads that the package
starts from there, which copy its context; an assignment holds for the whole process.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from speedysnn.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        variable: of the environment.
        default: the value where nothing was set.
        choices: the values it may have; empty where `parse` decides.
        expected: the same in words.
        parse: the value of what was given in Python or in the environment; raises ValueError or TypeError.
        lenient: a word of the environment that is none of the values is passed over.
    """

    variable: str
    default: Any
    choices: tuple[str, ...] = ()
    expected: str = ""
    parse: Callable[[Any], Any] = str
    lenient: bool = False

    def read(self, name: str, given: Any, where: str) -> Any:
        """The value of what was given.

        Raises:
            InputError: it is none of the setting's values.
        """
        try:
            value = self.parse(given)
        except (ValueError, TypeError):
            value = None
        if value is None or (self.choices and value not in self.choices):
            expected = self.expected or f"one of {', '.join(self.choices)}"
            raise InputError(f"{where}: expected {expected}, got {given!r}")
        return value

    def from_environment(self, name: str) -> Any:
        """The variable's value, or the default where it is unset or empty."""
        given = os.environ.get(self.variable, "")
        if not given:
            return self.default
        try:
            return self.read(name, given, f"the environment variable {self.variable}")
        except InputError:
            if self.lenient:
                return self.default
            raise


def _positive(given: Any) -> int | None:
    number = int(given)
    return number if number > 0 and not isinstance(given, bool | float) else None


def _flag(given: Any) -> bool:
    return given if isinstance(given, bool) else str(given) not in ("", "0")


def _text(given: Any) -> str | None:
    return os.fspath(given) or None


SETTINGS: Mapping[str, Setting] = {
    "events": Setting("SPEEDYSNN_EVENTS", "fixed", ("fixed", "measure", "never", "always")),
    "tiles": Setting("SPEEDYSNN_TILES", "never", ("never", "measure", "always")),
    "images_per_pass": Setting(
        "SPEEDYSNN_IMAGES_PER_PASS", None, (), "a whole number of at least 1", _positive, lenient=True
    ),
    "kernel": Setting("SPEEDYSNN_KERNEL", None, (), "the name of a neuron's backend, such as 'reference'", _text),
    "cache": Setting("SPEEDYSNN_CACHE", None, (), "a folder", _text),
    "data": Setting("SPEEDYSNN_DATA", None, (), "a folder", _text),
    "allocator": Setting("SPEEDYSNN_ALLOCATOR", "keep", ("keep", "system"), lenient=True),
    "debug": Setting("SPEEDYSNN_DEBUG", False, (), "True or False", _flag),
}
"""By name:

events: which convolutions multiply spikes only. "fixed": by the table of `speedysnn.execution.sparse_conv`, the same on
    every machine of a kind; "measure": what a stopwatch found faster on this machine, without gradients alone;
    "never"; "always".
tiles: dense 3 x 3 convolutions by Winograd's tiles. "never"; "always": wherever the shape allows; "measure": where a
    stopwatch found them faster, without gradients alone.
images_per_pass: images that run at once; None for what fits the caches.
kernel: the neuron's backend; None for the fastest that takes a call.
cache: the folder of compiled kernels; None for the user's own cache folder.
data: a folder that holds data sets; None for the present one.
allocator: whether the command line keeps freed memory, or leaves it to the C library ("system").
debug: whether the command line shows where an error arose.
"""

_REPEATABLE = {"events": "fixed", "tiles": "never"}  # in the place of "measure"
_process: dict[str, Any] = {}
_block: ContextVar[Mapping[str, Any]] = ContextVar("speedysnn_settings", default=_process)


def get(name: str) -> Any:
    """The present value of a setting.

    Args:
        name: of `SETTINGS`.

    Returns:
        Its value: of the innermost block, the process, the environment, or the default, in this order.

    Raises:
        InputError: no such setting, or the environment holds a value that it cannot have.

    Example:
        >>> from speedysnn import settings
        >>> with settings.using(events="never"):
        ...     settings.get("events")
        'never'
    """
    inner = _block.get()
    if name in inner:
        return inner[name]
    if name in _process:
        return _process[name]
    return _known(name).from_environment(name)


def change(**values: Any) -> None:
    """Set settings for the whole process; None gives one back to the environment.

    Args:
        values: by name; see `SETTINGS`.

    Raises:
        InputError: no such setting or value.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    for name, value in checked.items():
        if values[name] is None:
            _process.pop(name, None)
        else:
            _process[name] = value


@contextmanager
def using(**values: Any) -> Iterator[None]:
    """Set settings inside the block, in this thread and in those that the package starts from it.

    Args:
        values: by name; see `SETTINGS`. None stands for what the environment says.

    Raises:
        InputError: no such setting or value.

    Example:
        >>> from speedysnn import settings
        >>> with settings.using(events="never", images_per_pass=8):
        ...     settings.events, settings.images_per_pass
        ('never', 8)
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    token = _block.set({**_block.get(), **checked})
    try:
        yield
    finally:
        _block.reset(token)


def repeatable(function: Callable[P, R]) -> Callable[P, R]:
    """The function with a rule in the place of every stopwatch, so that the same call gives the same bits."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        fixed = {name: rule for name, rule in _REPEATABLE.items() if get(name) == "measure"}
        with using(**fixed):
            return function(*args, **kwargs)

    return call


def execution() -> dict[str, str]:
    """The settings that decide in which order numbers are summed, as JSON data for a record of what ran.

    Returns:
        "events", "tiles" and "kernel" ("fastest" where none was asked for).

    Example:
        >>> from speedysnn import settings
        >>> with settings.using(events="never", tiles="never", kernel="reference"):
        ...     settings.execution()
        {'events': 'never', 'tiles': 'never', 'kernel': 'reference'}
    """
    return {"events": get("events"), "tiles": get("tiles"), "kernel": get("kernel") or "fastest"}


def _known(name: str) -> Setting:
    if name not in SETTINGS:
        raise InputError(f"unknown setting {name!r}: expected one of {', '.join(SETTINGS)}")
    return SETTINGS[name]


def _checked(name: str, value: Any) -> Any:
    setting = _known(name)
    return setting.from_environment(name) if value is None else setting.read(name, value, f"settings.{name}")


class _Settings(ModuleType):
    """This module, whose settings are read and set as attributes: a plain module takes any word without a sound."""

    def __getattr__(self, name: str) -> Any:
        """A setting's present value."""
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return get(name)
        except InputError as err:
            if name in SETTINGS:
                raise
            raise AttributeError(str(err)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a setting for the process; unknown names raise InputError."""
        if name.startswith("_") or name in self.__dict__:  # the import system's own, and what tests replace
            super().__setattr__(name, value)
        else:
            change(**{name: value})


if not isinstance(sys.modules[__name__], _Settings):
    sys.modules[__name__].__class__ = _Settings


def __getattr__(name: str) -> Any:  # for type checkers, which do not follow the class
    return _Settings.__getattr__(sys.modules[__name__], name)  # type: ignore[arg-type]
