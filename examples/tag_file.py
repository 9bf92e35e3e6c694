"""Tag one file from Python: python examples/tag_file.py [FILE] [CHECKPOINT]"""

import sys
from pathlib import Path

from audiotag import Tagger

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("train_jet_saw.ogg")
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None  # None: the one inside the package

tagger = Tagger.from_pretrained(checkpoint)
prediction = tagger.predict(path)

print(f"{prediction.source}: {prediction.duration_s:.1f} s, by {prediction.checkpoint}")
for tag in prediction.top(5):
    print(f"  {tag.score:.3f}  {tag.label}")
