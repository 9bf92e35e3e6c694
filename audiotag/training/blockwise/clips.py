"""Clips scored once: the map that every fit begins with, and what the teacher makes of it, at a few places of each map.

A fit of one block needs the whole map before it, whose means are its context, but a few places behind it tell nearly
as much as all: it is many clips that count. So a clip of 10 s is 0.3 MB, and tens of thousands fit a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ...files import write_whole
from ...frontend.logmel import LogMel
from ...networks.mobilenet import MN
from ..feature_maps import Variances, teacher_maps
from ..inherit import exact_blocks
from ..mixing import Mixer

PART_CLIPS = 400  # in a file
CLIPS_AT_ONCE = 8
SPLITS = {"train": 0, "val": 1}  # what the generator of a split's clips is seeded with


@dataclass(frozen=True)
class ScoredClips:
    """Clips as the teacher hears them.

    before : list of Tensor
        (C, F, T), float16, of each clip: the map behind the blocks that student and teacher share.
    places : list of Tensor
        (clips, places), int32, for each block behind those: where in the flattened map of its output.
    out : list of Tensor
        (clips, C, places), float16: the teacher's output of each block there.
    hidden, logits : Tensor
        (clips, ...), float32: the classifier's hidden layer before its activation, and the logits, which may be a mean
        over turns of the clip.
    """

    before: list[Tensor]
    places: list[Tensor]
    out: list[Tensor]
    hidden: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.before)

    def variances(self) -> Variances:
        """Compute the variance of the channels of each block's output and of the hidden layer; of the head, none."""
        out = [target.float().transpose(0, 1).flatten(1).var(1) for target in self.out]
        return Variances(out, torch.empty(0), self.hidden.var(0))


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """Take the values of a map (B, C, F, T) at each clip's own places (B, P): (B, C, P)."""
    return x.flatten(2).gather(2, places.long()[:, None].expand(-1, x.shape[1], -1))


@torch.no_grad()
def score_clips(
    teacher: MN, mixer: Mixer, rng: np.random.Generator, *, count: int, samples: int, places: int, turns: int
) -> dict[str, Tensor]:
    """Mix clips of that many samples and score them: the tensors of `ScoredClips`, under the names of its file.

    turns: how often each is scored again, begun at a random frame and its start behind its end; logits are means.
    """
    first = exact_blocks(teacher)
    logmel = LogMel()
    found: list[dict[str, Tensor]] = []
    for begin in range(0, count, CLIPS_AT_ONCE):
        mel = x = logmel(torch.from_numpy(mixer.clips(rng, min(CLIPS_AT_ONCE, count - begin), samples)))
        for layer in list(teacher.features)[: first + 1]:
            x = layer(x)
        maps = teacher_maps(teacher, x, first=first)
        logits = [maps.logits] + [teacher(turned(rng, mel)).logits for _ in range(turns)]
        tensors = {"before": x.half(), "hidden": maps.hidden, "logits": torch.stack(logits).mean(0)}
        for number, stage in enumerate(maps.stages):
            where = torch.from_numpy(rng.integers(0, stage.out[0, 0].numel(), (len(x), places), dtype=np.int32))
            tensors |= {f"places{number}": where, f"out{number}": at_places(stage.out, where).half()}
        found.append(tensors)
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def turned(rng: np.random.Generator, mel: Tensor) -> Tensor:
    """Begin each of some log-mel clips (B, 1, mels, frames) at a frame of its own, not near either end."""
    frames = mel.shape[3]
    starts = rng.integers(frames // 8, frames - frames // 8, len(mel))
    return torch.stack([one.roll(-int(start), 2) for one, start in zip(mel, starts, strict=True)])


def prepare_clips(
    folder: Path, split: str, count: int, teacher: MN, mixer: Mixer, *, seed: int, samples: int, places: int, turns: int
) -> Iterator[int]:
    """Write the files of a split's clips that `folder` lacks, each whole; yields how many clips there are after each.

    A file is a function of seed, split and number, whichever run wrote it, so that a run goes on after any end.
    """
    for first in range(0, count, PART_CLIPS):
        path = _part(folder, split, first)
        if not path.exists():
            rng = np.random.default_rng([seed, SPLITS[split], first])
            options = {"count": min(PART_CLIPS, count - first), "samples": samples, "places": places, "turns": turns}
            write_whole(path, save(score_clips(teacher, mixer, rng, **options)))
        yield min(first + PART_CLIPS, count)


def read_clips(folder: Path, split: str, count: int) -> ScoredClips:
    """Read the clips that `prepare_clips` wrote; their maps stay on the disk until they are used."""
    parts = [load_file(_part(folder, split, first)) for first in range(0, count, PART_CLIPS)]
    before = [one for part in parts for one in part.pop("before")]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    blocks = range(sum(name.startswith("out") for name in joined))
    return ScoredClips(
        before,
        [joined[f"places{number}"] for number in blocks],
        [joined[f"out{number}"] for number in blocks],
        joined["hidden"],
        joined["logits"],
    )


def _part(folder: Path, split: str, first: int) -> Path:
    return folder / f"{split}-{first:06d}.safetensors"
