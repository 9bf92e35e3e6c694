"""Errors as RFC 9457 problem details (application/problem+json), and which status an error of ours is."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping

from ..errors import AudioError, AudiotagError, InvalidInputError, MissingDependencyError
from .limits import TooLargeError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Raised to answer with an error instead of a result.

    Parameters
    ----------
    status : int
    detail : str
        For people: what was received, what is allowed, what to do next.
    retry_after_s : float, optional
        When to come again.
    """

    def __init__(
        self, status: int, detail: str, *, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after_s)))

    def to_dict(self) -> dict[str, object]:
        """Return the body, JSON-ready."""
        title = http.HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}

    def body(self) -> bytes:
        """Write the body as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace")


def problem_of(error: AudiotagError, *, opened: bool) -> Problem:
    """Choose the problem for an error about a recording; `opened`: whether its decoder could be opened."""
    if isinstance(error, TooLargeError):
        return Problem(413, str(error))
    if isinstance(error, MissingDependencyError) or (isinstance(error, AudioError) and not opened):
        return Problem(415, str(error))
    if isinstance(error, (AudioError, InvalidInputError)):
        return Problem(422, str(error))
    return Problem(500, str(error))
