"""How scores, times and names are written for people and for machines."""

from __future__ import annotations

import html
import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BAR_COLUMNS = 20
# Unicode's controls of the direction of writing: what follows one is shown in another order than it is read.
TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def shortest(score: np.floating | float) -> float:
    """Return the shortest decimal that reads back as the same float32: 0.1 rather than 0.10000000149011612."""
    import numpy as np

    return float(str(np.float32(score)))


def bar(score: float, columns: int, *, blocks: bool = True) -> str:
    """Draw a bar for a score in [0, 1], full at `columns` columns; in eighths of a column with block characters."""
    score = min(max(score, 0.0), 1.0)
    if not blocks:
        return "#" * round(score * columns)
    full, eighths = divmod(round(score * columns * 8), 8)
    return "█" * full + ("▏▎▍▌▋▊▉"[eighths - 1] if eighths else "")


def clock(seconds: float, *, decimals: int = 1, hours: bool = False) -> str:
    """Write a time as ``m:ss.s``, with hours before where there are any, or always if `hours`."""
    ticks = round(seconds * 10**decimals)
    whole, fraction = divmod(ticks, 10**decimals)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    tail = f".{fraction:0{decimals}d}" if decimals else ""
    return f"{hour}:{minute:02d}:{second:02d}{tail}" if hour or hours else f"{minute}:{second:02d}{tail}"


def printable(text: str) -> str:
    r"""Write a text on one line that any encoding of Unicode can hold and that no terminal takes for a command.

    Control characters such as a newline become ``\n``, those that turn the direction of writing ``\u202e``, bytes of a
    file name that are not UTF-8 ``\xff``. Doing it twice changes nothing, so a backslash stays as it is.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_name(name: str) -> str:
    r"""Write a file name as `printable` does, and so that no two names look alike: a backslash in it becomes ``\\``.

    On Windows, where it parts folders and no name has control characters, it stays as it is.
    """
    return printable(name if os.sep == "\\" else name.replace("\\", "\\\\"))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and character not in TURNS:
        return character
    return character.encode("unicode_escape").decode() if code < 0x80 else f"\\u{code:04x}"


def columns(text: str) -> int:
    """Count the columns a text takes on a terminal: two for wide characters, none for combining ones."""
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int, *, ellipsis: str = "…") -> str:
    """Fill a text up with spaces, or cut it and mark it as cut, to exactly `width` columns."""
    wide = columns(text)
    if wide > width:
        ends = itertools.accumulate(map(_columns_of, text))
        text = text[: sum(end <= width - len(ellipsis) for end in ends)] + ellipsis
        wide = columns(text)
    return text + " " * (width - wide)


def text_table(
    heading: str,
    rows: Sequence[tuple[str, float]],
    warnings: Iterable[str] = (),
    *,
    width: int | None = None,
    blocks: bool = True,
) -> str:
    """Write a heading, and under it names with their scores and bars, aligned.

    Parameters
    ----------
    rows : sequence of (name, score in [0, 1])
    width : int, optional
        Columns of the terminal; bars go first where they do not fit, then names are cut. None: no limit.
    blocks : bool
        Whether the terminal can write block characters.
    """
    rows = [(printable(name), score) for name, score in rows]
    number, indent, space = len("0.000"), 2, 2
    names = max((columns(name) for name, _ in rows), default=0)
    bars = BAR_COLUMNS
    if width is not None:
        names = max(min(names, width - indent - space - number), 1)
        bars = max(min(bars, width - indent - names - 2 * space - number), 0)
    ellipsis = "…" if blocks else "~"
    lines = [heading, *(f"  warning: {warning}" for warning in warnings)]
    for name, score in rows:
        lines.append(
            f"  {fit(name, names, ellipsis=ellipsis)}  {score:.3f}  {bar(score, bars, blocks=blocks)}".rstrip()
        )
    return "\n".join(lines)


def html_table(heading: str, rows: Sequence[tuple[str, float]], warnings: Iterable[str] = ()) -> str:
    """Write the same as HTML for a notebook; everything in it is escaped."""
    left = 'style="text-align:left"'
    body = "".join(
        f"<tr><td {left}>{html.escape(name)}</td><td>{score:.3f}</td><td {left}>"
        f'<div style="background:#4c72b0;height:0.8em;width:{score * 12:.2f}em"></div></td></tr>'
        for name, score in rows
    )
    notes = "".join(f"<div>warning: {html.escape(warning)}</div>" for warning in warnings)
    return f"<div><div>{html.escape(heading)}</div>{notes}<table>{body}</table></div>"
