"""The ways to a checkpoint of own labels, each with what it is judged by, and which is the better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import CheckpointConfig, HeadConfig
from ...inference.head import BIAS, WEIGHT, Head
from .calibrate import clip_max
from .clips import Clip, Dataset
from .features import Features, clip_sources
from .figures import summary
from .probe import Probe
from .regression import Problem

if TYPE_CHECKING:
    from ...checkpoints.load import Checkpoint
    from ...tagger import Tagger
    from .tuned import Tuned


@dataclass(frozen=True)
class Candidate:
    """One way to a checkpoint.

    scores, judged: out-of-fold, (clips, labels), nan where a clip was not tested. expected: the scores (own labels,)
    that the trained model gives a clip, by its number. test_scores: those of the test split's clips, (clips, labels).
    """

    method: str
    checkpoint: Checkpoint
    scores: np.ndarray
    judged: np.ndarray
    details: dict[str, Any]
    expected: Callable[[int], np.ndarray]
    test_scores: Callable[[], np.ndarray | None]


def probe_candidate(
    base: Tagger, probe: Probe, features: Features, dataset: Dataset, problem: Problem, keep: bool, name: str
) -> Candidate:
    """A probe as a checkpoint; what is expected of it comes from the kept embeddings."""
    checkpoint = probe_checkpoint(base.checkpoint, probe, dataset, problem, keep, name)
    head = Head.of(checkpoint.config, checkpoint.state)
    assert head is not None
    columns = features.columns(probe.setting.layers)

    def expected(clip: int) -> np.ndarray:
        return head.own_scores(features.windows[features.clip == clip][:, columns]).max(0)

    def test_scores() -> np.ndarray | None:
        if not (problem.folds.index < 0).any():
            return None
        return clip_max(head.own_scores(features.windows[:, columns]), features.clip, len(dataset.clips))

    details = {**probe.setting.describe(), "chosen_by_fold": [setting.describe() for setting in probe.settings]}
    return Candidate("probe", checkpoint, probe.scores, probe.judged, details, expected, test_scores)


def tuned_candidate(tuned: Tuned, base: Tagger, dataset: Dataset, problem: Problem) -> Candidate:
    """A fine-tuned network as a checkpoint; what is expected of it comes from the network in memory."""
    from ...tagger import Tagger

    head = tuned.checkpoint.config.head
    assert head is not None
    config = own_config(base.config, head, tuned.thresholds, tuned.support, tuned.checkpoint.config.name)
    checkpoint = replace(tuned.checkpoint, config=config, card=base_card(base.checkpoint))
    tagger = Tagger(checkpoint, device=str(base.device))

    def expected(clip: int) -> np.ndarray:
        return scores_of(tagger, [dataset.clips[clip]])[0, -len(dataset.labels) :]

    def test_scores() -> np.ndarray | None:
        held_out = np.flatnonzero(problem.folds.index < 0)
        if not len(held_out):
            return None
        scores = np.full(problem.targets.shape, np.nan)
        scores[held_out] = scores_of(tagger, [dataset.clips[i] for i in held_out])[:, -len(dataset.labels) :]
        return scores

    return Candidate("finetune", checkpoint, tuned.scores, tuned.judged, tuned.details, expected, test_scores)


def scores_of(tagger: Tagger, clips: Sequence[Clip]) -> np.ndarray:
    """Scores (clips, labels) of clips that can be read."""
    return np.stack([tagger.scores(next(clip_sources([clip], tagger.sample_rate))) for clip in clips])


def better(probe: Candidate, tuned: Candidate, dataset: Dataset) -> tuple[Candidate, dict[str, Any]]:
    """The better of two by the figure that counts, on the clips that both were tested on; and both figures."""
    both = np.isfinite(probe.scores).all(1) & np.isfinite(tuned.scores).all(1)
    key = "accuracy" if dataset.task == "single" else "mean_average_precision"
    figures = []
    for one in (probe, tuned):
        told = summary(dataset.targets[both], one.scores[both], one.judged[both], dataset.task)
        figures.append(told[key] or 0.0)
    compared = {"by": key, "clips": int(both.sum()), "probe": figures[0], "finetune": figures[1]}
    return (tuned if figures[1] > figures[0] else probe), {"compared": compared}


def probe_checkpoint(
    base: Checkpoint, probe: Probe, dataset: Dataset, problem: Problem, keep_audioset: bool, name: str
) -> Checkpoint:
    """The base checkpoint with the probe as its head."""
    head = HeadConfig(
        labels=dataset.labels,
        inputs=probe.setting.layers,
        activation=problem.activation,
        rest=problem.rest,
        keep_network=keep_audioset,
        calibration=None if problem.rest and probe.calibration.method == "platt" else probe.calibration.record(),
    )
    state = dict(base.state)
    state[WEIGHT] = probe.weight.astype(np.float32)
    state[BIAS] = probe.bias.astype(np.float32)
    config = own_config(base.config, head, probe.thresholds, probe.support, name)
    return replace(base, config=config, state=state, origin=name, card=base_card(base))


def own_config(
    base: CheckpointConfig, head: HeadConfig, thresholds: np.ndarray, support: np.ndarray, name: str
) -> CheckpointConfig:
    """The configuration of a checkpoint with this head; AudioSet's labels, where kept, keep the thresholds they had."""
    kept = base.network.n_labels if head.keep_network else 0
    before = list(base.thresholds or [None] * kept)[:kept] if kept else []
    before_support = list(base.threshold_support or [None] * kept)[:kept] if kept else []
    return replace(
        base,
        name=name,
        head=head,
        thresholds=(*before, *(None if math.isnan(t) else round(float(t), 6) for t in thresholds)),
        threshold_support=(*before_support, *(int(n) for n in support)),
    )


def base_card(base: Checkpoint) -> dict[str, Any]:
    """The facts of a base checkpoint that hold for one made from it."""
    card = {
        key: base.card[key] for key in ("parameters", "gmacs", "licence", "paper") if base.card.get(key) is not None
    }
    return {**card, "base": base.config.name}
