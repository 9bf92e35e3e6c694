"""Records: what is written about one recording, as plain JSON-ready dictionaries, and the rows of tables made of them.

A record has ``source`` and either ``tags``, ``events``, ``vectors`` or ``error``; a recording that failed is a record
too, so that an output names every input.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..text import TURNS, printable, printable_name, shortest

if TYPE_CHECKING:
    from ..results.embeddings import WindowEmbeddings
    from ..results.prediction import Prediction

Record = Mapping[str, Any]

# What a record holds, and the kind of output it goes into.
HELD = {"tags": "tags", "events": "events", "vectors": "embeddings"}
# Columns of tables, with the type of what is in them.
_LABEL = {"index": int, "mid": str, "error": str}
COLUMNS: dict[str, dict[str, type]] = {
    "tags": {"source": str, "start_s": float, "end_s": float, "label": str, "score": float, **_LABEL},
    "events": {
        "source": str,
        "onset_s": float,
        "offset_s": float,
        "label": str,
        "peak": float,
        "mean": float,
        **_LABEL,
    },
    "embeddings": {"source": str, "start_s": float, "end_s": float, "embedding": list, "error": str},
}
# What a terminal acts on, see `printable`; JSON itself asks for escapes below U+0020 only.
UNSAFE = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *map(ord, TURNS))}


def tag_record(prediction: Prediction, **options: Any) -> dict[str, Any]:
    """Make the record of a recording's tags; `options` are those of `Prediction.to_dict`."""
    return prediction.to_dict(**options)


def event_record(prediction: Prediction, **options: Any) -> dict[str, Any]:
    """Make the record of a recording's events; `options` are those of `Prediction.events`."""
    record = prediction.describe()
    record["events"] = [event.to_dict() for event in prediction.events(**options)]
    return record


def embedding_record(source: str, found: WindowEmbeddings, *, per: str) -> dict[str, Any]:
    """Make the record of a recording's embeddings: the mean over its windows, or one vector a window.

    Parameters
    ----------
    found : WindowEmbeddings
    per : {"clip", "window"}
    """
    end_s = float(found.end_s[-1])
    kept = found.vectors.mean(0, keepdims=True) if per == "clip" else found.vectors
    return {
        "source": printable_name(source),
        "duration_s": end_s,
        "vectors": base64.b64encode(np.ascontiguousarray(kept, "<f4").tobytes()).decode("ascii"),
        "start_s": [0.0] if per == "clip" else found.start_s.tolist(),
        "end_s": [end_s] if per == "clip" else found.end_s.tolist(),
        "warnings": list(map(printable, found.warnings)),
    }


def vectors_of(record: Record) -> np.ndarray:
    """Return the vectors in a record: float32 (rows, features)."""
    flat = np.frombuffer(base64.b64decode(record["vectors"]), "<f4")
    return flat.reshape(len(record["start_s"]), -1)


def error_record(source: str, error: BaseException) -> dict[str, Any]:
    """Make the record of a recording that failed: what kind of error, and its message."""
    return {"source": printable_name(source), "error": str(error), "error_type": type(error).__name__}


def kind_of(record: Record) -> str:
    """Return ``tags``, ``events``, ``embeddings`` or ``error``.

    Raises
    ------
    InvalidInputError
        The record has none of them, or no source.
    """
    for key, kind in {"error": "error", **HELD}.items():
        if key in record and "source" in record:
            return kind
    raise InvalidInputError(f"a record has source and {', '.join(HELD)} or error; got {', '.join(record) or 'nothing'}")


def rows(record: Record, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, with the keys of ``COLUMNS[kind]``; what a row does not have is None.

    One row per tag, of each window where the record has windows and else of the clip; or one per event or vector; or
    one with the error. A recording in which nothing was found has no row.
    """
    empty = dict.fromkeys(COLUMNS[kind])
    source = record["source"]
    if kind_of(record) == "error":
        yield {**empty, "source": source, "error": record["error"]}
    elif kind == "events":
        for event in record["events"]:
            yield {**empty, "source": source, **event}
    elif kind == "embeddings":
        for start_s, end_s, vector in zip(record["start_s"], record["end_s"], vectors_of(record), strict=True):
            yield {**empty, "source": source, "start_s": start_s, "end_s": end_s, "embedding": vector}
    else:
        whole = {"start_s": 0.0, "end_s": record["duration_s"], "tags": record["tags"]}
        for window in record.get("windows", [whole]):
            for tag in window["tags"]:
                yield {**empty, "source": source, "start_s": window["start_s"], "end_s": window["end_s"], **tag}


def plain(record: Record, *, per: str = "clip") -> Record:
    """Return a record as JSON shows it: vectors as ``embedding``, or per window as ``windows`` with their times."""
    if "vectors" not in record:
        return record
    vectors = [[shortest(x) for x in row] for row in vectors_of(record)]
    shown = {key: value for key, value in record.items() if key not in ("vectors", "start_s", "end_s")}
    if per == "clip":
        return {**shown, "embedding": vectors[0]}
    windows = zip(record["start_s"], record["end_s"], vectors, strict=True)
    return {**shown, "windows": [dict(zip(("start_s", "end_s", "embedding"), w, strict=True)) for w in windows]}


def dumps(record: Record) -> str:
    """Return one line of strict JSON: no NaN, UTF-8, without characters that a terminal would act on."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(UNSAFE)
