"""A run over a corpus, from what the user names to the summary: plan, work, and what is left of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..runtimes.looped import allowed_cores
from ..version import __version__
from .cluster import Cluster, ray_module
from .cluster import run_parts as on_cluster
from .index import Indexer, listing
from .messages import Setup
from .options import Options
from .plan import FORMAT_VERSION, Plan
from .pool import run_parts as on_pool
from .summary import Reporter, Summary
from .worker import Model, Work

if TYPE_CHECKING:
    from ..tagger import Tagger

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def run(
    inputs: str | Sequence[str],
    output: str,
    *,
    model: Any = None,
    kind: str = "tags",
    top: int | None = 10,
    threshold: float | str | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    roll_up: bool = False,
    windows: bool = False,
    window_s: float | None = None,
    hop_s: float | None = None,
    aggregate: str = "max",
    on: float | str | None = None,
    off: float | None = None,
    min_duration_s: float = 0.0,
    max_gap_s: float = 0.0,
    median_s: float = 0.0,
    layer: str | Sequence[str] = "embedding",
    segment_s: float = 600.0,
    listed: Iterable[str] = (),
    audio_column: str | None = None,
    runtime: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    retry_errors: bool = False,
    address: str | None = None,
    actors: int | tuple[int, int | None] | None = None,
    gpus_per_actor: float = 0.0,
    start_s: float = 900.0,
    shard: tuple[int, int] | None = None,
    hang_s: float = 600.0,
    memory_bytes: int = 0,
    progress: bool = False,
    quiet: bool = False,
    **checkpoint: Any,
) -> Summary:
    """Tag, or embed, a corpus of any size into a folder of Parquet files.

    The output has a row for each recording, or for each segment of a long one. Reading it: any reader of Parquet
    folders, such as ``pandas.read_parquet(output)``; ``_audiotag/labels.parquet`` in it says what the labels' numbers
    mean.

    Parameters
    ----------
    inputs : str or sequence of str
        Recordings, folders, patterns, Parquet files with a column of audio bytes, WebDataset tar archives: local, or
        addresses that pyarrow or fsspec can open (``s3://``, ``gs://``, ...).
    output : str
        A folder, local or an address; every worker must be able to write to it, and to read the inputs.
    model : str, path or Tagger, optional
        As for `Tagger.from_pretrained`, which also takes the further keyword arguments; None: the checkpoint inside
        the package. Workers get its files from here.
    kind : {"tags", "events", "embeddings"}
    top, threshold, include, exclude, windows
        Which tags, as for `Prediction.to_dict`. `windows` with embeddings: a vector for each window.
    roll_up : bool
        Give a label at least the best score of the labels under it.
    window_s, hop_s, aggregate
        As for `Tagger.predict`; events have a hop of 1 s unless said otherwise.
    on, off, min_duration_s, max_gap_s, median_s
        Of events, as for `Prediction.events`.
    layer : str or sequence of str
        Of embeddings, as for `Tagger.embed`.
    segment_s : float
        Longer recordings are cut into segments of so many seconds, which give the windows of the whole. Not for events,
        nor where the header does not tell the length.
    listed : iterable of str
        Further inputs, taken literally, never as patterns.
    audio_column : str, optional
        Of Parquet files; None: found by name and type.
    runtime, device, dtype, batch_size
        As for `Tagger.from_pretrained` and `Tagger.predict`. On Ray, actors without `gpus_per_actor` use their CPU; all
        have the runtime that "auto" is here.
    resume : bool
        Go on with the run whose plan is in `output`; then do what has been added to the inputs since.
    retry_errors : bool
        With resuming: do again what failed.
    address, actors, gpus_per_actor, start_s
        The Ray cluster, see `audiotag.corpus.cluster.Cluster`; `actors` is a number or (fewest, most).
    shard : (int, int), optional
        Without Ray: do the first number's share (from 1) of as many as the second says, with `actors` processes (as
        many as there are processors).
    hang_s : float
        A process that shows no progress for so many seconds is ended, and what it was reading recorded as crashed.
    memory_bytes : int
        The same for one that holds more memory; 0: any amount.
    progress : bool
        Tell on stderr, as the command does: errors, warnings, progress and a closing line; with `quiet`, errors only.
        Whatever it tells is in the output too.

    Returns
    -------
    Summary

    Raises
    ------
    InvalidInputError
        An argument is out of range; the output holds another run, or one that `resume` was not given for.
    MissingDependencyError
        pyarrow or Ray is not installed.
    OutputError
        The output cannot be written.
    """
    options = Options(
        kind=kind,
        top=top,
        threshold=threshold,
        include=_names(include),
        exclude=_names(exclude),
        roll_up=roll_up,
        windows=windows,
        window_s=window_s,
        hop_s=hop_s,
        aggregate=aggregate,
        on=on,
        off=off,
        min_duration_s=min_duration_s,
        max_gap_s=max_gap_s,
        median_s=median_s,
        layer=(layer,) if isinstance(layer, str) else tuple(layer),
        segment_s=segment_s,
        batch_size=batch_size,
    )
    plan = Plan(output, _checked_shard(shard))
    settings = plan.settings()
    if settings is not None and not (resume or retry_errors):
        raise InvalidInputError(f"{output}: holds a run already; --resume goes on with it, or name another folder")
    if settings is None and plan.committed():
        raise InvalidInputError(f"{output}: holds parts of a run whose plan is gone; name another folder")
    if shard is None:
        ray_module()  # whether it is there, before anything takes long
    cluster = Cluster(address, _checked_actors(actors), gpus_per_actor, start_s)
    if shard is None and device is None:
        device = "cuda" if gpus_per_actor else "cpu"
    tagger = _tagger(model, runtime=runtime, device="cpu" if gpus_per_actor else device, dtype=dtype, **checkpoint)
    if runtime == "auto":
        runtime = "torch" if gpus_per_actor else tagger.engine.runtime.name
    options.check(tagger)
    packed = pack(tagger, options)
    fingerprint = {
        "format": FORMAT_VERSION,
        "model": {"name": packed.name, "digest": packed.digest},
        "runtime": runtime,
        "dtype": dtype or "float32",
        "options": options.fingerprint(),
    }
    begun = settings is not None
    if settings is None:
        settings = {"run_id": uuid.uuid4().hex, "version": __version__, "parts": 0, "fingerprint": fingerprint}
        plan.save_labels(_label_rows(tagger))
    else:
        plan.check(settings, fingerprint)
    work = Work(
        plan=plan,
        setup=Setup(
            model="", analysis=digest(fingerprint), options=options, runtime=runtime, device=device, dtype=dtype
        ),
        stamp={
            "model": packed.name,
            "model_digest": packed.digest,
            "version": __version__,
            "run_id": settings["run_id"],
        },
        retry_errors=retry_errors,
        hang_s=hang_s,
        memory_bytes=memory_bytes,
    )
    reporter = Reporter(Summary(output), quiet=quiet, silent=not progress)
    known: set[bytes] = set()

    def do(parts: list[int]) -> None:
        if shard is None:
            results = on_cluster(parts, work, packed, cluster, reporter.tell)
        else:
            fewest, most = cluster.actors
            workers = allowed_cores() if actors is None else most or fewest
            results = on_pool(parts, work, packed, workers=workers)
        with closing(results):
            for done in results:
                reporter.done(done)

    try:
        if begun:
            left, weight, before = _left(plan, settings["parts"], known, all_=retry_errors)
            reporter.summary.parts_before = len(plan.committed()) if not retry_errors else 0
            if left:
                reporter.start(weight, before)
                do(left)
        found = listing([inputs] if isinstance(inputs, str) else inputs, listed, (plan.root, plan.folder))
        cut_s = segment_s if options.cuts else None
        indexer = Indexer(options.grid(tagger), cut_s, known, plan.shares, audio_column)
        with closing(indexer.entries(reporter.finding(found))) as entries:
            first = settings["parts"]
            settings["parts"], weight = plan.extend(entries, first)
        if settings["parts"] > first:
            plan.save(settings)
            if begun:
                reporter.tell("there are inputs that were not there when the plan was made; doing them too")
            reporter.start(weight, 0.0)
            do([part for part, _ in plan.planned(settings["parts"]) if part >= first])
        elif not begun:
            plan.save(settings)
    finally:
        reporter.close()
    reporter.finish()
    return reporter.summary


def _left(plan: Plan, count: int, known: set[bytes], *, all_: bool) -> tuple[list[int], float, float]:
    """List the parts to do, with the weight of all and of those done; keys of what is planned become `known`."""
    committed = set() if all_ else plan.committed()
    parts, weight, before = [], 0.0, 0.0
    for part, entries in plan.planned(count):
        known.update(entry.key() for entry in entries)
        heavy = sum(entry.weight for entry in entries)
        weight += heavy
        if part in committed:
            before += heavy
        else:
            parts.append(part)
    return parts, weight, before


def pack(tagger: Tagger, options: Options) -> Model:
    """Make a tagger's checkpoint into the files that workers load."""
    with tempfile.TemporaryDirectory(prefix="audiotag-model-") as name:
        folder = tagger.save_pretrained(Path(name) / "model")
        files = {path: (folder / path).read_bytes() for path in (CONFIG_FILE, WEIGHTS_FILE)}
    features = sum(tagger.layers[layer] for layer in options.layer) if options.kind == "embeddings" else 0
    return Model(tagger.config.name, files, features)


def digest(fingerprint: dict[str, Any]) -> str:
    """Digest everything that decides rows, for their ids."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _tagger(model: Any, **options: Any) -> Tagger:
    from ..tagger import Tagger

    return model if isinstance(model, Tagger) else Tagger.from_pretrained(model, **options)


def _label_rows(tagger: Tagger) -> list[dict[str, Any]]:
    return [{"label": label.index, "mid": label.mid, "name": label.display_name} for label in tagger.labels]


def _names(names: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return (names,) if isinstance(names, str) else tuple(names)


def _checked_shard(shard: Any) -> tuple[int, int] | None:
    if shard is None:
        return None
    number, count = shard
    if not 1 <= number <= count:
        raise InvalidInputError(f"shard must be (number, count) with 1 <= number <= count, got {shard!r}")
    return number, count


def _checked_actors(actors: Any) -> tuple[int, int | None]:
    fewest, most = (1, None) if actors is None else (actors, actors) if isinstance(actors, int) else actors
    if fewest < 1 or (most is not None and most < fewest):
        raise InvalidInputError(f"actors must be a number or (fewest, most) with 1 <= fewest <= most, got {actors!r}")
    return fewest, most
