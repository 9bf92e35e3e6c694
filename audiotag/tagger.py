"""The Tagger: a checkpoint, ready to turn audio into scores, tags and embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from .audio.recording import AudioInput
from .checkpoints.access import Access
from .checkpoints.load import Checkpoint, load_checkpoint
from .checks import check_rate, checked_sources, one_of, positive, shown
from .errors import AudiotagError, InvalidInputError
from .inference.batches import Analysis
from .inference.engine import Engine, Progress
from .inference.head import Head
from .inference.runtime import AUTO, open_runtime
from .labels.label_set import LabelLike, LabelSet
from .live.tracker import MAX_GAP_S
from .networks.table import layer_sizes
from .results.embeddings import MID_LAYERS, WindowEmbeddings
from .results.prediction import Prediction
from .results.thresholds import stored

if TYPE_CHECKING:
    import torch

    from .live.stream import Stream

Source = TypeVar("Source")  # whatever `open_audio` takes, handed back as it was given
AGGREGATES = ("max", "mean")
PER = ("clip", "window")


class Tagger:
    """Tags and embeds audio with one checkpoint. Make one with `from_pretrained`.

    Threads and forked children may share a tagger. Nothing it returns carries gradients. The same input gives the same
    scores whatever the companions in its batch, the thread, the chunking or the run, and, where `batch_size` changes,
    within 2e-5.

    Attributes
    ----------
    checkpoint : Checkpoint
    config : CheckpointConfig
    engine : Engine
        What `predict`, `embed` and `stream` run on.
    labels : LabelSet
        The labels, in the order of the scores.

    Examples
    --------
    >>> tagger = Tagger.from_pretrained()                       # doctest: +SKIP
    >>> tagger.predict("street.wav").top(3)                     # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        runtime: str = AUTO,
        prefer: str = "speed",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        opened = open_runtime(checkpoint, runtime=runtime, prefer=prefer, device=device, dtype=dtype, compile=compile)
        self.engine = Engine(self.config, opened, Head.of(self.config, checkpoint.state))
        self.labels: LabelSet = checkpoint.labels

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike | None = None,
        *,
        runtime: str = AUTO,
        prefer: str = "speed",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        allow_unverified: bool = False,
        compile: bool = False,
    ) -> Tagger:
        """Load a checkpoint, verified, and make it ready.

        Parameters
        ----------
        name_or_path : str or path, optional
            A name `audiotag models` lists, a Hub repository id (``"org/name"``), a folder with ``config.json`` and
            ``model.safetensors``, a ``.safetensors`` file, or a released ``.pt``. None: the checkpoint inside the
            package, which needs no network.
        runtime : {"auto", "torch", "openvino", "onnxruntime"}
            What runs the network; the scores are the same within 1e-5. "auto": torch where it has a CUDA GPU or where
            `device`, `dtype` or `compile` need it; otherwise what `prefer` says of those installed. The environment
            variable ``AUDIOTAG_RUNTIME`` decides for "auto".
        prefer : {"speed", "start"}
            What "auto" looks for: the quickest network, or the quickest first result.
        device : str or torch.device, optional
            None: CUDA where torch has it, else the CPU. ``"mps"`` where torch has that.
        dtype : str or torch.dtype, optional
            float32 (None), bfloat16 or float16, of the network; the frontend stays float32.
        revision, cache_dir, local_files_only, token
            As in `huggingface_hub`. ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` work as everywhere.
        allow_unverified : bool
            Fetch a file of which no checksum is known; its SHA-256 is logged so that it can be pinned.
        compile : bool
            Run the network through ``torch.compile``: minutes of warm-up, for long-running services only.

        Raises
        ------
        InvalidInputError
            Unknown name (the message has near ones), runtime, device or dtype, or some that do not go together.
        MissingDependencyError
            The runtime is not installed, or does not work here.
        CheckpointError
            Not found, not fetched (`DownloadError`), not as recorded (`VerificationError`) or malformed.
        """
        access = Access(cache_dir, local_files_only, token, revision, allow_unverified)
        return cls(
            load_checkpoint(name_or_path, access),
            runtime=runtime,
            prefer=prefer,
            device=device,
            dtype=dtype,
            compile=compile,
        )

    @property
    def thresholds(self) -> np.ndarray | None:
        """The score from which each label is there, as stored: float32 (labels,), nan where unknown; or None."""
        return stored(self.config.thresholds)

    @property
    def sample_rate(self) -> int:
        """Rate, in Hz, that arrays without one of their own are taken to have."""
        return self.config.frontend.sample_rate_hz

    @property
    def batch_size(self) -> int:
        """Windows per run of the network unless a call says otherwise."""
        return self.engine.runtime.default_batch

    @property
    def device(self) -> str:
        """Where the network runs, e.g. ``"cpu"`` or ``"cuda:0"``."""
        return self.engine.runtime.device

    @property
    def runtime(self) -> str:
        """What runs the network: ``"torch"``, ``"openvino"`` or ``"onnxruntime"``."""
        return self.engine.runtime.name

    @property
    def layers(self) -> dict[str, int]:
        """Names and sizes of the feature vectors `embed` can give; ``mid`` is a concatenation (`MID_LAYERS`)."""
        sizes = layer_sizes(self.config)
        sizes["mid"] = sum(sizes[name] for name in MID_LAYERS)
        return sizes

    def __repr__(self) -> str:
        network = self.config.network
        return (
            f"Tagger({self.config.name!r}: {network.architecture} of width {network.width:g}, "
            f"{len(self.labels)} labels, {self.engine.runtime.dtype} on {self.device}, {self.runtime})"
        )

    @overload
    def predict(
        self,
        audio: list[Any],
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        aggregate: str = "max",
        batch_size: int | None = None,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        audio: AudioInput,
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        aggregate: str = "max",
        batch_size: int | None = None,
    ) -> Prediction: ...
    def predict(
        self,
        audio: AudioInput | list[Any],
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        aggregate: str = "max",
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Tag one recording, or a list of them.

        Parameters
        ----------
        audio : path, bytes, file object, array, tensor, ``(array, rate)``, ``{"array", "sampling_rate"}``, or a list
            Arrays are float in [-1, 1] or integers of up to 32 bits, (samples,) or (channels, samples).
        sample_rate : int, optional
            Rate in Hz of arrays that bring none; None: the checkpoint's (32,000). Files bring their own.
        window_s : float, optional
            Length of the windows in seconds; None: the checkpoint's, 10 s. Shorter ones tell better when something
            happens and are tiled to the checkpoint's length, so they cost as much each.
        hop_s : float, optional
            Step between windows in seconds, in (0, window]; None: one window, so that they do not overlap.
        aggregate : {"max", "mean"}
            How window scores become the clip's: "occurs somewhere in here", or "on the average of it".
        batch_size : int, optional
            Windows per run of the network; changes speed only.

        Returns
        -------
        Prediction, or a list of them for a list

        Raises
        ------
        AudioError
            An input cannot be read; in a list, the first one that cannot. `predict_each` goes on instead.
        InvalidInputError
            An argument is out of range.
        """
        each = self.predict_each(
            audio if isinstance(audio, list) else [audio],
            sample_rate=sample_rate,
            window_s=window_s,
            hop_s=hop_s,
            aggregate=aggregate,
            batch_size=batch_size,
        )
        results = [_raised(result) for _, result in each]
        return results if isinstance(audio, list) else results[0]

    def predict_each(
        self,
        sources: Iterable[Source],
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        aggregate: str = "max",
        batch_size: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Source, Prediction | AudiotagError]]:
        """Tag any number of recordings, lazily and in order; one that cannot be read does not stop the others.

        Arguments are checked at once; sources are read as the result is iterated: by `workers` background threads,
        or, on a CPU with one worker, by the caller's own, which is faster unless reading means waiting. Yields
        each source with its `Prediction`, or with the error that says why there is none.
        `progress` is called in between with a source, the seconds of it done, and its length if its header tells.
        """
        one_of(aggregate, AGGREGATES, "aggregate")
        window, hop = self.config.window_and_hop(window_s, hop_s)
        runs = self._analyse(sources, window, hop, None, sample_rate, batch_size, workers, progress)
        return ((a.source, a.error or self.prediction(a, window, hop, aggregate)) for a in runs)

    def scores(
        self,
        audio: AudioInput | list[Any],
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        aggregate: str = "max",
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Score one recording, or a list of them, and return the clips' scores alone.

        Arguments and errors are those of `predict`; returns float32 (labels,) in [0, 1], (inputs, labels) for a list.
        """
        many = isinstance(audio, list)
        results = self.predict(
            audio if isinstance(audio, list) else [audio],
            sample_rate=sample_rate,
            window_s=window_s,
            hop_s=hop_s,
            aggregate=aggregate,
            batch_size=batch_size,
        )
        scores = np.stack([r.scores for r in results]) if results else np.empty((0, len(self.labels)), np.float32)
        return scores if many else scores[0]

    @overload
    def embed(
        self,
        audio: AudioInput | list[Any],
        *,
        layer: str | Sequence[str] = "embedding",
        per: Literal["clip"] = "clip",
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray: ...
    @overload
    def embed(
        self,
        audio: list[Any],
        *,
        layer: str | Sequence[str] = "embedding",
        per: Literal["window"],
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int | None = None,
    ) -> list[WindowEmbeddings]: ...
    @overload
    def embed(
        self,
        audio: AudioInput,
        *,
        layer: str | Sequence[str] = "embedding",
        per: Literal["window"],
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int | None = None,
    ) -> WindowEmbeddings: ...
    def embed(
        self,
        audio: AudioInput | list[Any],
        *,
        layer: str | Sequence[str] = "embedding",
        per: str = "clip",
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | WindowEmbeddings | list[WindowEmbeddings]:
        """Compute feature vectors of one recording, or of a list of them.

        Parameters
        ----------
        audio, sample_rate, window_s, hop_s, batch_size
            As in `predict`.
        layer : str or sequence of str
            ``"embedding"``: the pooled last feature map, the paper's vector (384, 960, 1920 numbers at widths 0.4,
            1, 2). ``"hidden"``: the classifier's hidden layer. ``"stem"``, ``"block0"`` .. ``"block14"``: a block's
            output averaged over time and frequency. ``"logmel"``: mel bands averaged over time. ``"mid"``: the
            concatenation that scored best for MN on HEAR. Several names: their concatenation. `layers` has sizes.
        per : {"clip", "window"}
            The mean over windows, or each window's own vector with its times.

        Returns
        -------
        ndarray or WindowEmbeddings
            Per clip: float32 (features,), or (inputs, features) for a list. Per window: `WindowEmbeddings`, or a list.
        """
        one_of(per, PER, "per")
        many = isinstance(audio, list)
        each = self.embed_each(
            audio if isinstance(audio, list) else [audio],
            layer=layer,
            sample_rate=sample_rate,
            window_s=window_s,
            hop_s=hop_s,
            batch_size=batch_size,
        )
        results = [_raised(result) for _, result in each]
        if per == "window":
            return results if many else results[0]
        if not results:
            return np.empty((0, sum(self.layers[name] for name in self.layer_names(layer))), np.float32)
        vectors = np.stack([r.vectors.mean(0) for r in results])
        return vectors if many else vectors[0]

    def embed_each(
        self,
        sources: Iterable[Source],
        *,
        layer: str | Sequence[str] = "embedding",
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Source, WindowEmbeddings | AudiotagError]]:
        """Embed any number of recordings as `predict_each` tags them: lazily, in order, errors in their place."""
        window, hop = self.config.window_and_hop(window_s, hop_s)
        runs = self._analyse(sources, window, hop, self.layer_names(layer), sample_rate, batch_size, workers, progress)
        return ((a.source, a.error or a.embeddings()) for a in runs)

    def stream(
        self,
        *,
        sample_rate: int | None = None,
        channels: int = 1,
        window_s: float | None = None,
        hop_s: float | None = 1.0,
        on: float | str | None = None,
        off: float | None = None,
        min_duration_s: float = 0.0,
        max_gap_s: float = MAX_GAP_S,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> Stream:
        """Open a live stream of audio, scored every `hop_s` seconds; see `audiotag.live.stream.Stream`."""
        from .live.stream import Stream

        return Stream(
            self.engine,
            self.labels,
            sample_rate=sample_rate,
            channels=channels,
            window_s=window_s,
            hop_s=hop_s,
            on=on,
            off=off,
            min_duration_s=min_duration_s,
            max_gap_s=max_gap_s,
            include=include,
            exclude=exclude,
        )

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write ``model.safetensors``, ``config.json`` and a model card, as `from_pretrained` reads them."""
        from .checkpoints.save import save_checkpoint

        return save_checkpoint(self.checkpoint, folder)

    def export(self, path: str | os.PathLike[str], *, frontend: bool = True) -> Path:
        """Write an ONNX file that runs in onnxruntime alone: audio in, scores and embedding out, any batch and length.

        The file's metadata say labels, sample rate, window and frontend. It is checked by onnxruntime against this
        tagger on sounds of two lengths and three batches before it gets its name.

        Parameters
        ----------
        path : path
            Of the file to write, ``.onnx``.
        frontend : bool
            Input ``waveform`` (batch, samples), float32 at `sample_rate`; else ``logmel`` (batch, 1, mels, frames).

        Raises
        ------
        MissingDependencyError
            onnxruntime, which checks the file, is not installed.
        OutputError
            The disk refuses, or the file does not give the same scores within 1e-4; nothing is left.
        CheckpointError
            The network is larger than the format allows, 2 GB.
        """
        from .runtimes.export import export_model

        engine = self.engine
        if engine.runtime.dtype != "float32":  # the file is, and is held against the same
            engine = Tagger(self.checkpoint, runtime="torch", device="cpu").engine

        def reference(waveforms: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
            logmel = engine.runtime.log_mel(waveforms)
            shown = logmel if isinstance(logmel, np.ndarray) else logmel.cpu().numpy()
            return shown, engine.scores(logmel), engine.features(logmel, ("embedding",))

        state, card = self.checkpoint.state, self.checkpoint.card
        return export_model(path, state, self.config, self.labels, reference, frontend=frontend, facts=card)

    def push_to_hub(self, repo_id: str, *, token: str | bool | None = None, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to a Hub repository; returns the revision made."""
        from .checkpoints.push import push_checkpoint

        return push_checkpoint(self.checkpoint, repo_id, token=token, private=private)

    def _analyse(
        self,
        sources: Iterable[Any],
        window: int,
        hop: int,
        layers: Sequence[str] | None,
        sample_rate: int | None,
        batch_size: int | None,
        workers: int,
        progress: Progress | None,
    ) -> Iterator[Analysis]:
        """Check what all sources share, and start the loop."""
        return self.engine.analyse(
            checked_sources(sources),
            window=window,
            hop=hop,
            sample_rate_hz=None if sample_rate is None else check_rate(sample_rate),
            layers=layers,
            batch_size=positive(batch_size, "batch_size"),
            workers=positive(workers, "workers") or 1,
            progress=progress,
        )

    def layer_names(self, layer: str | Sequence[str]) -> tuple[str, ...]:
        """Resolve the `layer` of `embed` to names of the network's outputs: ``"mid"`` becomes its parts.

        Raises
        ------
        InvalidInputError
            A name that the network does not have, or none.
        """
        names = [layer] if isinstance(layer, str) or not isinstance(layer, Iterable) else list(layer)
        sizes = self.layers
        if not names or not all(isinstance(name, str) and name in sizes for name in names):
            raise InvalidInputError(f"layer {shown(layer)}: this network has {', '.join(sizes)}")
        return tuple(part for name in names for part in (MID_LAYERS if name == "mid" else (name,)))

    def prediction(self, analysis: Analysis, window: int, hop: int, aggregate: str = "max") -> Prediction:
        """Make a prediction of what the engine found in one recording.

        Parameters
        ----------
        analysis : Analysis
            Of scores, from `engine`; its rows are taken out of it.
        window, hop : int
            In samples, as the engine was given them.
        aggregate : {"max", "mean"}
        """
        window_scores = analysis.stacked()
        return Prediction(
            scores=window_scores.max(0) if aggregate == "max" else window_scores.mean(0),
            window_scores=window_scores,
            window_start_s=np.array(analysis.start_s),
            window_end_s=np.array(analysis.end_s),
            labels=self.labels,
            source=analysis.name,
            duration_s=analysis.duration_s,
            checkpoint=self.config.name,
            runtime=self.runtime,
            hop_s=hop / self.sample_rate,
            window_s=window / self.sample_rate,
            aggregate=aggregate,
            warnings=analysis.warnings,
            thresholds=self.thresholds,
            frontend=self.config.frontend,
        )


def _raised(result: Any) -> Any:
    if isinstance(result, AudiotagError):
        raise result
    return result
