"""audiotag: what is in your audio, by pretrained dynamic CNNs (DyMN).

>>> from audiotag import Tagger                                     # doctest: +SKIP
>>> Tagger.from_pretrained().predict("street.wav").top(5)           # doctest: +SKIP

Importing this package does nothing; torch is imported when the first name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .errors import (
        AudioError,
        AudiotagError,
        CheckpointError,
        DownloadError,
        InvalidInputError,
        MissingDependencyError,
        OutputError,
        VerificationError,
    )
    from .labels.label_set import Label, LabelSet, audioset_labels
    from .live.stream import Stream, StreamWindow
    from .live.tracker import Onset
    from .results.embeddings import WindowEmbeddings
    from .results.events import Event
    from .results.prediction import Prediction
    from .results.tags import Tag
    from .tagger import Tagger
    from .training.fit.evaluate import evaluate
    from .training.fit.run import fit

_HOME = {
    "fit": "training.fit.run",
    "evaluate": "training.fit.evaluate",
    "Tagger": "tagger",
    "WindowEmbeddings": "results.embeddings",
    "Prediction": "results.prediction",
    "Tag": "results.tags",
    "Event": "results.events",
    "Stream": "live.stream",
    "StreamWindow": "live.stream",
    "Onset": "live.tracker",
    "Label": "labels.label_set",
    "LabelSet": "labels.label_set",
    "audioset_labels": "labels.label_set",
    "AudiotagError": "errors",
    "InvalidInputError": "errors",
    "AudioError": "errors",
    "CheckpointError": "errors",
    "DownloadError": "errors",
    "VerificationError": "errors",
    "MissingDependencyError": "errors",
    "OutputError": "errors",
}
__all__ = [
    "AudioError",
    "AudiotagError",
    "CheckpointError",
    "DownloadError",
    "Event",
    "InvalidInputError",
    "Label",
    "LabelSet",
    "MissingDependencyError",
    "Onset",
    "OutputError",
    "Prediction",
    "Stream",
    "StreamWindow",
    "Tag",
    "Tagger",
    "VerificationError",
    "WindowEmbeddings",
    "audioset_labels",
    "evaluate",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audiotag' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
