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
    from .errors import AudioError as AudioError
    from .errors import AudiotagError as AudiotagError
    from .errors import CheckpointError as CheckpointError
    from .errors import DownloadError as DownloadError
    from .errors import InvalidInputError as InvalidInputError
    from .errors import MissingDependencyError as MissingDependencyError
    from .errors import OutputError as OutputError
    from .errors import VerificationError as VerificationError
    from .labels.label_set import Label as Label
    from .labels.label_set import LabelSet as LabelSet
    from .labels.label_set import audioset_labels as audioset_labels
    from .live.stream import Stream as Stream
    from .live.stream import StreamWindow as StreamWindow
    from .live.tracker import Onset as Onset
    from .results.embeddings import WindowEmbeddings as WindowEmbeddings
    from .results.events import Event as Event
    from .results.prediction import Prediction as Prediction
    from .results.tags import Tag as Tag
    from .tagger import Tagger as Tagger
    from .training.fit.evaluate import evaluate as evaluate
    from .training.fit.run import fit as fit

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
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audiotag' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
