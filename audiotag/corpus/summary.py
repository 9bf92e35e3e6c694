"""What a run over a corpus has done: counted as parts come in, shown on the terminal, returned at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..runs.progress import tell
from ..text import clock

MOST_TOLD = 100  # failures named on stderr; the output names all


@dataclass
class Summary:
    """What a run has done.

    Attributes
    ----------
    output : str
    parts, parts_before : int
        Of the plan, done by this run and by earlier ones.
    files, rows, failed, crashed : int
        Recordings, their rows (a long recording has several), rows with an error, and of these the ones whose reading
        kills the process; by this run.
    audio_s : float
        Seconds of audio worked through by this run.
    elapsed_s : float
        Wall time in seconds, without start-up and listing.
    """

    output: str
    parts: int = 0
    parts_before: int = 0
    files: int = 0
    rows: int = 0
    failed: int = 0
    crashed: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, done: dict[str, Any]) -> None:
        """Count a part."""
        self.parts += 1
        for name in ("files", "rows", "failed", "crashed", "audio_s"):
            setattr(self, name, getattr(self, name) + done[name])


@dataclass
class Reporter:
    """Tells the person at the terminal, on stderr: errors, and, unless `quiet`, warnings, progress and a closing line.

    silent: nothing at all.
    """

    summary: Summary
    quiet: bool = False
    silent: bool = False
    told: int = 0
    _bar: Any = None
    _started: float = 0.0
    _before_s: float = 0.0  # of work begun earlier

    def finding(self, found: Iterable[Any]) -> Iterable[Any]:
        """Pass files on, counted on the terminal if finding them takes long."""
        return tqdm(found, desc="finding files", unit=" files", leave=False, delay=1.0, disable=not self._terminal)

    @property
    def _terminal(self) -> bool:
        return sys.stderr.isatty() and not (self.quiet or self.silent)

    def start(self, weight: float, before: float) -> None:
        """Show progress through work of this weight, of which so much was done before."""
        self._started, self._before_s = time.monotonic(), self.summary.elapsed_s
        self.close()
        if self._terminal:
            form = "{desc} |{bar}| {percentage:3.0f}%{postfix} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=weight, initial=before, bar_format=form, leave=False, dynamic_ncols=True)

    def done(self, part: dict[str, Any]) -> None:
        """Count a committed part, and tell what failed in it."""
        summary = self.summary
        summary.add(part)
        summary.elapsed_s = self._before_s + time.monotonic() - self._started
        lines = [f"error: {error}" for error in part["errors"]]
        lines += [] if self.quiet else [f"warning: {warning}" for warning in part["warnings"]]
        for line in lines[: max(0, MOST_TOLD - self.told)]:
            self.tell(line)
        if self.told < MOST_TOLD <= self.told + len(lines):
            self.tell("what else fails is in the output only, in the columns status, error and warnings")
        self.told += len(lines)
        if self._bar is not None:
            failed = f", {summary.failed:,} failed" if summary.failed else ""
            speed = summary.audio_s / max(summary.elapsed_s, 1e-9)
            self._bar.set_description_str(f"{summary.files:,} files", refresh=False)
            self._bar.set_postfix_str(
                f"{summary.audio_s / 3600:,.2f} h of audio, {speed:,.0f}x real time{failed}", refresh=False
            )
            self._bar.update(part["weight"])

    def tell(self, message: str) -> None:
        """Write a line on stderr, above the progress bar."""
        if not self.silent:
            tell(message)

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self) -> None:
        """Say how it went in one line."""
        self.close()
        if self.quiet:
            return
        done = self.summary
        parts = [f"{done.files:,} file{'s' if done.files != 1 else ''}"]
        if done.parts_before:
            parts.append(f"{done.parts_before:,} parts of the plan done before")
        if done.failed:
            parts.append(f"{done.failed:,} failed" + (f" ({done.crashed:,} crashed)" if done.crashed else ""))
        took = f"{clock(done.audio_s, decimals=0)} of audio in {clock(done.elapsed_s)}"
        if done.elapsed_s and done.audio_s:
            took += f", {done.audio_s / done.elapsed_s:,.0f}x real time"
        self.tell(", ".join([*parts, took]) + f" -> {done.output}")
