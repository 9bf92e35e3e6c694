"""Options of requests: named as on the command line, typed, and described once for parsing and for openapi.json."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..results.events import ON
from .problems import Problem

DEFAULT_TOP = 10
EVENTS_HOP_S = 1.0
FORMATS = {"tags": ("json", "csv"), "events": ("json", "csv", "audacity", "webvtt")}


@dataclass(frozen=True)
class Option:
    """One option of a request.

    Attributes
    ----------
    name : str
        As on the command line, without the dashes.
    kind : {"number", "top", "boolean", "string"}
    about : str
    many : bool
        Whether it may be given several times.
    choices : tuple of str
        What a string may be; empty: anything.
    default : Any
        Where it is not given.
    """

    name: str
    kind: str
    about: str
    many: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None

    def parse(self, text: str) -> Any:
        """Return the value a text stands for.

        Raises
        ------
        Problem
            422: it stands for none.
        """
        if self.kind == "number":
            try:
                return float(text)
            except ValueError:
                raise self._wrong("a number", text) from None
        if self.kind == "top":
            if text != "all" and not (text.isascii() and text.isdecimal() and int(text)):
                raise self._wrong("a positive whole number or all", text)
            return None if text == "all" else int(text)
        if self.kind == "boolean":
            lower = text.lower()
            if lower not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
                raise self._wrong("true or false", text)
            return lower not in ("0", "false", "no", "off")
        if self.choices and text not in self.choices:
            raise self._wrong("one of " + ", ".join(self.choices), text)
        return text

    def _wrong(self, allowed: str, text: str) -> Problem:
        return Problem(422, f"{self.name} must be {allowed}, got {text[:80]!r}")

    def schema(self) -> dict[str, Any]:
        """Describe the option as a JSON schema."""
        kinds: dict[str, dict[str, Any]] = {
            "number": {"type": "number"},
            "boolean": {"type": "boolean"},
            "string": {"type": "string"},
            "top": {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}]},
        }
        plain = dict(kinds[self.kind])
        if self.choices:
            plain["enum"] = list(self.choices)
        if self.many:
            plain = {"type": "array", "items": plain}
        elif self.default is not None:
            plain["default"] = self.default
        return plain


_INCLUDE = Option("include", "string", "only this label and those under it; several times for several", many=True)
_EXCLUDE = Option("exclude", "string", "not this label, nor those under it; several times for several", many=True)
_ROLL_UP = Option("roll-up", "boolean", "give a label at least the best score of the labels under it", default=False)
_WINDOW = Option("window", "number", "length of the windows in seconds; the checkpoint's if not given")
_HOP = Option("hop", "number", "step between windows in seconds; one window if not given")
_EVENTS_HOP = Option(
    "hop", "number", "step between windows in seconds; times are multiples of it", default=EVENTS_HOP_S
)
_TOP = Option("top", "top", "at most so many labels, or all; 10, or all that reach threshold if that is given")
_ON = Option("on", "number", "score that an event must reach", default=ON)
_THRESHOLDS = (
    Option("off", "number", "score that an event must keep; half of on if not given"),
    Option("min-duration", "number", "shortest event to report, in seconds", default=0.0),
    Option("max-gap", "number", "longest gap to fill between two events of a label, in seconds", default=0.0),
    Option("median", "number", "length of a running median over the scores, in seconds", default=0.0),
)

TAG = (
    _TOP,
    Option("threshold", "number", "only labels scoring at least this, 0 to 1"),
    _INCLUDE,
    _EXCLUDE,
    _ROLL_UP,
    _WINDOW,
    _HOP,
    Option("aggregate", "string", "how windows make the recording's score", choices=("max", "mean"), default="max"),
    Option("windows", "boolean", "each window's labels too", default=False),
    Option("format", "string", "of the answer", choices=FORMATS["tags"], default="json"),
)
EVENTS = (
    _ON,
    *_THRESHOLDS,
    _INCLUDE,
    _EXCLUDE,
    _ROLL_UP,
    _WINDOW,
    _EVENTS_HOP,
    Option("format", "string", "of the answer", choices=FORMATS["events"], default="json"),
)
EMBED = (
    Option("layer", "string", "a layer of /v1/models; several times to concatenate", many=True),
    Option("per", "string", "the mean over windows, or each window", choices=("clip", "window"), default="clip"),
    _HOP,
)
ANALYZE = (_TOP, _ON, *_THRESHOLDS, _INCLUDE, _EXCLUDE, _WINDOW, _EVENTS_HOP)


def parse(pairs: Iterable[tuple[str, str]], known: tuple[Option, ...]) -> dict[str, Any]:
    """Parse values by option, with underscores: ``{"min_duration": 0.5, "include": ["Speech"], ...}``.

    Raises
    ------
    Problem
        400: a token, which belongs into a header. 422: an unknown option, a repeated one that may not be, a bad value.
    """
    by_name = {option.name: option for option in known}
    values: dict[str, Any] = {option.name: [] if option.many else option.default for option in known}
    given: set[str] = set()
    for key, text in pairs:
        name = key.replace("_", "-")
        if name in ("token", "access-token", "api-key"):
            raise Problem(400, "a token in an address ends up in logs; send it as the header Authorization: Bearer ...")
        option = by_name.get(name)
        if option is None:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Problem(422, f"there is no option {key[:80]!r} here{hint} There are {', '.join(by_name)}")
        if option.many:
            values[option.name].append(option.parse(text))
            continue
        if option.name in given:
            raise Problem(422, f"{option.name} was given twice")
        given.add(option.name)
        values[option.name] = option.parse(text)
    if "top" in values and "top" not in given and "threshold" not in given:
        values["top"] = DEFAULT_TOP
    for option in known:
        if option.many:
            values[option.name] = values[option.name] or None
    return {name.replace("-", "_"): value for name, value in values.items()}
