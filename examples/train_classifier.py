"""Embed a folder of labelled sounds and train a classifier on the embeddings.

    python examples/train_classifier.py FOLDER [CHECKPOINT]

FOLDER holds one folder per class: FOLDER/dog/1.wav, FOLDER/rain/7.flac, ... Needs scikit-learn. Prints the
accuracy on files held out by cross-validation, and saves nothing.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audiotag import AudiotagError, Tagger

folder = Path(sys.argv[1])
tagger = Tagger.from_pretrained(sys.argv[2] if len(sys.argv) > 2 else None)
files = sorted(path for path in folder.glob("*/*") if path.is_file())

vectors, classes = [], []
for path, result in tagger.embed_each(files, layer="mid"):  # "mid": the layers that did best on HEAR
    if isinstance(result, AudiotagError):
        print(f"left out: {result}", file=sys.stderr)
        continue
    vectors.append(result.vectors.mean(0))
    classes.append(path.parent.name)

names, counts = np.unique(classes, return_counts=True)
if len(names) < 2 or counts.min() < 2:
    sys.exit(f"{folder}: need at least two classes with two readable files each, found {sorted(set(classes))}")

classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
folds = StratifiedKFold(min(5, int(counts.min())), shuffle=True, random_state=0)
accuracy = cross_val_score(classifier, np.stack(vectors), classes, cv=folds)
print(f"{len(vectors)} files, {len(names)} classes, {vectors[0].size} features from {tagger.config.name}")
print(f"accuracy on held-out files: {accuracy.mean():.3f} (chance {counts.max() / counts.sum():.3f})")
