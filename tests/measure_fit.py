"""Measure `audiotag fit` beside `audiotag embed` on the same clips: whole commands in turn, nothing kept from before.

    python -m tests.measure_fit DATA [--model NAME] [--rounds 3] [-- more options of fit]

DATA is what `audiotag fit` reads, a table beside its files or a folder. Prints seconds, their ratio and fit's figures.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(*command, folder):
    """Run the audiotag command with an empty cache; its wall time in seconds."""
    env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "audiotag", *map(str, command)], check=True, env=env, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("more", nargs="*", help="more options of fit")
    args = parser.parse_args()
    audio = args.data if args.data.is_dir() else args.data.parent
    model = ["--model", args.model] if args.model else []
    embed, fit = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            layers = ["--layer", "mid", "--layer", "embedding", "--layer", "hidden"]
            embed.append(seconds("embed", audio, "-o", folder / "vectors.npz", *layers, *model, folder=folder))
            fit.append(seconds("fit", args.data, "-o", folder / "mine", *model, *args.more, folder=folder))
            figures = json.loads((folder / "mine" / "metrics.json").read_text())
        told = figures["out_of_fold"]
        print(f"embed {embed[-1]:.2f} s, fit {fit[-1]:.2f} s, ratio {fit[-1] / embed[-1]:.3f}", flush=True)
    ratios = [b / a for a, b in zip(embed, fit, strict=True)]
    print(
        json.dumps(
            {
                "clips": told["clips"],
                "accuracy": told.get("accuracy"),
                "mean_average_precision": told["mean_average_precision"],
                "embed_s": round(statistics.median(embed), 2),
                "fit_s": round(statistics.median(fit), 2),
                "ratio": round(statistics.median(ratios), 3),
                "largest_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
