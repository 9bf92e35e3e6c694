"""Actors, nodes and drivers killed while a corpus is worked through, and the run resumed: every id once, rows equal.

    python -m tests.corpus.kill [--files 120] [CASE...]

CASE is among child, actor, node, driver, smaller; all if none is named. Each runs on a cluster of three nodes on this
machine (a head without processors, two nodes with one each), and compares with an undisturbed run without Ray. Rows
done twice are counted by the parts whose files appear anew.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from .cluster import (
    check,
    command,
    end,
    kill,
    make_corpus,
    make_model,
    note,
    parts,
    processes_of,
    start,
    wait_for_parts,
)

CASES = ("child", "actor", "node", "driver", "smaller")


class Nodes:
    """A cluster: a head without processors, and nodes with one each."""

    def __init__(self, count: int) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(count)]
        self.address = self.cluster.address

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cluster.shutdown()


def disturbed(case: str, words: list[str], output: Path, nodes: Nodes) -> tuple[str, dict[str, int]]:
    """Run until some parts are done, kill something, and let the run go on or be resumed; what it told at the end,
    and the parts that were done before the kill."""
    process = start([*words, "--address", nodes.address])
    wait_for_parts(output, 4, process)
    before = parts(output)
    if case in ("child", "actor"):
        marks = {"child": "audiotag.corpus.child", "actor": "ray::MapWorker"}
        family = processes_of(1) | processes_of(process.pid)
        victims = [pid for pid, line in family.items() if marks[case] in line]
        assert victims, "nobody to kill"
        kill(victims[0])
    elif case == "node":
        nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
    elif case in ("driver", "smaller"):
        kill(process.pid)
        process.communicate()
        if case == "smaller":
            nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=True)
        before = parts(output)
        process = start([*words, "--address", nodes.address, "--resume"])
    told = end(process)
    assert process.returncode == 1, f"some inputs are damaged: {process.returncode}, {told}"
    return told, before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=CASES)
    parser.add_argument("--files", type=int, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpus-kill-") as name:
        folder = Path(name)
        make_corpus(folder / "in", args.files, long_s=60)
        model = make_model(folder / "model")
        undisturbed = start(command(folder / "in", folder / "whole", model, "--shard", "1/1", "--segment", "20"))
        told = end(undisturbed)
        assert undisturbed.returncode == 1, told
        for case in args.cases:
            began = time.monotonic()
            output = folder / case
            with Nodes(2) as nodes:
                words = command(folder / "in", output, model, "--segment", "20")
                told, before = disturbed(case, words, output, nodes)
            statuses = check(output, folder / "whole")
            again = sum(parts(output)[part] != when for part, when in before.items())
            # a part may be committed and its worker killed before it could say so
            assert again <= 2, f"{again} parts that were committed were done again"
            note(
                case,
                took_s=round(time.monotonic() - began, 1),
                parts=len(parts(output)),
                done_before=len(before),
                committed_again=again,
                statuses=dict(statuses),
                told=told.strip().splitlines()[-1],
            )


if __name__ == "__main__":
    main()
