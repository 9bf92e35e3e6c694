"""Figures of corpus runs: speed beside ``audiotag tag``, memory over time, scaling with actors that sleep.

    python -m tests.corpus.figures data FOLDER CLIPS      # clips of 10 s (opus) and a recording of three hours (flac)
    python -m tests.corpus.figures speed FOLDER SMALLER [--modes tag shard ray]
    python -m tests.corpus.figures memory FOLDER
    python -m tests.corpus.figures scaling [--actors 8 16 32 64]

speed: wall time of each command over the folder, less that over a smaller one of the same kind: so without start-up.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from .cluster import note, processes_of, same_tags

TAG = [sys.executable, "-m", "audiotag"]


def data(folder: Path, clips: list[Path], hours: float) -> None:
    """A folder of clips, and a long recording made of them, end to end."""
    folder.mkdir(parents=True)
    for clip in clips:
        shutil.copy(clip, folder / clip.name)
    with soundfile.SoundFile(folder / "long.flac", "w", 44_100, 2) as file:
        done, i = 0, 0
        while done < hours * 3600:
            samples, rate = soundfile.read(clips[i % len(clips)], always_2d=True, dtype="float32")
            times = np.arange(int(len(samples) * 44_100 / rate)) * rate / 44_100  # crude; only the load matters
            mono = np.interp(times, np.arange(len(samples)), samples.mean(1))
            file.write(np.stack([mono, mono * 0.8], 1))
            done += len(times) / 44_100
            i += 1


def words(mode: str, source: Path, output: Path) -> list[str]:
    if mode == "tag":
        return [*TAG, "tag", str(source), "-o", str(output.with_suffix(".jsonl")), "--quiet"]
    where = ["--shard", "1/1"] if mode == "shard" else ["--address", "local"]
    return [*TAG, "corpus", str(source), "-o", str(output), "--quiet", *where]


def timed(command: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    return took


def speed(folder: Path, smaller: Path, modes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        took = {}
        for mode in modes:
            less_s = timed(words(mode, smaller, scratch / f"less-{mode}"))
            whole_s = timed(words(mode, folder, scratch / f"all-{mode}"))
            took[mode] = whole_s - less_s
            note("speed", mode=mode, less_s=round(less_s, 1), whole_s=round(whole_s, 1), work_s=round(took[mode], 1))
        if "tag" in took:
            note("ratio", **{mode: round(took[mode] / took["tag"], 3) for mode in modes if mode != "tag"})
            import pyarrow.parquet as pq

            for mode in modes:
                if mode != "tag":
                    rows = pq.read_table(scratch / f"all-{mode}").to_pylist()
                    equal = same_tags(rows, scratch / "all-tag.jsonl")
                    note("rows", mode=mode, rows=len(rows), whole_recordings_equal_bit_for_bit=equal)


def memory(folder: Path) -> None:
    """Memory of the processes of a run, every second: the most in each fifth of it, in MB."""
    with tempfile.TemporaryDirectory() as name:
        process = subprocess.Popen(words("shard", folder, Path(name) / "out"))
        held: list[tuple[int, int]] = []
        page = os.sysconf("SC_PAGE_SIZE")
        while process.poll() is None:
            sizes = []
            family = processes_of(process.pid)
            for pid in (process.pid, *family):
                try:
                    sizes.append((family.get(pid, ""), int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page))
                except (OSError, IndexError):
                    continue
            children = [size for line, size in sizes if "corpus.child" in line]
            held.append((max(children, default=0) >> 20, sizes[0][1] >> 20 if sizes else 0))
            time.sleep(1)
        fifths = np.array_split(np.array(held), 5)
        note(
            "memory",
            largest_child_mb=[int(f[:, 0].max()) for f in fifths],
            parent_mb=[int(f[:, 1].max()) for f in fifths],
        )


def scaling(counts: list[int], part_s: float, parts_each: int) -> None:
    """Wall time with actors that sleep, beside the time all of the sleeping takes divided by their number."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import logging

    import ray

    from audiotag.corpus.cluster import Cluster, run_parts
    from audiotag.corpus.items import FILE, Entry
    from audiotag.corpus.messages import Setup
    from audiotag.corpus.options import Options
    from audiotag.corpus.plan import Plan
    from audiotag.corpus.worker import Model, Work

    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            plan = Plan(name)
            entries = [Entry(FILE, "", f"/{i}", weight=part_s / 2) for i in range(2 * count * parts_each)]
            # two entries a part
            import audiotag.corpus.plan as plans

            plans.SHORTEST_PART_S = part_s
            parts, _ = plan.extend(entries, 0)
            work = Work(plan, Setup("", "", Options()), {}, child="tests.corpus.sleeping_child")
            came: list[tuple[float, str]] = []
            cluster = Cluster(actors=(count, count))
            for done in run_parts(list(range(parts)), work, Model("none", {}, 0), cluster, print):
                came.append((time.monotonic(), done["worker"]))
            ray.shutdown()
        # Start-up apart: of each actor, the time from its first part's end to the end of all, and what it slept of it.
        ends: dict[str, list[float]] = {}
        for when, worker in came:
            ends.setdefault(worker, []).append(when)
        there_s = sum(came[-1][0] - times[0] for times in ends.values())
        slept_s = sum(len(times) - 1 for times in ends.values()) * part_s
        note("scaling", actors=len(ends), parts=parts, there_s=round(there_s), efficiency=round(slept_s / there_s, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("data")
    made.add_argument("folder", type=Path)
    made.add_argument("clips", type=Path, nargs="+")
    made.add_argument("--hours", type=float, default=3.0)
    compared = commands.add_parser("speed")
    compared.add_argument("folder", type=Path)
    compared.add_argument("smaller", type=Path)
    compared.add_argument("--modes", nargs="+", default=["tag", "shard", "ray"])
    commands.add_parser("memory").add_argument("folder", type=Path)
    scaled = commands.add_parser("scaling")
    scaled.add_argument("--actors", type=int, nargs="+", default=[8, 16, 32, 64])
    scaled.add_argument("--part-s", type=float, default=5.0)
    scaled.add_argument("--parts-each", type=int, default=6)
    args = parser.parse_args()
    if args.command == "data":
        data(args.folder, args.clips, args.hours)
    elif args.command == "speed":
        speed(args.folder, args.smaller, args.modes)
    elif args.command == "memory":
        memory(args.folder)
    else:
        scaling(args.actors, args.part_s, args.parts_each)


if __name__ == "__main__":
    main()
