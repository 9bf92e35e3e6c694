"""Annotations that other programs open beside a recording: Audacity labels, Raven selection tables, WebVTT."""

from __future__ import annotations

import os
from typing import IO

from ..errors import InvalidInputError
from .formats import About
from .records import Record, kind_of
from .writers import Writer


class OneRecordingWriter(Writer):
    """Base of the formats that know one recording only; an error leaves nothing but the empty form of the format."""

    header = ""

    def __init__(self, file: IO[str], about: About) -> None:
        super().__init__(file, about)
        self._source: str | None = None
        file.write(self.header)

    def write(self, record: Record) -> None:
        if self._source is not None:
            raise InvalidInputError(
                f"this format holds one recording a file: {self._source} is in it, {record['source']} cannot be; "
                "write to a folder, or choose jsonl, csv or parquet"
            )
        self._source = record["source"]
        if kind_of(record) != "error":
            for number, event in enumerate(record["events"], 1):
                self._file.write(self.line(number, event, record))

    def line(self, number: int, event: Record, record: Record) -> str:
        """Make the text of an event; `number` counts from 1."""
        raise NotImplementedError


class AudacityWriter(OneRecordingWriter):
    """Audacity label track: onset, offset and label separated by tabs, decimal points, UTF-8, no header."""

    def line(self, number: int, event: Record, record: Record) -> str:
        return f"{event['onset_s']:.6f}\t{event['offset_s']:.6f}\t{_one_line(event['label'])}\n"


class RavenWriter(OneRecordingWriter):
    """Raven selection table: Raven's seven columns, then label and scores as annotations, and the file.

    The box of a selection spans the frequencies that the checkpoint's log-mel holds; a label has none of its own.
    """

    header = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
        "Annotation\tPeak Score\tMean Score\tBegin Path\n"
    )

    def line(self, number: int, event: Record, record: Record) -> str:
        # Raven opens the sound along with the table if it finds it there.
        path = os.path.abspath(record["source"]) if os.path.exists(record["source"]) else record["source"]
        return (
            f"{number}\tSpectrogram 1\t1\t{event['onset_s']:.6f}\t{event['offset_s']:.6f}\t0.000\t"
            f"{self._about.fmax_hz:.3f}\t"
            f"{_one_line(event['label'])}\t{event['peak']:.4f}\t{event['mean']:.4f}\t{path}\n"
        )


class WebVttWriter(OneRecordingWriter):
    """WebVTT: a cue per event with label and peak score, for players that show subtitles or chapters."""

    header = "WEBVTT\n"

    def line(self, number: int, event: Record, record: Record) -> str:
        onset, offset = round(event["onset_s"] * 1000), round(event["offset_s"] * 1000)
        # A cue must end after it starts.
        times = f"{_vtt_time(onset)} --> {_vtt_time(max(offset, onset + 1))}"
        label = _one_line(event["label"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"\n{number}\n{times}\n{label} ({event['peak']:.2f})\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _vtt_time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
