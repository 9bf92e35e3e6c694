"""Hostile files on Ray: damaged ones by the hundred, and ones that crash, hang or eat the memory of their process.

    python -m tests.corpus.hostile [--files 150]

Every file must have one row; those that kill their process, and only those, the status ``crashed``; the good ones' tags
must be what the tagger says of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import soundfile

from audiotag.runs.inputs import is_audio_name
from tests.fuzz.mutate import case
from tests.tiny import RATE, sound

from .cluster import command, end, make_model, note, rows_of, start

KILLERS = ("segfault", "hang", "memory")


def make(folder: Path, count: int) -> None:
    """Damaged files, every tenth a good one, and the killers in between."""
    folder.mkdir()
    for i in range(count):
        if i % 10 == 0:
            soundfile.write(folder / f"{i:04d}-good.flac", sound(1.5, seed=i), RATE)
            continue
        damaged = case(0, i)
        suffix = Path(damaged.name).suffix
        name = f"{i:04d}-damaged{suffix if is_audio_name(damaged.name) else '.wav'}"
        (folder / name).write_bytes(damaged.data)
    for i, name in enumerate(KILLERS):
        path = folder / f"{(i + 1) * count // 5:04d}-{name}.wav"
        soundfile.write(path, sound(0.5), RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=150)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpus-hostile-") as name:
        folder = Path(name)
        make(folder / "in", args.files)
        model = make_model(folder / "model")
        began = time.monotonic()
        words = command(folder / "in", folder / "out", model, "--address", "local", "--hang", "15", "--memory", "1.5")
        process = start(words, child="tests.hostile_child")
        told = end(process, 580)
        assert process.returncode == 1, told
        rows = {Path(row["uri"]).name: row for row in rows_of(folder / "out")}
        assert sorted(rows) == sorted(path.name for path in (folder / "in").iterdir()), "not a row for each file"
        crashed = {name for name, row in rows.items() if row["status"] == "crashed"}
        assert crashed == {name for name in rows if any(killer in name for killer in KILLERS)}, crashed
        for name, how in zip(KILLERS, ("SIGSEGV", "no progress for 15 s", "more than 1.5 GB"), strict=True):
            assert any(how in rows[file]["error"] for file in crashed if name in file), name
        assert all(row["status"] == "ok" for name, row in rows.items() if "good" in name)
        from audiotag import Tagger

        tagger = Tagger.from_pretrained(model, device="cpu")
        for name, row in rows.items():
            if "good" in name:
                expected = [(tag.index, tag.score) for tag in tagger.predict(folder / "in" / name).top(10)]
                assert [tag["label"] for tag in row["tags"]] == [label for label, _ in expected]
        note(
            "hostile",
            took_s=round(time.monotonic() - began, 1),
            statuses=dict(Counter(row["status"] for row in rows.values())),
            crashed=[rows[name]["error"].split(": ", 1)[1] for name in sorted(crashed)],
            told=told.strip().splitlines()[-1],
        )


if __name__ == "__main__":
    main()
