"""What a run says while it works, on stderr: errors, warnings, progress, a closing line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..text import clock, printable
from .inputs import Input
from .plan import Entry, Plan, weight


def tell(message: str, *more: str) -> None:
    """Write a line, and `more` below it, on stderr, above a progress bar; where it cannot be written, it is lost."""
    tqdm = sys.modules.get("tqdm")  # where it was never imported there is no bar
    above = contextlib.nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=sys.stderr)
    with contextlib.suppress(OSError, ValueError), above:
        print("\n".join([f"audiotag: {printable(message)}", *map(printable, more)]), file=sys.stderr, flush=True)


@dataclass
class Tally:
    """Counts of what a run has done so far."""

    inputs: int = 0
    failed: int = 0
    audio_s: float = 0.0
    before: int = 0  # of the inputs, how many an earlier run had done
    before_s: float = 0.0  # of the audio
    started: float = field(default_factory=time.monotonic)

    def add(self, entry: Entry) -> None:
        """Count an input that is done."""
        self.inputs += 1
        self.failed += entry.failed
        self.audio_s += entry.duration_s

    @property
    def exit_code(self) -> int:
        """1 if an input failed, else 0."""
        return 1 if self.failed else 0


class Reporter:
    """Tells the person at the terminal: errors, warnings, progress and a closing line, all on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.tally = Tally()
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._bar: Any = None
        self._total = 0
        self._part = 0  # how much of the input being worked on the bar shows

    def finding(self, inputs: Iterable[Input]) -> Iterable[Input]:
        """Pass inputs on, counted on the terminal if finding them takes long."""
        if not self._terminal:
            return inputs
        from tqdm import tqdm

        return tqdm(inputs, desc="finding files", unit=" files", leave=False, delay=1.0)

    def start(self, plan: Plan) -> None:
        """Show progress through these inputs, if there are several or it is a long one."""
        self._total = plan.inputs
        if self._terminal:
            from tqdm import tqdm

            form = "{desc} |{bar}| {percentage:3.0f}%{postfix} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=plan.size_bytes, bar_format=form, leave=False, delay=0.5, dynamic_ncols=True)

    def before(self, item: Input, entry: Entry | None) -> None:
        """Count an input that an earlier run had done."""
        self.tally.before += 1
        if entry is None:
            self.tally.inputs += 1
        else:
            self.tally.add(entry)
            self.tally.before_s += entry.duration_s
        if self._bar is not None:
            self._bar.initial += weight(item)
            self._bar.n += weight(item)

    def done(self, item: Input, entry: Entry) -> None:
        """Count an input that is done now; say what failed or was not as it should be."""
        self.tally.add(entry)
        if entry.failed:
            tell(f"error: {entry.record['error']}")
        elif not self._quiet:
            for warning in entry.record["warnings"]:
                tell(f"warning: {warning}")
        self._show(weight(item), 0.0)
        self._part = 0

    def part(self, item: Input, done_s: float, expected_s: float) -> None:
        """Show how many seconds of an input are done, of those that it seems to have."""
        self._show(int(weight(item) * min(done_s / expected_s, 1.0)), done_s)

    def _show(self, part: int, part_s: float) -> None:
        if self._bar is None:
            return
        tally = self.tally
        speed = (tally.audio_s + part_s - tally.before_s) / max(time.monotonic() - tally.started, 1e-9)
        self._bar.set_description_str(f"{tally.inputs:,}/{self._total:,} files", refresh=False)
        hours = (tally.audio_s + part_s) / 3600
        self._bar.set_postfix_str(f"{hours:.2f} h of audio, {speed:.0f}x real time", refresh=False)
        self._bar.update(part - self._part)
        self._part = part

    def summary(self, output: str | None) -> None:
        """Say how it went in one line."""
        self.close()
        tally = self.tally
        if self._quiet or (self._total == 1 and output is None):
            return
        elapsed = time.monotonic() - tally.started
        parts = [f"{tally.inputs:,} file{'s' if tally.inputs != 1 else ''}"]
        if tally.before:
            parts.append(f"{tally.before:,} done before")
        if tally.failed:
            parts.append(f"{tally.failed:,} failed")
        parts.append(f"{clock(tally.audio_s, decimals=0)} of audio in {clock(elapsed)}")
        tell(", ".join(parts) + (f" -> {output}" if output else ""))

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
