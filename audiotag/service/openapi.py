"""openapi.json: the service described, made of the same options that requests are parsed with."""

from __future__ import annotations

from typing import Any

from ..version import __version__
from . import options as opts
from .limits import Limits

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_PROBLEMS = {
    "400": "malformed",
    "401": "the token is missing or wrong",
    "403": "a page of another origin asks",
    "408": "the body came too slowly",
    "413": "larger or longer than is taken",
    "415": "no audio that can be decoded here",
    "421": "a name the service is not called by",
    "422": "an option out of range, or damaged audio",
    "429": "too much is waiting; Retry-After says when to come again",
    "503": "loading, stopping or stuck; Retry-After says when to come again",
}


def _object(properties: dict[str, Any], required: tuple[str, ...] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _schemas() -> dict[str, Any]:
    tag = {"label": _TEXT, "score": _NUMBER, "index": {"type": "integer"}, "mid": _TEXT}
    event = {
        "label": _TEXT,
        "onset_s": _NUMBER,
        "offset_s": _NUMBER,
        "peak": _NUMBER,
        "mean": _NUMBER,
        "index": {"type": "integer"},
        "mid": _TEXT,
    }
    about = {
        "source": _TEXT,
        "duration_s": _NUMBER,
        "checkpoint": _TEXT,
        "window_s": _NUMBER,
        "hop_s": _NUMBER,
        "aggregate": _TEXT,
        "warnings": _array(_TEXT),
    }
    window = _object({"start_s": _NUMBER, "end_s": _NUMBER, "tags": _array(_ref("Tag"))})
    embedded = _object({"start_s": _NUMBER, "end_s": _NUMBER, "embedding": _array(_NUMBER)})
    embedding = {
        "source": _TEXT,
        "duration_s": _NUMBER,
        "warnings": _array(_TEXT),
        "embedding": _array(_NUMBER),
        "windows": _array(embedded),
    }
    return {
        "Tag": _object(tag),
        "Event": _object(event),
        "Tags": _object({**about, "tags": _array(_ref("Tag")), "windows": _array(window)}, (*about, "tags")),
        "Events": _object({**about, "events": _array(_ref("Event"))}),
        "Embeddings": _object(embedding, ("source", "duration_s", "warnings")),
        "Error": _object({"source": _TEXT, "error": _TEXT, "error_type": _TEXT}),
        "Progress": _object(
            {"progress": _object({"source": _TEXT, "done_s": _NUMBER, "duration_s": {"type": ["number", "null"]}})}
        ),
        "Windows": _object(
            {
                "windows": _object(
                    {
                        "start_s": _array(_NUMBER),
                        "end_s": _array(_NUMBER),
                        "scores": {**_TEXT, "description": "base64 of little-endian float32, window after window"},
                        "strips": _array({"type": "object", "description": "waveform and log-mel as columns to draw"}),
                    }
                )
            }
        ),
        "Analysis": _object({**about, "tags": _array(_ref("Tag")), "events": _array(_ref("Event"))}),
        "Problem": _object(
            {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT}, ("title", "status")
        ),
    }


def _problems() -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {status: {"description": about, "content": content} for status, about in _PROBLEMS.items()}


def _recordings(summary: str, known: tuple[opts.Option, ...], record: str, formats: tuple[str, ...] = ()) -> Any:
    audio = {**_TEXT, "format": "binary"}
    form = _object(
        {"file": _array(audio), **{option.name: option.schema() for option in known}},
        ("file",),
    )
    several = _object({"results": _array({"anyOf": [_ref(record), _ref("Error")]})})
    lines = [_ref("Progress"), _ref(record), _ref("Error")]
    if record == "Analysis":
        content: dict[str, Any] = {"application/x-ndjson": {"schema": {"anyOf": [_ref("Windows"), *lines]}}}
    else:
        content = {
            "application/json": {"schema": {"anyOf": [_ref(record), several]}},
            "application/x-ndjson": {"schema": {"anyOf": lines}},
            **{kind: {"schema": _TEXT} for kind in formats},
        }
    return {
        "post": {
            "summary": summary,
            "description": "A body of bytes gives one record; a form gives results, one for each file, errors in their "
            "place. With Accept: application/x-ndjson there is a line for each step of the work, then the records.",
            "parameters": [
                {
                    "name": option.name,
                    "in": "query",
                    "description": option.about,
                    "schema": option.schema(),
                    **({"explode": True} if option.many else {}),
                }
                for option in known
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "audio/*": {"schema": audio},
                    "application/octet-stream": {"schema": audio},
                    "multipart/form-data": {"schema": form},
                },
            },
            "responses": {"200": {"description": "what was found", "content": content}, **_problems()},
        }
    }


def _get(
    summary: str, schema: Any, content_type: str = "application/json", responses: dict[str, Any] | None = None
) -> dict[str, Any]:
    found = {"description": "as asked", "content": {content_type: {"schema": schema}}}
    return {"get": {"summary": summary, "responses": {"200": found, **(responses or {})}}}


def document(limits: Limits, token: bool) -> dict[str, Any]:
    """Describe a service with these limits in OpenAPI 3.1; `token`: whether it wants one."""
    any_object = {"type": "object"}
    not_ready: Any = {"description": "not ready", "content": {"application/json": {"schema": any_object}}}
    classification = {
        "post": {
            "summary": "The best labels, in Hugging Face's inference schema",
            "requestBody": {
                "required": True,
                "content": {
                    "audio/*": {"schema": {**_TEXT, "format": "binary"}},
                    "application/json": {
                        "schema": _object(
                            {
                                "inputs": {**_TEXT, "description": "a recording in base64"},
                                "parameters": {
                                    "type": "object",
                                    "properties": {
                                        "top_k": {"type": "integer", "minimum": 1, "default": 5},
                                        "function_to_apply": {"enum": ["sigmoid", "softmax", "none"]},
                                    },
                                },
                            },
                            ("inputs",),
                        )
                    },
                },
            },
            "responses": {
                "200": {
                    "description": "best first",
                    "content": {"application/json": {"schema": _array(_object({"label": _TEXT, "score": _NUMBER}))}},
                },
                **_problems(),
            },
        }
    }
    labels = _get("The labels, in the order of the scores", _array(any_object))
    labels["get"]["parameters"] = [
        {"name": "search", "in": "query", "description": "words a label's name must contain", "schema": _TEXT}
    ]
    plain: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "audiotag",
            "version": __version__,
            "description": f"What is in audio. Recordings of up to {limits.max_seconds:g} s and {limits.max_bytes} "
            "bytes. Live audio goes to the WebSocket /v1/stream, which docs/serve.md describes.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/v1/tag": _recordings("What is in recordings", opts.TAG, "Tags", ("text/csv",)),
            "/v1/events": _recordings(
                "When things happen in recordings", opts.EVENTS, "Events", ("text/csv", "text/plain", "text/vtt")
            ),
            "/v1/embed": _recordings("Feature vectors of recordings", opts.EMBED, "Embeddings"),
            "/v1/analyze": _recordings("Scores over time, and what to draw, as they come", opts.ANALYZE, "Analysis"),
            "/v1/audio/classification": classification,
            "/v1/models": _get("The checkpoint that is served", any_object),
            "/v1/labels": labels,
            "/openapi.json": _get("This description", any_object),
            "/livez": _get("Whether the process answers", any_object),
            "/readyz": _get("Whether new requests are taken", any_object, responses={"503": not_ready}),
            "/metrics": _get("Counters for Prometheus", _TEXT, "text/plain"),
        },
        "components": {"schemas": _schemas()},
    }
    if token:
        plain["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        plain["security"] = [{"token": []}]
    return plain
