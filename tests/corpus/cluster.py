"""What the long checks share: a corpus of small files, a tiny checkpoint, several Ray nodes on one machine, and the
check that an output is exactly what it should be.

Each node of `ray.cluster_utils.Cluster` is a set of processes of its own, so killing them is losing a machine.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile

from tests.tiny import RATE, sound

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of a cluster on loopback


def make_corpus(folder: Path, count: int, *, damaged: int = 10, long_s: float = 0.0) -> None:
    """Short recordings, every `damaged`-th of them no recording, and a long one."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"{i % 5}" / f"{i:05d}.wav"
        path.parent.mkdir(exist_ok=True)
        if i % damaged == 3:
            path.write_bytes(b"RIFF" + bytes(rng.randrange(256) for _ in range(40)))
        else:
            soundfile.write(path, sound(0.2 + rng.random(), seed=i), RATE)
    if long_s:
        with soundfile.SoundFile(folder / "long.flac", "w", RATE, 1) as file:
            for i in range(int(long_s / 10)):
                file.write(sound(10, seed=i))


def make_model(folder: Path) -> str:
    """A tiny checkpoint, made by another process so that this one imports no torch."""
    code = (
        "import sys; from audiotag.checkpoints.save import save_checkpoint; from tests.tiny import tiny_checkpoint; "
        "save_checkpoint(tiny_checkpoint(), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return str(folder)


def command(inputs: Path | str, output: Path | str, model: str, *more: str) -> list[str]:
    words = ["corpus", str(inputs), "-o", str(output), "--model", model, "--device", "cpu", *more]
    return [sys.executable, "-m", "audiotag", *words]


def start(words: list[str], *, child: str = "") -> subprocess.Popen[str]:
    """The command as a process, in parts of a few files each; `child`: the module that its workers' children run."""
    code = (
        "import sys, functools, audiotag.corpus.plan as plan, audiotag.corpus.driver as driver; "
        f"plan.SHORTEST_PART_S = 4.0; driver.Work = functools.partial(driver.Work, child={child!r}); "
        "from audiotag.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen([words[0], "-c", code, *words[3:]], stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], timeout_s: float = 240) -> str:
    """Wait for a process; what it told."""
    told = process.communicate(timeout=timeout_s)[1]
    return told


def parts(output: Path) -> dict[str, int]:
    """Committed parts, and when each was."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while len(parts(output)) < count:
        if process.poll() is not None:
            raise AssertionError(f"it ended before {count} parts were done: {process.communicate()[1]}")
        assert time.monotonic() < deadline, f"{len(parts(output))} of {count} parts in {timeout_s} s"
        time.sleep(0.05)


def rows_of(output: Path | str) -> list[dict]:
    return pq.read_table(output).to_pylist()


def check(output: Path, expected: Path) -> Counter[str]:
    """Compare an output with an undisturbed run's, row for row; statuses.

    Raises
    ------
    AssertionError
        A row is missing, twice, or another.
    """
    found, wanted = rows_of(output), rows_of(expected)
    ids = Counter(row["id"] for row in found)
    assert ids == Counter(row["id"] for row in wanted), "lost or doubled ids"
    assert max(ids.values()) == 1
    unstamped = [{row["id"]: {**row, "run_id": ""} for row in rows} for rows in (found, wanted)]
    assert unstamped[0] == unstamped[1], "a row differs"
    return Counter(row["status"] for row in found)


def processes_of(root: int) -> dict[int, str]:
    """All descendants of a process, with their command lines."""
    children: dict[int, list[int]] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                children.setdefault(int(stat[1]), []).append(int(entry.name))
            except OSError:
                continue
    found, waiting = {}, [root]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            found[pid] = lines.get(pid, "")
            waiting.append(pid)
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def note(name: str, **facts: object) -> None:
    print(json.dumps({"check": name, **facts}), flush=True)


def same_tags(rows: list[dict], jsonl: Path) -> int:
    """Compare whole recordings' rows with what ``audiotag tag --format jsonl`` wrote, bit for bit; how many."""
    by_path = {os.path.abspath(r["source"]): r for r in map(json.loads, jsonl.read_text().splitlines())}
    compared = 0
    for row in rows:
        record = by_path[row["uri"]]
        if row["status"] != "ok":
            assert row["error"].endswith(record["error"]), (row["error"], record["error"])
        elif (row["start_s"], row["end_s"]) == (0.0, row["duration_s"]):
            found = [(tag["label"], np.float32(tag["score"])) for tag in row["tags"]]
            assert found == [(tag["index"], np.float32(tag["score"])) for tag in record["tags"]], row["uri"]
            compared += 1
    return compared
