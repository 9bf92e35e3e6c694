"""Mutation run: thousands of damaged audio files, each of which must give samples or an AudiotagError.

    python tests/fuzz/run.py --cases 10000 --seed 1

Cases are read in worker processes under a memory limit, so that a crash, a hang or a flood of output of a native
library is caught and named: anything but samples or an AudiotagError within the limits fails the run. A case is made
from the seed and its number alone; ``--first N --cases 1`` repeats case N, ``--keep FOLDER`` saves the failed ones.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS_ALLOWED = 5.0  # of the processor; a case that is merely kept waiting by a busy machine has not failed
SECONDS_UNTIL_HUNG = 30.0
MEGABYTES_ALLOWED = 500


class Worker:
    """One worker process and the case it is at; a new process after each one that had to be ended."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None

    def ask(self, number: int) -> dict[str, Any]:
        """The worker's answer for a case, or what became of the worker."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=SECONDS_UNTIL_HUNG + self._grace_s)
        except (queue.Empty, BrokenPipeError):
            line = ""
        self._grace_s = 0.0
        if line:
            return json.loads(line)
        self._process.kill()
        code = self._process.wait()
        self._process = None
        hung = code == -signal.SIGKILL
        failed = f"no answer within {SECONDS_UNTIL_HUNG:g} s" if hung else f"the process ended with {_ending(code)}"
        return {"case": number, "failed": failed}

    def _start(self) -> None:
        command = [sys.executable, str(HERE / "worker.py"), str(self._seed), str(MEGABYTES_ALLOWED)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self._grace_s = 30.0  # imports, before the first answer
        threading.Thread(target=self._listen, args=(self._process.stdout, self._lines), daemon=True).start()

    @staticmethod
    def _listen(stdout: Any, lines: queue.Queue[str]) -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def fault(answer: dict[str, Any]) -> str | None:
    """Why an answer is not acceptable, or None."""
    if "failed" in answer:
        return answer["failed"]
    if answer["noise"]:
        return f"printed: {answer['noise']}"
    if answer["seconds"] > SECONDS_ALLOWED:
        return f"took {answer['seconds']:.1f} s"
    return None


def run(cases: int, seed: int, *, first: int = 0, workers: int = 2) -> tuple[Counter[str], list[str]]:
    """Read ``cases`` damaged files; returns how many ended how, and a line for each that is not acceptable."""
    numbers: queue.Queue[int] = queue.Queue()
    for number in range(first, first + cases):
        numbers.put(number)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    slowest, slowest_case = 0.0, -1
    lock = threading.Lock()

    def work() -> None:
        nonlocal slowest, slowest_case
        worker = Worker(seed)
        while True:
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                return worker.close()
            answer = worker.ask(number)
            reason = fault(answer)
            with lock:
                if answer.get("seconds", 0.0) > slowest:
                    slowest, slowest_case = answer["seconds"], number
                if reason is not None:
                    counts["FAULT"] += 1
                    faults.append(f"case {number} (seed {seed}; {answer.get('story', '?')}): {reason}")
                elif "refused" in answer:
                    counts[answer["refused"].partition(":")[0]] += 1
                else:
                    counts["samples, with warnings" if answer["warnings"] else "samples"] += 1

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts[f"ms for the slowest, case {slowest_case}"] = round(1000 * slowest)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    options = parser.parse_args()
    counts, faults = run(options.cases, options.seed, first=options.first, workers=options.workers)
    for line in faults:
        print(line)
    print(json.dumps(counts))
    if options.keep is not None:
        _keep(options.keep, options.seed, faults)
    return 1 if faults else 0


def _keep(folder: Path, seed: int, faults: list[str]) -> None:
    from mutate import case

    folder.mkdir(parents=True, exist_ok=True)
    for line in faults:
        number = int(line.split()[1])
        damaged = case(seed, number)
        (folder / f"{number}-{damaged.name}").write_bytes(damaged.data)


if __name__ == "__main__":
    sys.exit(main())
