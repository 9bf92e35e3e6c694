"""audiotag: what is in your audio, by pretrained dynamic CNNs (DyMN).

>>> from audiotag import Tagger                                     # doctest: +SKIP
>>> Tagger.from_pretrained().predict("street.wav").top(5)           # doctest: +SKIP

Importing this package does nothing; torch is imported when the first name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .embeddings import WindowEmbeddings
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
    from .labels import Label, LabelSet, audioset_labels
    from .results import Event, Prediction, Tag
    from .stream import Stream, StreamWindow
    from .tagger import Tagger
    from .tracker import Onset

_HOME = {
    "Tagger": "tagger",
    "WindowEmbeddings": "embeddings",
    "Prediction": "results",
    "Tag": "results",
    "Event": "results",
    "Stream": "stream",
    "StreamWindow": "stream",
    "Onset": "tracker",
    "Label": "labels",
    "LabelSet": "labels",
    "audioset_labels": "labels",
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
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audiotag' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
