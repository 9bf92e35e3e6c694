"""Records: what is written about one recording, as plain JSON-ready dictionaries, and the rows of tables made of them.

A record has ``source`` and either ``tags``, ``events`` or ``error``; a recording that failed is a record too, so that
an output names every input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InvalidInputError
from ..results.prediction import Prediction
from ..text import printable

Record = Mapping[str, Any]

KINDS = ("tags", "events")
# Columns of tables, with the type of what is in them.
COLUMNS: dict[str, dict[str, type]] = {
    "tags": {
        "source": str,
        "start_s": float,
        "end_s": float,
        "label": str,
        "score": float,
        "index": int,
        "mid": str,
        "error": str,
    },
    "events": {
        "source": str,
        "onset_s": float,
        "offset_s": float,
        "label": str,
        "peak": float,
        "mean": float,
        "index": int,
        "mid": str,
        "error": str,
    },
}


def tag_record(prediction: Prediction, **options: Any) -> dict[str, Any]:
    """Record of a recording's tags; `options` are those of `Prediction.to_dict`."""
    return prediction.to_dict(**options)


def event_record(prediction: Prediction, **options: Any) -> dict[str, Any]:
    """Record of a recording's events; `options` are those of `Prediction.events`."""
    record = prediction.describe()
    record["events"] = [event.to_dict() for event in prediction.events(**options)]
    return record


def error_record(source: str, error: BaseException) -> dict[str, Any]:
    """Record of a recording that failed: what kind of error, and its message."""
    return {"source": printable(source), "error": printable(str(error)), "error_type": type(error).__name__}


def kind_of(record: Record) -> str:
    """``tags``, ``events`` or ``error``.

    Raises
    ------
    InvalidInputError
        The record has none of them, or no source.
    """
    for kind in ("error", *KINDS):
        if kind in record and "source" in record:
            return kind
    raise InvalidInputError(f"a record has source and tags, events or error; got {', '.join(record) or 'nothing'}")


def rows(record: Record, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of a table, with the keys of ``COLUMNS[kind]``; what a row does not have is None.

    One row per tag, of each window where the record has windows and else of the clip; or one per event; or one
    with the error. A recording in which nothing was found has no row.
    """
    empty = dict.fromkeys(COLUMNS[kind])
    source = record["source"]
    if kind_of(record) == "error":
        yield {**empty, "source": source, "error": record["error"]}
    elif kind == "events":
        for event in record["events"]:
            yield {**empty, "source": source, **event}
    else:
        whole = {"start_s": 0.0, "end_s": record["duration_s"], "tags": record["tags"]}
        for window in record.get("windows", [whole]):
            for tag in window["tags"]:
                yield {**empty, "source": source, "start_s": window["start_s"], "end_s": window["end_s"], **tag}
