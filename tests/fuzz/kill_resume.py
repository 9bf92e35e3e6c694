"""Folder runs killed at random moments and resumed: the output must be an undisturbed run's, nothing done twice.

    python -m tests.fuzz.kill_resume --times 50 --seed 0

Every case runs ``audiotag tag``, ``events`` or ``embed`` on the same folder and ends it at random moments, up to four
times, then lets it come to its end and compares every byte. A run is ended in three ways: by SIGKILL when a number of
inputs is done; after a number of seconds of its own processor time, uniform over what a whole run takes, by SIGPROF,
whose default action ends a process as suddenly as SIGKILL; and after such a time by SIGINT, as Ctrl-C sends it. The
processes are forks of one that has imported torch and run nothing, with one thread, for importing takes longer than a
case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import soundfile

import audiotag.tagger  # noqa: F401  # imported once, before the forks
from audiotag.checkpoints.save import save_checkpoint
from audiotag.cli import command as cli
from tests.tiny import RATE, sound, tiny_checkpoint

# command, and the output's name; one without an ending is a folder
KINDS = (
    ("tag", "out.jsonl"),
    ("tag", "out.csv"),
    ("tag", "out.txt"),
    ("tag", "out.parquet"),
    ("embed", "out.npz"),
    ("events", "tree"),
)
MOST_KILLS = 4


def make_inputs(folder: Path, count: int) -> None:
    """Short recordings, some of them damaged, in several folders."""
    rng = random.Random(0)
    for i in range(count):
        path = folder / f"{i % 7}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 17 == 3:
            path.write_bytes(b"RIFF" + bytes(rng.randrange(256) for _ in range(40)))
        else:
            soundfile.write(path, sound(0.2 + rng.random(), seed=i), RATE if i % 2 else 22_050)


def command(kind: tuple[str, str], model: Path, inputs: Path, output: Path) -> list[str]:
    words = [kind[0], str(inputs), "-o", str(output), "--resume"]
    return [*words, "--model", str(model), "--device", "cpu"]


class Process:
    """A fork that runs the command; what it writes on stderr is kept."""

    def __init__(self, words: list[str], sent: str = "", after_s: float = 0.0) -> None:
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if sent == "SIGINT":
                    signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGINT))
                if sent in ("SIGINT", "SIGPROF"):
                    signal.setitimer(signal.ITIMER_PROF, after_s)
                os.dup2(self._told.fileno(), 2)
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                code = cli.main(words)
            except BaseException:
                code = 99
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def _wait(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status, used = os.wait4(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.used_s = used.ru_utime + used.ru_stime
        return self.returncode

    def end(self) -> str:
        """Wait, and return what it told."""
        self._wait(0)
        self._told.seek(0)
        told = self._told.read()
        self._told.close()
        return told


def done_so_far(output: Path) -> int:
    """Inputs that a run has finished, as another process sees them."""
    if not output.suffix:
        return sum(1 for path in output.rglob("*.wav.jsonl") if ".audiotag" not in path.parts)
    try:
        return (output.with_name(output.name + ".partial") / "records.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def contents(output: Path) -> dict[str, bytes]:
    """An output's bytes, of a folder by file; what a run notes for itself is left out."""
    if output.is_file():
        return {"": output.read_bytes()}
    files = [path for path in output.rglob("*") if path.is_file() and ".audiotag" not in path.parts]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def case(words: list[str], output: Path, count: int, whole_s: float, rng: random.Random) -> list[str]:
    """One run, ended and resumed until it is through; returns what was done to it.

    Raises
    ------
    AssertionError
        An input was done twice or lost, or a signal was not answered as it should be.
    """
    story = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        before = done_so_far(output)
        sent = rng.choice(("SIGKILL", "SIGPROF", "SIGINT"))
        if sent == "SIGKILL":
            aim = rng.randint(before, count)
            process = Process(words)
            while process.poll() is None and done_so_far(output) < aim:
                time.sleep(0.002)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            moment = f"at {aim} done"
        else:
            left_s = whole_s * (1 - 0.8 * before / count)  # loading the checkpoint is a fifth of it
            after_s = rng.uniform(0.1, max(left_s, 0.2))  # parsing the command line is not what is tested
            process = Process(words, sent, after_s)
            moment = f"after {after_s:.3f} s"
        told = process.end()
        story.append(f"{sent} {moment}: exit {process.returncode}, {done_so_far(output)} done")
        expected = {"SIGKILL": -signal.SIGKILL, "SIGPROF": -signal.SIGPROF, "SIGINT": 130}[sent]
        assert process.returncode in (expected, 1), f"{story}: {told}"
        if process.returncode == 130 and "files are done" in told:
            assert "--resume goes on" in told, told
        assert process.returncode != 1 or output.exists(), f"{story}: {told}"
        if process.returncode == 1:
            break  # it came to its end before the signal
        if output.suffix and output.exists():
            break  # the signal came between the output's appearance and the end
        assert done_so_far(output) >= before, f"lost what was done: {story}"
    kept = done_so_far(output)
    process = Process(words)
    told = process.end()
    assert process.returncode == 1, f"some inputs are damaged: {story}, {told}"
    if kept and "nothing to do" not in told:
        assert f"{kept:,} done before" in told, f"{story}: {kept} were done, {told}"
    return story


def run(cases: range, seed: int, count: int) -> Counter[str]:
    """The cases of these numbers; returns how often which signal ended a process how.

    Raises
    ------
    AssertionError
        An output differs from an undisturbed run's; says which case.
    """
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        folder = Path(name)
        model, inputs = folder / "model", folder / "in"
        make_inputs(inputs, count)
        maker = os.fork()  # this process is to run nothing itself
        if maker == 0:
            save_checkpoint(tiny_checkpoint(), model)
            os._exit(0)
        os.waitpid(maker, 0)
        whole: dict[str, dict[str, bytes]] = {}
        whole_s: dict[str, float] = {}
        for number in cases:
            rng = random.Random(f"{seed}/{number}")
            kind = KINDS[number % len(KINDS)]
            if kind[1] not in whole:
                undisturbed = folder / "whole" / kind[1]
                process = Process(command(kind, model, inputs, undisturbed))
                told = process.end()
                assert process.returncode == 1, told
                whole[kind[1]], whole_s[kind[1]] = contents(undisturbed), process.used_s
            place = folder / "case"
            place.mkdir()
            words = command(kind, model, inputs, place / kind[1])
            story = case(words, place / kind[1], count, whole_s[kind[1]], rng)
            found = contents(place / kind[1])
            differing = [path for path in {**found, **whole[kind[1]]} if found.get(path) != whole[kind[1]].get(path)]
            assert not differing, f"case {number} of seed {seed}, {kind}: {differing[:5]} differ after {story}"
            left = sorted(path.name for path in place.iterdir())
            assert left in ([kind[1]], [kind[1], kind[1] + ".run.json"]), f"case {number}: {left} after {story}"
            shutil.rmtree(place)
            ends.update(f"{line.split()[0]}: {line.split(': ')[1].split(',')[0]}" for line in story)
            print(json.dumps({"case": number, "output": kind[1], "kills": story}), flush=True)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to run them in parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=150, help="inputs of each run")
    args = parser.parse_args()
    cli.build_parser()  # imports what the command line needs
    began = time.monotonic()
    ends = run(range(args.first, args.first + args.times), args.seed, args.files)
    kills = sum(number for end, number in ends.items() if not end.endswith("exit 1"))
    print(f"{args.times} runs of {args.files} files, {kills} kills, in {time.monotonic() - began:.0f} s: all equal")
    print(json.dumps(dict(ends.most_common())))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "OMP_NUM_THREADS": "1"})
    main()
