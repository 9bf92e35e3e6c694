"""Options of a corpus run: what is asked of every recording, and how the answer becomes a row of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..outputs.records import event_record, tag_record
from ..results.prediction import Prediction
from ..text import printable
from .items import Item
from .segments import Grid
from .storage import pyarrow

if TYPE_CHECKING:
    from ..results.embeddings import WindowEmbeddings
    from ..tagger import Tagger

KINDS = ("tags", "events", "embeddings")
OK, ERROR, CHANGED, CRASHED = "ok", "error", "changed", "crashed"
EVENTS_HOP_S = 1.0
NUMBERS = ("threshold", "window_s", "hop_s", "on", "off", "min_duration_s", "max_gap_s", "median_s", "segment_s")
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to find out of recordings; the arguments of `audiotag.corpus.run` of the same names.

    Raises
    ------
    InvalidInputError
        Options that do not go together.
    """

    kind: str = "tags"
    top: int | None = 10
    threshold: float | str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    roll_up: bool = False
    windows: bool = False
    window_s: float | None = None
    hop_s: float | None = None
    aggregate: str = "max"
    on: float | str | None = None
    off: float | None = None
    min_duration_s: float = 0.0
    max_gap_s: float = 0.0
    median_s: float = 0.0
    layer: tuple[str, ...] = ("embedding",)
    segment_s: float = 600.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in NUMBERS:  # 10 and 10.0 are the same run
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, float(value))
        if self.kind not in KINDS:
            raise InvalidInputError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 < float(self.segment_s) < float("inf"):
            raise InvalidInputError(f"segment_s must be a positive number of seconds, got {self.segment_s!r}")
        if self.kind == "embeddings" and self.window_s is not None:
            raise InvalidInputError("window_s is for tags and events; embeddings are of the checkpoint's windows")
        if self.kind == "events" and self.windows:
            raise InvalidInputError("windows is for tags and embeddings; events have times of their own")

    @property
    def cuts(self) -> bool:
        """Whether long recordings are cut: an event may lie across any border."""
        return self.kind != "events"

    def grid(self, tagger: Tagger) -> Grid:
        """Lay out the windows that the options ask for."""
        return Grid(*tagger.config.window_and_hop(self.window_s, self._hop_s()), tagger.sample_rate)

    def _hop_s(self) -> float | None:
        return EVENTS_HOP_S if self.hop_s is None and self.kind == "events" else self.hop_s

    def fingerprint(self) -> dict[str, Any]:
        """List what decides the rows, JSON-ready."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def check(self, tagger: Tagger) -> None:
        """Try the options before there is audio.

        Raises
        ------
        InvalidInputError
            What is wrong with them.
        """
        for _ in self.analyse(tagger, [], workers=1, progress=None):
            raise AssertionError
        if self.kind != "embeddings":
            self._record(Prediction.silent(tagger.labels, tagger.thresholds))

    def analyse(
        self, tagger: Tagger, sources: Iterable[Item], *, workers: int, progress: Any
    ) -> Iterator[tuple[Item, Any]]:
        """Yield each item with the tagger's answer, in order."""
        shared: dict[str, Any] = {"batch_size": self.batch_size, "workers": workers, "progress": progress}
        if self.kind == "embeddings":
            return tagger.embed_each(sources, layer=self.layer, hop_s=self.hop_s, **shared)
        return tagger.predict_each(
            sources, hop_s=self._hop_s(), window_s=self.window_s, aggregate=self.aggregate, **shared
        )

    def _record(self, prediction: Prediction) -> dict[str, Any]:
        if self.roll_up:
            prediction = prediction.roll_up()
        labels: dict[str, Any] = {"include": self.include, "exclude": self.exclude}
        if self.kind == "tags":
            return tag_record(prediction, k=self.top, threshold=self.threshold, windows=self.windows, **labels)
        return event_record(
            prediction,
            on=self.on,
            off=self.off,
            min_duration_s=self.min_duration_s,
            max_gap_s=self.max_gap_s,
            median_s=self.median_s,
            **labels,
        )

    def row(self, item: Item, result: Any) -> Row:
        """Make the row of an item that was analysed: scores as of ``audiotag tag``, times in the recording."""
        rate = item.grid.rate_hz
        start = getattr(item.stream, "start", 0)

        def placed(seconds: float) -> float:
            # the sample, and then the same division as in an uncut recording: equal to the last bit
            return (start + round(seconds * rate)) / rate

        row: Row = {"start_s": placed(0.0), "warnings": list(map(printable, result.warnings))}
        if self.kind == "embeddings":
            row["end_s"] = placed(result.end_s[-1])
            row |= self._vectors(result, placed)
        else:
            record = self._record(result)
            row["end_s"] = placed(record["duration_s"])
            if self.kind == "events":
                keys = ("onset_s", "offset_s", "peak", "mean")
                row["events"] = [{"label": e["index"], **{key: e[key] for key in keys}} for e in record["events"]]
            else:
                row["tags"] = _tags(record)
                if self.windows:
                    row["windows"] = [
                        {"start_s": placed(w["start_s"]), "end_s": placed(w["end_s"]), "tags": _tags(w)}
                        for w in record["windows"]
                    ]
        return self._finished(item, row, OK)

    def _vectors(self, result: WindowEmbeddings, placed: Any) -> Row:
        if not self.windows:
            return {"embedding": result.vectors.mean(0).astype(np.float16)}
        return {
            "windows": [
                {"start_s": placed(start_s), "end_s": placed(end_s), "embedding": vector.astype(np.float16)}
                for start_s, end_s, vector in zip(result.start_s, result.end_s, result.vectors, strict=True)
            ]
        }

    def failure(self, item: Item, message: str, status: str = ERROR) -> Row:
        """Make the row of an item that could not be read."""
        stop = item.segment.stop(item.grid)
        start_s = item.segment.start(item.grid) / item.grid.rate_hz
        end_s = stop / item.grid.rate_hz if stop is not None else item.entry.duration_s or None
        return self._finished(item, {"start_s": start_s, "end_s": end_s, "error": printable(message)}, status)

    def _finished(self, item: Item, row: Row, status: str) -> Row:
        whole = item.segment.first == 0 and item.segment.windows is None
        duration_s = row["end_s"] if whole and status == OK else item.entry.duration_s or None
        return {"id": item.id, "uri": item.uri, "duration_s": duration_s, "status": status, **row}

    def schema(self, features: int) -> Any:
        """Describe the output's columns as a `pyarrow.Schema`; `features` is the length of embeddings."""
        arrow = pyarrow()
        double, text = arrow.float64(), arrow.string()
        tags = arrow.list_(arrow.struct({"label": arrow.int16(), "score": arrow.float32()}))
        vector = arrow.list_(arrow.float16(), features)
        found: dict[str, Any]
        if self.kind == "events":
            event = {"label": arrow.int16(), "onset_s": double, "offset_s": double}
            event |= {"peak": arrow.float32(), "mean": arrow.float32()}
            found = {"events": arrow.list_(arrow.struct(event))}
        else:
            one = {"tags": tags} if self.kind == "tags" else {"embedding": vector}
            window = arrow.list_(arrow.struct({"start_s": double, "end_s": double, **one}))
            found = {} if self.windows and self.kind == "embeddings" else dict(one)
            if self.windows:
                found["windows"] = window
        return arrow.schema(
            {
                "id": text,
                "uri": text,
                "start_s": double,
                "end_s": double,
                "duration_s": double,
                "status": text,
                "error": text,
                "warnings": arrow.list_(text),
                **found,
                "model": text,
                "model_digest": text,
                "version": text,
                "run_id": text,
            }
        )


def _tags(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"label": tag["index"], "score": tag["score"]} for tag in record["tags"]]


def table(rows: list[Row], schema: Any) -> Any:
    """Make a `pyarrow.Table` of rows; what a row does not have is null."""
    arrow = pyarrow()
    columns = [arrow.array([_plain(row.get(field.name)) for row in rows], field.type) for field in schema]
    return arrow.table(columns, schema=schema)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, np.ndarray) else value
