"""The commands that a verdict names, and their filling with the network's and the data's own names."""

import re
import shlex
from collections.abc import Iterable, Mapping

NET, DATA = "NET.snn", "DATA"  # in commands, until the command line puts in the real ones
_WORD = r"\w[\w:=-]*(?:[.,]\w[\w:=-]*)*"  # a comma or a point ends a sentence's command unless a word goes on after it
_COMMAND = re.compile(rf"(?P<head>speedysnn [a-z]+) {re.escape(NET)} -d {DATA}(?P<own>(?: -[\w-]+(?: {_WORD})?)*)")


def shell(text: str) -> str:
    """A command to type, behind the words that say so."""
    return f"In the shell: {command(text)}"


def command(text: str) -> str:
    """A command of the command line; {net} and {data} stand for the network and its data."""
    return f"speedysnn {text.format(net=NET, data=DATA)}"


def named(
    sentences: Iterable[str], net: str, data: str, source: str | None = None, options: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Sentences of a verdict with the network's, the data's and the source network's own names in their commands.

    Args:
        sentences: of a verdict.
        net: the network's file.
        data: the data's spec.
        source: the source network's file.
        options: option -> value that the measurement was made with; a command that sets one itself keeps its own.
    """
    given = {"-d": data, **({} if source is None else {"--source": source})}

    def filled(match: re.Match[str]) -> str:
        own = match["own"].split()
        carried = given | {key: value for key, value in (options or {}).items() if key not in own}
        words = " ".join(f"{key} {shlex.quote(value)}" for key, value in carried.items())
        return f"{match['head']} {shlex.quote(net)} {words}{match['own']}"

    return tuple(_COMMAND.sub(filled, sentence) for sentence in sentences)
