"""Kill a fine-tuning fit at random moments, resume it, and compare every tensor with a run left alone.

    python -m tests.fuzz.kill_fit --runs 10 --seed 0

Each run is a fit of 24 made sounds by a tiny network (two folds, six epochs) in a process of its own, killed (SIGKILL)
up to `--kills` times and gone on with by resume=True. Prints one line a run; exits 1 where a checkpoint differs.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import sys
import torch
import audiotag
from audiotag.training.fit import finetune, tuned
torch.set_num_threads(1)
tuned.EPOCHS = 6
finetune.SAVE_EVERY_S = 0.2
root = sys.argv[1]
audiotag.fit(f"{root}/sounds", sys.argv[2], model=f"{root}/base", method="finetune", folds=2, resume=True,
             cache_dir=f"{root}/cache")
"""


def prepare(root):
    """A tiny checkpoint and recordings."""
    from audiotag.checkpoints.save import save_checkpoint

    from ..sounds import write_folders
    from ..tiny import tiny_checkpoint

    save_checkpoint(tiny_checkpoint("mn"), root / "base")
    write_folders(root / "sounds")


def start(root, output):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, root, output], stderr=subprocess.PIPE, text=True)


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="audiotag-kill-fit-"))
    try:
        prepare(root)
        for name in ("alone", "timed"):  # the second finds the embeddings kept, as resumed ones do
            began = time.monotonic()
            if start(root, root / name / "model").wait():
                raise SystemExit("the run that was left alone failed")
            length_s = time.monotonic() - began
        expected = digest(root / "alone" / "model")
        failed = kills = 0
        for run in range(args.runs):
            output, killed = root / f"run{run}" / "model", 0
            while True:
                process = start(root, output)
                if killed < args.kills:
                    try:
                        process.wait(rng.uniform(0.1, 0.9) * length_s)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        killed += 1
                if process.wait() == 0 or (output / "report.html").exists():  # killed when all was done
                    break
                if process.returncode != -signal.SIGKILL:
                    raise SystemExit(f"run {run}: exit code {process.returncode}\n{process.stderr.read()}")
                if output.exists():
                    raise SystemExit(f"run {run}: half an output after a kill")
            same = digest(output) == expected
            failed += not same
            kills += killed
            print(f"run {run}: killed {killed} times, {'same weights' if same else 'OTHER WEIGHTS'}", flush=True)
        print(
            f"{args.runs - failed} of {args.runs} runs, killed {kills} times, gave the weights of the run left alone "
            f"({length_s:.0f} s)"
        )
        raise SystemExit(1 if failed or not kills else 0)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
