"""What a request wants of a recording: which windows, which outputs, and what is written about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..outputs.records import embedding_record, event_record, plain, tag_record
from ..results.prediction import Prediction

if TYPE_CHECKING:
    from ..inference.batches import Analysis
    from ..tagger import Tagger


@dataclass(frozen=True)
class Task:
    """What a request wants of each of its recordings.

    Attributes
    ----------
    window, hop : int
        In samples.
    layers : tuple of str or None
        Feature vectors wanted; None for scores.
    describe : callable
        From an analysis to its record.
    kind : str
        ``tags``, ``events``, ``embeddings`` or ``analysis``.
    format : str
        Of the answer.
    """

    window: int
    hop: int
    layers: tuple[str, ...] | None
    describe: Callable[[Analysis], dict[str, Any]]
    kind: str
    format: str = "json"


def tag_task(tagger: Tagger, options: dict[str, Any]) -> Task:
    """Make the task of `/v1/tag`."""
    chosen = {
        "k": options["top"],
        "threshold": options["threshold"],
        "windows": options["windows"],
        "include": options["include"],
        "exclude": options["exclude"],
    }
    return _of_prediction(tagger, "tags", options, lambda p: tag_record(p, **chosen), options["aggregate"])


def event_task(tagger: Tagger, options: dict[str, Any]) -> Task:
    """Make the task of `/v1/events`."""
    chosen = event_options(options)
    return _of_prediction(tagger, "events", options, lambda p: event_record(p, **chosen), "max")


def analysis_task(tagger: Tagger, options: dict[str, Any]) -> Task:
    """Make the task of `/v1/analyze`: tags and events; scores, waveform and log-mel come while the work goes on."""
    tags = {"k": options["top"], "include": options["include"], "exclude": options["exclude"]}
    events = event_options(options)

    def describe(prediction: Prediction) -> dict[str, Any]:
        return {**tag_record(prediction, **tags), "events": event_record(prediction, **events)["events"]}

    return _of_prediction(tagger, "analysis", options, describe, "max")


def event_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translate a request's options to the arguments of `Prediction.events`."""
    return {
        "on": options["on"],
        "off": options["off"],
        "min_duration_s": options["min_duration"],
        "max_gap_s": options["max_gap"],
        "median_s": options["median"],
        "include": options["include"],
        "exclude": options["exclude"],
    }


def _of_prediction(
    tagger: Tagger,
    kind: str,
    options: dict[str, Any],
    describe: Callable[[Prediction], dict[str, Any]],
    aggregate: str,
) -> Task:
    window, hop = tagger.config.window_and_hop(options["window"], options["hop"])
    rolled = options.get("roll_up", False)
    describe(Prediction.silent(tagger.labels, tagger.thresholds))  # what is wrong with the options shows now

    def record(analysis: Analysis) -> dict[str, Any]:
        prediction = tagger.prediction(analysis, window, hop, aggregate)
        return describe(prediction.roll_up() if rolled else prediction)

    return Task(window, hop, None, record, kind, options.get("format", "json"))


def embed_task(tagger: Tagger, options: dict[str, Any]) -> Task:
    """`/v1/embed`."""
    layers = tagger.layer_names(options["layer"] or ["embedding"])
    window, hop = tagger.config.window_and_hop(None, options["hop"])
    per = options["per"]

    def record(analysis: Analysis) -> dict[str, Any]:
        return dict(plain(embedding_record(analysis.name, analysis.embeddings(), per=per), per=per))

    return Task(window, hop, layers, record, "embeddings")


def scores_task(tagger: Tagger) -> Task:
    """Make the task of `/v1/audio/classification`: the clip's scores alone."""
    window = tagger.config.window_samples
    return Task(window, window, None, lambda analysis: {"scores": analysis.stacked().max(0)}, "scores")
