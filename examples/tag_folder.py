"""Tag every audio file under a folder, with a progress bar: python examples/tag_folder.py FOLDER [CHECKPOINT]

A file that cannot be read is reported and the others go on. For large collections use the command instead:
``audiotag tag FOLDER -o tags.jsonl --resume`` also survives being stopped.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from audiotag import AudiotagError, Tagger

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}

folder = Path(sys.argv[1])
tagger = Tagger.from_pretrained(sys.argv[2] if len(sys.argv) > 2 else None)
files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
if not files:
    sys.exit(f"{folder}: no audio files in it")

failed = 0
for path, result in tqdm(tagger.predict_each(files), total=len(files), unit="file"):
    if isinstance(result, AudiotagError):
        failed += 1
        tqdm.write(f"{path.relative_to(folder)}: {result}", file=sys.stderr)
    else:
        best = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in result.top(3))
        tqdm.write(f"{path.relative_to(folder)}: {best}")
sys.exit(1 if failed else 0)
