"""What a notebook shows for a network, a noise report or a run: a line of facts and a table, all text escaped."""

from collections.abc import Sequence
from html import escape

import pandas as pd


def block(title: str, sentences: Sequence[str], table: pd.DataFrame, most: int = 40) -> str:
    """HTML of a title, sentences and the first `most` rows of a table; numbers to four digits."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    shown = table.head(most).to_html(index=False, escape=True, border=0, na_rep="-", float_format="{:.4g}".format)
    left = len(table) - most
    more = f"<p>and {left} more rows</p>" if left > 0 else ""
    return f"<div><strong>{escape(title)}</strong>{lines}{shown}{more}</div>"
