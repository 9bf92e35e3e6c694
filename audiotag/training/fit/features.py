"""Embeddings of clips, computed once: kept by content, checkpoint and preprocessing in one small database.

SQLite is in the standard library, survives a kill at any moment, and lets two runs share the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import AudiotagError, OutputError
from ...results.embeddings import MID_LAYERS
from .clips import Clip

if TYPE_CHECKING:
    from ...tagger import Tagger

VERSION = 1  # of what is computed from a clip; another one makes old rows useless
CACHE_FILE = "embeddings.sqlite"
COMMIT_EVERY = 100  # clips


def cache_folder() -> Path:
    """Where embeddings are kept unless said otherwise: ``$XDG_CACHE_HOME/audiotag``, ``~/.cache/audiotag``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "audiotag"


@dataclass(frozen=True)
class Features:
    """Feature vectors of clips' windows.

    Attributes
    ----------
    windows : ndarray, float32, (windows, features)
        All layers of `sizes` next to each other, clip after clip.
    clip : ndarray of int64, (windows,)
        Whose each window is, ascending.
    sizes : dict
        Layer to number of features, in their order.
    computed : int
        Clips that were embedded now; the others were kept from before.
    failed : dict
        Index of a clip that could not be read to the reason; it has no windows.
    """

    windows: np.ndarray
    clip: np.ndarray
    sizes: dict[str, int]
    computed: int
    failed: dict[int, str]

    def columns(self, layers: Sequence[str]) -> np.ndarray:
        """Positions of the features of some layers, in the order of `layers`."""
        start = dict(zip(self.sizes, np.cumsum([0, *self.sizes.values()]).tolist(), strict=False))
        return np.concatenate([np.arange(start[name], start[name] + self.sizes[name]) for name in layers])


def kept_layers(tagger: Tagger) -> dict[str, int]:
    """The layers that probes may use, with their sizes: the last ones and those of ``mid``."""
    sizes = tagger.layers
    return {name: sizes[name] for name in dict.fromkeys((*MID_LAYERS, "embedding", "hidden")) if name in sizes}


def network_digest(tagger: Tagger) -> str:
    """SHA-256 of everything that decides a feature vector: the network's tensors, its configuration, the frontend."""
    config = tagger.config
    plain = config.to_dict()
    told = {
        "network": plain["network"],
        "frontend": plain["frontend"],
        "window_s": plain["window_s"],
        "version": VERSION,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(tagger.checkpoint.state.items()):
        if not name.startswith("head."):
            array = np.ascontiguousarray(np.asarray(tensor))
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


class Cache:
    """Feature vectors by key; rows are float32 (windows, features) as bytes.

    Raises
    ------
    OutputError
        The folder or the file cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.path = (cache_folder() if folder is None else Path(folder).expanduser()) / CACHE_FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60.0, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, rows BLOB NOT NULL)")
            self._database.commit()
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"{self.path}: embeddings cannot be kept there ({error}); delete the file, or name another folder"
            ) from error
        self._new = 0

    def get(self, key: bytes, features: int) -> np.ndarray | None:
        found = self._database.execute("SELECT rows FROM embeddings WHERE key = ?", (key,)).fetchone()
        if found is None or not found[0] or len(found[0]) % (4 * features):
            return None
        rows = np.frombuffer(found[0], "<f4").reshape(-1, features)
        return rows if np.isfinite(rows).all() else None

    def put(self, key: bytes, rows: np.ndarray) -> None:
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        self._database.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", (key, data))
        self._new += 1
        if self._new % COMMIT_EVERY == 0:
            self._database.commit()

    def close(self) -> None:
        self._database.commit()
        self._database.close()


def clip_key(clip: Clip, network: str, layers: Iterable[str]) -> bytes:
    """What a clip's feature vectors are kept under: its bytes and stretch, the network, the layers."""
    told = [network, clip.digest, clip.onset_s, clip.offset_s, list(layers)]
    return hashlib.sha256(json.dumps(told).encode()).digest()


def embed_clips(
    tagger: Tagger,
    clips: Sequence[Clip],
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Feature vectors of the windows of clips; what was embedded before is taken from the cache.

    Parameters
    ----------
    cache : path, optional
        Folder of the cache; None: `cache_folder`.
    progress : callable, optional
        Called with the clips done and all of them.
    """
    sizes = kept_layers(tagger)
    width = sum(sizes.values())
    network = network_digest(tagger)
    keys = [clip_key(clip, network, sizes) for clip in clips]
    found: list[np.ndarray | None] = [None] * len(clips)
    failed: dict[int, str] = {}
    with closing(Cache(cache)) as store:
        missing: dict[bytes, list[int]] = {}  # copies of the same bytes are embedded once
        for i, key in enumerate(keys):
            found[i] = store.get(key, width)
            if found[i] is None:
                missing.setdefault(key, []).append(i)
        done = len(clips) - sum(map(len, missing.values()))
        order = sorted(missing.values(), key=lambda those: (clips[those[0]].path, clips[those[0]].onset_s or 0.0))
        results = tagger.embed_each(
            clip_sources([clips[those[0]] for those in order], tagger.sample_rate),
            layer=list(sizes),
            workers=1 if tagger.runtime == "torch" and tagger.device == "cpu" else 2,
        )
        for those, (_, result) in zip(order, results, strict=True):
            if isinstance(result, AudiotagError):
                failed |= dict.fromkeys(those, str(result))
            else:
                store.put(keys[those[0]], result.vectors)
                for i in those:
                    found[i] = np.array(result.vectors)
            done += len(those)
            if progress is not None:
                progress(done, len(clips))
    counts = [0 if rows is None else len(rows) for rows in found]
    windows = np.empty((sum(counts), width), np.float32)
    at = 0
    for i, rows in enumerate(found):
        if rows is not None:
            windows[at : at + len(rows)] = rows
            at += len(rows)
            found[i] = None
    return Features(windows, np.repeat(np.arange(len(clips)), counts), sizes, sum(map(len, missing.values())), failed)


def clip_sources(clips: Sequence[Clip], rate_hz: int) -> Iterator[Any]:
    """What the tagger is given for each clip: its path, or the samples of its stretch."""
    at = 0
    while at < len(clips):
        clip = clips[at]
        if clip.onset_s is None:
            yield clip.path
            at += 1
            continue
        stop = at
        while stop < len(clips) and clips[stop].path == clip.path and clips[stop].onset_s is not None:
            stop += 1
        for samples in excerpts(clip.path, [(c.onset_s or 0.0, c.offset_s or 0.0) for c in clips[at:stop]], rate_hz):
            yield (samples, rate_hz)
        at = stop


def excerpts(path: str, spans: Sequence[tuple[float, float]], rate_hz: int) -> Iterator[np.ndarray]:
    """Samples (n,) float32 of stretches in seconds of one recording, by onset, in one pass over it.

    A stretch of a recording that cannot be decoded that far is empty.
    """
    from ...audio.recording import open_audio

    edges = [(round(start * rate_hz), max(round(start * rate_hz) + 1, round(stop * rate_hz))) for start, stop in spans]
    held, begin, at = np.empty(0, np.float32), 0, 0
    try:
        with open_audio(path, target_rate_hz=rate_hz) as stream:
            for block in stream.blocks():
                held = np.concatenate([held, block])
                while at < len(edges) and edges[at][1] <= begin + len(held):
                    yield held[edges[at][0] - begin : edges[at][1] - begin].copy()
                    at += 1
                if at == len(edges):
                    return
                keep = max(0, min(edges[at][0] - begin, len(held)))  # spans are by onset: nothing before it is needed
                held, begin = held[keep:], begin + keep
    except AudiotagError:
        held = held[:0]
    for start, stop in edges[at:]:
        yield held[max(0, start - begin) : max(0, stop - begin)].copy()
