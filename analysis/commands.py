"""Advice as data: what was found, the Python call that acts on it, and the command that does the same."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NET, DATA = "NET.snn", "DATA"  # in commands, until the command line puts in the real ones


@dataclass(frozen=True)
class CommandNames:
    """The names that a command is filled with.

    Attributes:
        net: the network's file.
        data: the data's spec.
        source: the source network's file.
        options: option -> value that the measurement was made with; a command that sets one itself keeps its own.
    """

    net: str = NET
    data: str = DATA
    source: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """One finding and, where something can be done about it, how.

    Attributes:
        text: whole sentences: what was measured, and what to do.
        python: the call that does it, "" where there is none.
        argv: the command of the command line that does it, word by word, as `subprocess.run` takes it; empty where
            there is none. Until names are filled in it reads the network `NET` and the data `DATA`.
    """

    text: str
    python: str = ""
    argv: tuple[str, ...] = ()

    @property
    def shell(self) -> str:
        """The command as a shell takes it; "" where there is none."""
        return shlex.join(self.argv)

    def sentence(self) -> str:
        """Everything in one paragraph of plain text."""
        parts = [self.text]
        if self.python:
            parts.append(f"In Python: {self.python}.")
        if self.argv:
            parts.append(f"In the shell: {self.shell}.")
        return " ".join(parts)

    def after(self, fact: str) -> "Advice":
        """The same advice with the fact that leads to it in front."""
        return replace(self, text=f"{fact} {self.text}")

    def filled(self, names: CommandNames) -> "Advice":
        """The same advice with the real names and options in its command."""
        if not self.argv:
            return self
        program, command, _, _, _, *own = self.argv  # as `command_words` puts them
        given = {"-d": names.data} | ({} if names.source is None else {"--source": names.source})
        given |= {key: value for key, value in names.options.items() if key not in own}
        carried = [word for pair in given.items() for word in pair]
        return replace(self, argv=(program, command, names.net, *carried, *own))

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"text": self.text, "python": self.python, "argv": list(self.argv)}


def command_words(command: str, *options: str) -> tuple[str, ...]:
    """A command on the network and its data, word by word."""
    return ("speedysnn", command, NET, "-d", DATA, *options)


def filled(advice: Iterable[Advice], names: CommandNames) -> tuple[Advice, ...]:
    """All advice with the real names in its commands."""
    return tuple(one.filled(names) for one in advice)


def rendered(advice: Iterable[Advice]) -> tuple[str, ...]:
    """One paragraph of plain text for each advice."""
    return tuple(one.sentence() for one in advice)
