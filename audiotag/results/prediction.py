"""What the tagger returns: `Prediction`, out of which tags, events, tables and pictures are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import imported
from ..config import FrontendConfig
from ..errors import InvalidInputError
from ..labels.label_set import LabelLike, LabelSet
from ..text import html_table, printable, printable_name, shortest, text_table
from .events import OFF_RATIO, ON, Event, find_events, hop_scores
from .tags import Tag, top_tags
from .thresholds import label_thresholds, per_label

if TYPE_CHECKING:
    import pandas

    from ..audio.recording import AudioInput
    from .plot import Picture

SHOWN_TAGS = 5


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """Scores of one recording.

    Equal predictions have equal fields, arrays bit for bit. Arrays are read-only; pickling and copying keep them so.

    Attributes
    ----------
    scores : numpy.ndarray, float32, (labels,)
        Scores of the clip in [0, 1]: the windows' scores combined as ``aggregate`` says.
    window_scores : numpy.ndarray, float32, (windows, labels)
        Scores of each window in [0, 1].
    window_start_s, window_end_s : numpy.ndarray, float64, (windows,)
        Where the windows lie in the recording, in seconds, ascending. The last ends with the recording.
    labels : LabelSet
    source : str
        The input in words: a path, ``<array>``, ...
    duration_s : float
        Length of the recording in seconds.
    checkpoint : str
        Name of the checkpoint.
    runtime : str
        What ran its network: ``"torch"``, ``"openvino"`` or ``"onnxruntime"``; empty where nobody said.
    hop_s, window_s : float
        Step between windows and their length, in seconds.
    aggregate : str
        ``max`` or ``mean``.
    warnings : tuple of str
        What was not as it should be, e.g. that the file is cut short.
    thresholds : numpy.ndarray, float32, (labels,), optional
        Stored with the checkpoint: the score from which a label is taken to be there, nan where none is known.
    frontend : FrontendConfig
        The checkpoint's, by which `plot` draws the log-mel.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit each other, or scores outside [0, 1] or not finite.
    """

    scores: np.ndarray
    window_scores: np.ndarray
    window_start_s: np.ndarray
    window_end_s: np.ndarray
    labels: LabelSet
    source: str
    duration_s: float
    checkpoint: str
    hop_s: float
    window_s: float
    aggregate: str
    warnings: tuple[str, ...] = field(default=())
    thresholds: np.ndarray | None = None
    runtime: str = ""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)

    @classmethod
    def silent(cls, labels: LabelSet, thresholds: np.ndarray | None = None) -> Prediction:
        """Make a prediction in which nothing is heard, on which options can be tried before there is audio."""
        scores = np.zeros((1, len(labels)), np.float32)
        return cls(
            scores=scores[0],
            window_scores=scores,
            window_start_s=np.zeros(1),
            window_end_s=np.ones(1),
            labels=labels,
            source="",
            duration_s=1.0,
            checkpoint="",
            hop_s=1.0,
            window_s=1.0,
            aggregate="max",
            thresholds=thresholds,
        )

    def __post_init__(self) -> None:
        n_labels, n_windows = len(self.labels), len(self.window_start_s)
        for name, dtype, shape in (
            ("scores", np.float32, (n_labels,)),
            ("window_scores", np.float32, (n_windows, n_labels)),
            ("window_start_s", np.float64, (n_windows,)),
            ("window_end_s", np.float64, (n_windows,)),
        ):
            array = _read_only(getattr(self, name), dtype)
            if array.shape != shape:
                raise InvalidInputError(f"{name} must have shape {shape}, got {array.shape}")
            if dtype is np.float32 and not ((array >= 0) & (array <= 1)).all():  # False for NaN too
                raise InvalidInputError(f"{name} must lie in [0, 1]; it holds {_worst(array)}")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "warnings", tuple(self.warnings))
        if self.thresholds is not None:
            stored = _read_only(self.thresholds, np.float32)
            if stored.shape != (n_labels,):
                raise InvalidInputError(f"thresholds must have shape {(n_labels,)}, got {stored.shape}")
            object.__setattr__(self, "thresholds", stored)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]  # as for the arrays inside

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, because numpy unpickles a read-only array as writable.
        return Prediction, tuple(getattr(self, f.name) for f in fields(self))

    # -- tags ----------------------------------------------------------------------------------------------

    def top(
        self,
        k: int | None = 10,
        *,
        threshold: float | str | Mapping[Any, float] | None = None,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> list[Tag]:
        """Return the clip's best labels, highest score first; equal scores in the order of the labels.

        Parameters
        ----------
        k : int or None
            How many at most, None for all.
        threshold : float, "auto" or mapping, optional
            Lowest score to report, in [0, 1], compared in float32; "auto", each label's own (`thresholds`), 0.3 where
            it has none; a mapping gives them by label or category. None: "auto" for a checkpoint of own labels, so that
            the answer may be nothing, and every score for AudioSet's.
        include, exclude : names, mids, indices or Labels, optional
            Which labels to consider, see `LabelSet.select`: ``include="Animal"`` means every animal.

        Raises
        ------
        InvalidInputError
            ``k`` is not positive, ``threshold`` outside [0, 1], a name unknown, no label left.
        """
        lowest = self._thresholds(threshold)
        return top_tags(self.scores, self.labels, k=k, threshold=lowest, include=include, exclude=exclude)

    def _thresholds(self, threshold: Any) -> np.ndarray | None:
        return label_thresholds(threshold, self.thresholds, self.labels, default=None, argument="threshold")

    def roll_up(self) -> Prediction:
        """Return the prediction with every label scoring at least as high as the labels under it."""
        return replace(
            self, scores=self.labels.roll_up(self.scores), window_scores=self.labels.roll_up(self.window_scores)
        )

    # -- events --------------------------------------------------------------------------------------------

    def events(
        self,
        on: float | str | Mapping[Any, float] | None = None,
        *,
        off: float | Mapping[Any, float] | None = None,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
        min_duration_s: float = 0.0,
        max_gap_s: float = 0.0,
        median_s: float = 0.0,
        combine: str = "geometric",
    ) -> list[Event]:
        """Find when labels occur: onset, offset, peak and mean score, by onset.

        Times are multiples of ``hop_s``, so predict with a small one: ``tagger.predict(path, hop_s=1.0)``. Shorter
        windows (``window_s=3.0``) place onsets better. Windows that overlap are combined per hop step
        (`audiotag.results.events.hop_scores` says how), then `audiotag.results.events.find_events` finds the events.

        Parameters
        ----------
        on : float, "auto" or mapping, optional
            Score in [0, 1] that an event must reach. A mapping gives thresholds by label, or by category for
            everything under it; the narrowest name counts, and labels it does not name have the default. "auto": each
            label's own (`thresholds`), 0.3 where it has none. None: "auto" for a checkpoint of own labels, else 0.3.
        off : float or mapping, optional
            Score that the event must keep, at most ``on``; half of it if None.
        include, exclude : names, mids, indices or Labels, optional
            Which labels to report, see `LabelSet.select`.
        min_duration_s, max_gap_s, median_s : float
            Shortest event to report, longest gap to fill, length of a running median, in seconds.
        combine : {"geometric", "mean", "max"}

        Raises
        ------
        InvalidInputError
            ``on`` or ``off`` outside [0, 1], ``off`` above ``on``, a negative time, an unknown name.
        """
        indices = self.labels.select(include, exclude)
        on_scores = label_thresholds(on, self.thresholds, self.labels, default=ON, argument="on")
        assert on_scores is not None
        off_scores = per_label(off, self.labels, on_scores * np.float32(OFF_RATIO), "off")
        for i in np.flatnonzero(off_scores > on_scores)[:1]:
            raise InvalidInputError(
                f"off must not exceed on; for {self.labels.names[i]!r} they are {off_scores[i]:g} and {on_scores[i]:g}"
            )
        # What stays below `on` in every window stays below it in every step.
        indices = indices[(self.window_scores[:, indices] >= on_scores[indices]).any(axis=0)]
        scores, edges_s = hop_scores(
            self.window_scores[:, indices], self.window_start_s, self.window_end_s, hop_s=self.hop_s, combine=combine
        )
        spans = find_events(
            scores,
            edges_s,
            on=on_scores[indices],
            off=off_scores[indices],
            min_duration_s=min_duration_s,
            max_gap_s=max_gap_s,
            median_s=median_s,
        )
        found = []
        for span in spans:
            label = self.labels[int(indices[span.index])]
            found.append(
                Event(
                    label=label.display_name,
                    onset_s=span.onset_s,
                    offset_s=span.offset_s,
                    peak=shortest(span.peak),
                    mean=shortest(span.mean),
                    index=label.index,
                    mid=label.mid,
                )
            )
        return found

    # -- to other forms ------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return all but the scores: source, duration, checkpoint, windows, warnings; plain, JSON-ready."""
        return {
            "source": printable_name(self.source),
            "duration_s": float(self.duration_s),
            "checkpoint": self.checkpoint,
            "runtime": self.runtime,
            "window_s": float(self.window_s),
            "hop_s": float(self.hop_s),
            "aggregate": self.aggregate,
            "warnings": list(map(printable, self.warnings)),
        }

    def to_dict(
        self,
        *,
        k: int | None = None,
        threshold: float | str | Mapping[Any, float] | None = None,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
        windows: bool = False,
    ) -> dict[str, Any]:
        """Return a plain dictionary that ``json.dumps`` takes as it is.

        Scores are written as the shortest decimal that reads back as the same float32, so nothing is rounded away.

        Parameters
        ----------
        k, threshold, include, exclude
            Which tags, as for `top`; all labels unless said otherwise.
        windows : bool
            Whether to add ``windows``: start, end and tags of each window, under the same filters.
        """
        lowest = self._thresholds(threshold)
        tags = {"k": k, "threshold": lowest, "include": include, "exclude": exclude}
        plain = self.describe()
        plain["tags"] = [tag.to_dict() for tag in top_tags(self.scores, self.labels, **tags)]  # type: ignore[arg-type]
        if windows:
            plain["windows"] = [
                {
                    "start_s": float(start_s),
                    "end_s": float(end_s),
                    "tags": [tag.to_dict() for tag in top_tags(scores, self.labels, **tags)],  # type: ignore[arg-type]
                }
                for start_s, end_s, scores in zip(
                    self.window_start_s, self.window_end_s, self.window_scores, strict=True
                )
            ]
        return plain

    def to_frame(self, *, windows: bool = False) -> pandas.DataFrame:
        """Return a tidy pandas frame: one row per label, best first, or one row per window and label in their order.

        Columns: source, (start_s, end_s,) label, score, index, mid. Every label is in it.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        pandas = imported("to_frame needs pandas: pip install pandas", "pandas")
        names, mids = np.array(self.labels.names, dtype=object), np.array(self.labels.mids, dtype=object)
        if windows:
            n_windows, n_labels = self.window_scores.shape
            order = np.tile(np.arange(n_labels), n_windows)
            where = {
                "start_s": np.repeat(self.window_start_s, n_labels),
                "end_s": np.repeat(self.window_end_s, n_labels),
            }
            scores = self.window_scores.reshape(-1).copy()
        else:
            order, where = np.argsort(-self.scores, kind="stable"), {}
            scores = self.scores[order]
        return pandas.DataFrame(
            {"source": self.source, **where, "label": names[order], "score": scores, "index": order, "mid": mids[order]}
        )

    def plot(
        self,
        audio: AudioInput | None = None,
        *,
        sample_rate: int | None = None,
        k: int = 10,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> Picture:
        """Draw the scores over time; with the audio it came from, under its log-mel.

        A matplotlib Figure, which a notebook shows and `audiotag.results.plot.save_figure` writes as png, svg or pdf.

        Parameters
        ----------
        audio, sample_rate
            What was predicted, as for `Tagger.predict`.
        k, include, exclude
            Which labels, see `audiotag.results.plot.plot_prediction`.

        Raises
        ------
        MissingDependencyError
            matplotlib is not installed.
        """
        from .plot import plot_prediction

        logmel = None
        if audio is not None:
            from ..frontend.overview import logmel_image

            logmel = logmel_image(audio, duration_s=self.duration_s, frontend=self.frontend, sample_rate_hz=sample_rate)
        return plot_prediction(self, logmel=logmel, k=k, include=include, exclude=exclude)

    # -- to look at ----------------------------------------------------------------------------------------

    def _heading(self) -> str:
        windows = f"{len(self.window_scores)} window" + ("s" if len(self.window_scores) != 1 else "")
        combined = f" ({self.aggregate})" if len(self.window_scores) > 1 else ""
        return f"{printable(self.source)}  {self.duration_s:.1f} s, {windows}{combined}, {self.checkpoint}"

    def __repr__(self) -> str:
        return text_table(f"Prediction: {self._heading()}", self._shown(), self.warnings)

    def _repr_html_(self) -> str:
        return html_table(self._heading(), self._shown(), self.warnings)

    def _shown(self) -> list[tuple[str, float]]:
        return [(tag.label, tag.score) for tag in self.top(SHOWN_TAGS)]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def _read_only(values: Any, dtype: Any) -> np.ndarray:
    given = np.asarray(values)
    array = np.array(given, dtype=dtype) if given.flags.writeable or given.dtype != dtype else given
    array.flags.writeable = False
    return array


def _worst(array: np.ndarray) -> str:
    if np.isnan(array).any():
        return "NaN"
    return f"{array.min():g} to {array.max():g}"
