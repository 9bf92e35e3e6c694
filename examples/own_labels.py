"""Learn labels of your own, look at how good they are, and tag with them.

    python examples/own_labels.py [FOLDER [OUTPUT]]

FOLDER holds one folder per label: FOLDER/dog/1.wav, FOLDER/rain/7.flac, ... Without it, sounds of three kinds and some
quiet ones are made. OUTPUT is the checkpoint folder to make. Needs audiotag-dymn[fit].
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

import audiotag

RATE = 16_000


def make_sounds(root):
    """Twelve takes each of whistles, engines, hail, and near silence, which is called background: no label."""
    rng = np.random.default_rng(0)
    t = np.arange(2 * RATE) / RATE
    for take in range(12):
        noise = rng.standard_normal(len(t))
        pitch = rng.uniform(800, 1600) + 200 * np.sin(2 * np.pi * rng.uniform(3, 6) * t)
        kinds = {
            "whistle": np.sin(2 * np.pi * np.cumsum(pitch) / RATE),
            "engine": np.sign(np.sin(2 * np.pi * rng.uniform(30, 60) * t)) * (0.7 + 0.3 * noise),
            "hail": noise * (rng.random(len(t)) < 0.01) * 3,
            "background": 0.01 * noise,
        }
        for kind, wave in kinds.items():
            (root / kind).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / kind / f"{take}.wav", np.clip(0.2 * wave, -1, 1), RATE)
    return root


place = Path(tempfile.mkdtemp())
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make_sounds(place / "sounds")
run = audiotag.fit(folder, sys.argv[2] if len(sys.argv) > 2 else place / "model", cache_dir=place)

figures = run.metrics["out_of_fold"]
low, high = figures["interval_95"]["macro_f1"]
print(f"{figures['clips']} clips, each scored by a model that had not heard it or its copies")
print(f"F1 {figures['macro_f1']:.3f} (95 %: {low:.3f} to {high:.3f}); {run.folder}/report.html has the rest")

for path in sorted(folder.rglob("*.wav"))[::11]:
    tags = run.tagger.predict(path).top()  # at the thresholds stored with the checkpoint: there may be none
    print(f"{path.relative_to(folder)}: {', '.join(f'{tag.label} {tag.score:.2f}' for tag in tags) or 'nothing'}")
