"""`fit`: from labelled recordings to a checkpoint folder, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoints.save import save_checkpoint
from ...errors import InvalidInputError, MissingDependencyError
from ...files import read_json, whole_folder, write_json
from ...inference.head import BIAS, WEIGHT
from .candidates import better, probe_candidate, tuned_candidate
from .clips import Dataset
from .data import check_unreadable, read_data
from .features import Features, embed_clips, network_digest
from .outcome import Outcome
from .probe import fit_probe
from .problems import Problems
from .regression import Problem
from .report import write_report
from .saved import check_saved
from .splits import Folds, describe_data, make_folds

if TYPE_CHECKING:
    from ...tagger import Tagger

log = logging.getLogger(__name__)

METHODS = ("auto", "probe", "finetune")
PARTIAL, RUN_FILE = ".partial", "run.json"
LATER = (
    "scipy.linalg",
    "scipy.optimize",
    "threadpoolctl",
    "audiotag.training.metrics",
    "matplotlib.backends.backend_agg",
)
OWN_SUFFIX = " (own)"  # of a label that AudioSet has too, where both are kept

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


@dataclass(frozen=True)
class FitRun:
    """What a fit made.

    Attributes
    ----------
    folder : Path or None
        The checkpoint folder, with the report in it; None for a dry run.
    metrics : dict
        What ``metrics.json`` holds.
    dataset : Dataset
    folds : Folds
    """

    folder: Path | None
    metrics: dict[str, Any]
    dataset: Dataset
    folds: Folds
    device: str | None = None

    @property
    def tagger(self) -> Tagger:
        """The checkpoint of `folder`, ready; loaded anew each time it is asked for."""
        from ...tagger import Tagger

        if self.folder is None:
            raise InvalidInputError("a dry run makes no checkpoint; fit without dry_run")
        return Tagger.from_pretrained(self.folder, device=self.device)


def fit(
    data: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[Any] | None = None,
    method: str = "auto",
    model: str | os.PathLike[str] | None = None,
    task: str = "auto",
    group: str | None = None,
    folds: int | str | None = None,
    test: Any = None,
    negatives: str | os.PathLike[str] | None = None,
    keep_audioset: bool = False,
    time_limit_s: float | None = None,
    resume: bool = False,
    seed: int = 0,
    dry_run: bool = False,
    device: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FitRun:
    """Learn labels of one's own and write a checkpoint folder that is used like any other.

    Parameters
    ----------
    data : path, DataFrame, or sequence of paths
        A folder of folders named by label; recordings with Audacity or Raven annotation files beside them; a CSV, TSV
        or DataFrame with the columns ``file`` and ``label`` and any of ``onset``, ``offset``, ``fold``, ``split``,
        ``group``; or paths, with `labels`. In a label cell ``a;b`` are two labels, ``-a`` is verified absent, ``?a``
        unknown. Labels called background, noise, none or silence are no label.
    output : path, optional
        Folder to make, new or empty. None: one in the temporary directory.
    labels : sequence, optional
        A label, or a sequence of them, for each path of `data`.
    method : {"auto", "probe", "finetune"}
        "probe": logistic regression on embeddings, seconds after embedding. "finetune": everything trains. "auto": a
        probe, then fine-tuning where `time_limit_s` leaves room for it; the better one by out-of-fold figures is kept.
    model : str or path, optional
        Checkpoint to start from; None: the one inside the package.
    task : {"auto", "single", "multi"}
        Whether a recording has at most one label.
    group : str, optional
        What must stay together in splits: ``file``, ``parent``, a column, or a regular expression on the path.
    folds : int or str, optional
        How many, or the column that says them; None: the column ``fold`` where there is one, else 5.
    test : optional
        Data that is never trained on, and reported apart.
    negatives : path, optional
        Folder of recordings with no label.
    keep_audioset : bool
        Whether the checkpoint gives the network's own labels too.
    time_limit_s : float, optional
        Of the whole fit, in seconds; fine-tuning is planned to fit into it.
    resume : bool
        Go on with fine-tuning where a killed fit with the same arguments was.
    seed : int
    dry_run : bool
        Check the data and make the splits, nothing more.
    device : str, optional
        As for `Tagger.from_pretrained`.
    cache_dir : path, optional
        Folder where embeddings are kept; None: ``~/.cache/audiotag``.
    progress : callable, optional
        Called with what is being done, how much is done, and of how much.

    Returns
    -------
    FitRun

    Raises
    ------
    InvalidInputError
        All that is wrong with the data or arguments, before anything is computed.
    CheckpointError
        The saved folder did not give the trained model's scores; nothing is left.
    MissingDependencyError
        The extra [fit] is not installed.
    """
    require()
    started = time.monotonic()
    if method not in METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if time_limit_s is not None and not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise InvalidInputError(f"time_limit_s must be a positive number of seconds, got {time_limit_s!r}")
    tell = progress or (lambda *_: None)
    base = _base_tagger(model, device)
    target = _target(output)
    replaces = resume and _interrupted(target)
    tell("reading the data", 0, 1)
    dataset, fold_set = _checked(
        data,
        target,
        base,
        labels=labels,
        negatives=negatives,
        test=test,
        task=task,
        group=group,
        folds=folds,
        seed=seed,
        keep_audioset=keep_audioset,
        dry_run=dry_run,
        replaces=replaces,
    )
    if dry_run:
        return FitRun(None, describe_data(dataset, fold_set), dataset, fold_set, device)
    _import_ahead()
    features = embed_clips(base, dataset.clips, cache=cache_dir, progress=lambda n, of: tell("embedding", n, of))
    dataset, features = _readable(dataset, features)
    if len(features.failed):
        fold_set = _folds(dataset, folds, seed)
    embedded_s = time.monotonic() - started
    problem = _problem(dataset, features, fold_set)
    tell("fitting the probe", 0, 1)
    probe = fit_probe(problem, progress=lambda n, of: tell("fitting the probe", n, of))
    name = target.resolve().name
    best = probe_candidate(base, probe, features, dataset, problem, keep_audioset, name)
    work = target.with_name(target.name + PARTIAL)
    compared: dict[str, Any] = {}
    interrupted = False
    if _tunes(method, time_limit_s, base):
        from .tuned import FineTuning, fingerprint

        told = fingerprint(
            dataset, problem, network_digest(base), keep=keep_audioset, seed=seed, limit=time_limit_s, method=method
        )
        _claim(work, told, resume=resume)
        deadline = None if time_limit_s is None else started + time_limit_s
        tuning = FineTuning(
            base, dataset, problem, probe, work, keep_network=keep_audioset, seed=seed, name=name, tell=tell
        )
        try:
            tuned = tuning.run(deadline)
            interrupted = tuning.interrupted
        except KeyboardInterrupt:
            tuned, interrupted = None, True
        if interrupted:
            log.warning("interrupted: the best so far is kept; the same command with --resume goes on")
        if tuned is not None:
            other = tuned_candidate(tuned, base, dataset, problem)
            best, compared = better(best, other, dataset) if method == "auto" else (other, {})
    outcome = Outcome.of(
        best.method,
        dataset,
        fold_set,
        best.scores,
        best.judged,
        best.checkpoint,
        test_scores=best.test_scores(),
        details={
            **best.details,
            **compared,
            "base": base.config.name,
            "embedded": features.computed,
            "seconds_embedding": round(embedded_s, 2),
            **({"interrupted": True} if interrupted else {}),
        },
        seed=seed,
    )
    with whole_folder(target.with_name(f".{name}.resumed") if replaces else target) as made:
        tell("writing the checkpoint", 0, 1)
        save_checkpoint(replace(best.checkpoint, card=best.checkpoint.card | outcome.card()), made)
        outcome.metrics["seconds"] = round(time.monotonic() - started, 2)
        tell("writing the report", 0, 1)
        with ThreadPoolExecutor(1) as pool:  # beside the drawing, for the network runs outside of Python
            checked = pool.submit(check_saved, made, best.expected, dataset, device)
            write_report(made, outcome)
            checked.result()
    if replaces:
        shutil.rmtree(target)
        target.with_name(f".{name}.resumed").rename(target)
    if not interrupted:
        shutil.rmtree(work, ignore_errors=True)
    return FitRun(target, outcome.metrics, dataset, fold_set, device)


def require() -> None:
    """Raise `MissingDependencyError` where the extra [fit] is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise MissingDependencyError("fit needs scikit-learn: pip install 'audiotag-dymn[fit]'")


def _import_ahead() -> None:
    """Import in the background what comes after embedding, which waits for files and other threads now and then."""

    def imports() -> None:
        with contextlib.suppress(ImportError):  # told where it is needed
            for name in LATER:
                importlib.import_module(name)

    threading.Thread(target=imports, name="audiotag-import", daemon=True).start()


def _base_tagger(model: Any, device: str | None) -> Tagger:
    """The checkpoint to start from; a head of own labels that it has is left out."""
    from ...checkpoints.load import load_checkpoint
    from ...tagger import Tagger

    checkpoint = load_checkpoint(model)
    if checkpoint.config.head is not None:
        config = replace(checkpoint.config, head=None, thresholds=None, threshold_support=None)
        state = {name: tensor for name, tensor in checkpoint.state.items() if name not in (WEIGHT, BIAS)}
        checkpoint = replace(checkpoint, config=config, state=state)
    return Tagger(checkpoint, device=device)


def _target(output: str | os.PathLike[str] | None) -> Path:
    if output is None:
        return Path(tempfile.mkdtemp(prefix="audiotag-fit-"))
    return Path(output).expanduser()


def _checked(data: Any, target: Path, base: Tagger, **options: Any) -> tuple[Dataset, Folds]:
    """The data and its folds, or all problems at once, the output folder's among them."""
    keep, dry_run, seed = options.pop("keep_audioset"), options.pop("dry_run"), options.pop("seed")
    folds, replaces = options["folds"], options.pop("replaces")
    problems = Problems()
    if not dry_run and target.exists() and (not target.is_dir() or any(target.iterdir())) and not replaces:
        problems.error(str(target), "the output folder is not empty", "name a new one, or delete it first")
    dataset = read_data(data, window_s=base.config.window_s, problems=problems, **options)
    if keep:
        names = base.labels.names
        renamed = {name: name + OWN_SUFFIX for name in dataset.labels if name in names}
        dataset = _renamed(dataset, renamed)
    return dataset, _folds(dataset, folds, seed)


def _renamed(dataset: Dataset, renamed: dict[str, str]) -> Dataset:
    if not renamed:
        return dataset

    def new(names: frozenset[str]) -> frozenset[str]:
        return frozenset(renamed.get(name, name) for name in names)

    clips = tuple(
        replace(c, present=new(c.present), absent=new(c.absent), unknown=new(c.unknown)) for c in dataset.clips
    )
    return replace(dataset, clips=clips, labels=tuple(renamed.get(name, name) for name in dataset.labels))


def _folds(dataset: Dataset, folds: int | str | None, seed: int) -> Folds:
    return make_folds(
        dataset.clips,
        dataset.targets,
        n_folds=folds if isinstance(folds, int) else None,
        task=dataset.task,
        seed=seed,
        problems=dataset.problems,
    )


def _readable(dataset: Dataset, features: Features) -> tuple[Dataset, Features]:
    """Both without the clips that could not be decoded; too many of them stop the fit."""
    if not features.failed:
        return dataset, features
    problems = Problems()
    failed = {dataset.clips[i].path: told for i, told in features.failed.items()}
    check_unreadable({**dataset.unreadable, **failed}, len({clip.path for clip in dataset.clips}), problems)
    problems.stop()
    for path, told in failed.items():
        dataset.problems.warn(path, told, "it is left out")
    kept = np.array([i not in features.failed for i in range(len(dataset.clips))])
    number = np.cumsum(kept) - 1
    clips = tuple(clip for clip, keep in zip(dataset.clips, kept, strict=True) if keep)
    dataset = replace(dataset, clips=clips, unreadable={**dataset.unreadable, **failed})
    return dataset, replace(features, clip=number[features.clip])


def _problem(dataset: Dataset, features: Features, folds: Folds) -> Problem:
    targets = dataset.targets
    single = dataset.task == "single"
    rest = single and bool((np.nan_to_num(targets)[folds.index >= 0].sum(1) == 0).any())
    return Problem(features, targets, folds, "softmax" if single else "sigmoid", rest)


def _tunes(method: str, time_limit_s: float | None, base: Tagger) -> bool:
    """Whether fine-tuning is tried: where asked for; else where a time is given, or an accelerator is there."""
    if method == "auto":
        return time_limit_s is not None or not str(base.device).startswith("cpu")
    return method == "finetune"


def _interrupted(target: Path) -> bool:
    """Whether a folder is what an interrupted fine-tuning kept, which the same fit may replace."""
    told = read_json(target / "metrics.json")
    return (
        told is not None
        and bool(told.get("details", {}).get("interrupted"))
        and target.with_name(target.name + PARTIAL).is_dir()
    )


def _claim(work: Path, told: dict[str, Any], *, resume: bool) -> None:
    """Take the run's folder: go on with an earlier run of the same kind, or begin anew."""
    earlier = read_json(work / RUN_FILE)
    if resume and earlier is not None:
        differing = [key for key in told if earlier.get(key) != told[key]]
        if differing:
            raise InvalidInputError(
                f"--resume: {work} is of a fit with another {', '.join(differing)}; give the same, or leave "
                "out --resume to start anew"
            )
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_json(work / RUN_FILE, told)
