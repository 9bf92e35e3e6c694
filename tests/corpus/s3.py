"""A corpus in an object store: an S3 server on loopback (moto), read in ranges and written to, with and without Ray.

    python -m tests.corpus.s3 [--files 40]

Needs ``pip install 'moto[server]'``. Rows must be those of the same files on disk, addresses apart; a long recording
must be read in ranges; a run that is killed and resumed must lose and double nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from .cluster import command, end, kill, make_corpus, make_model, note, rows_of, start


def server(log: Path) -> tuple[subprocess.Popen, str]:
    """Start moto; its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from moto.server import main; import sys; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)], stdout=log.open("w"), stderr=subprocess.STDOUT
    )
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def rows(output: str) -> dict[str, dict]:
    """Rows of an output in the store, by id; none twice."""
    fs, path = pafs.FileSystem.from_uri(output)
    found = pq.read_table(path, filesystem=fs).to_pylist()
    assert len({row["id"] for row in found}) == len(found), "an id twice"
    return {row["id"]: row for row in found}


def bare(found: list[dict]) -> list[tuple]:
    """What is the same wherever the files are."""
    return sorted(
        (Path(row["uri"]).name, row["start_s"], row["end_s"], row["status"], str(row["tags"])) for row in found
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=40)
    args = parser.parse_args()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true"
    )
    with tempfile.TemporaryDirectory(prefix="corpus-s3-") as name:
        folder = Path(name)
        make_corpus(folder / "in", args.files, long_s=120)
        model = make_model(folder / "model")
        moto, address = server(folder / "moto.log")
        os.environ["AWS_ENDPOINT_URL"] = address
        try:
            fs, _ = pafs.FileSystem.from_uri("s3://corpus/?allow_bucket_creation=true")
            fs.create_dir("corpus")
            pafs.copy_files(str(folder / "in"), "corpus/in", destination_filesystem=fs)
            local = start(command(folder / "in", folder / "out", model, "--shard", "1/1", "--segment", "30"))
            told = end(local)
            assert local.returncode == 1, told
            expected = rows_of(folder / "out")

            # without Ray, killed and resumed
            words = command("s3://corpus/in/", "s3://corpus/out/", model, "--shard", "1/1", "--segment", "30")
            process = start(words)
            deadline = time.monotonic() + 60
            while not any(
                "part-" in info.path for info in fs.get_file_info(pafs.FileSelector("corpus/out", allow_not_found=True))
            ):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            kill(process.pid)
            process.communicate()
            process = start([*words, "--resume"])
            told = end(process)
            assert process.returncode == 1 and "done before" in told, told
            found = rows("s3://corpus/out/")
            assert bare(list(found.values())) == bare(expected), "rows differ from those of the same files on disk"
            note("s3 without Ray, killed and resumed", rows=len(found), told=told.strip().splitlines()[-1])

            # on Ray, from a pattern
            process = start(command("s3://corpus/in/**/*.wav", "s3://corpus/out2/", model, "--address", "local"))
            told = end(process)
            assert process.returncode == 1, told
            short = [row for row in expected if row["uri"].endswith(".wav")]
            assert bare(list(rows("s3://corpus/out2/").values())) == bare(short)
            note("s3 on Ray, from a pattern", rows=len(short), told=told.strip().splitlines()[-1])

            log = re.sub(r"\x1b\[[0-9;]*m", "", (folder / "moto.log").read_text())
            ranges = re.findall(r"GET /corpus/in/long.flac[^\"]*\" (\d+)", log)
            whole = ranges.count("200")
            assert ranges and not whole, f"{log[-2000:]} the long recording was fetched whole {whole} times"
            size = fs.get_file_info("corpus/in/long.flac").size
            note("the long recording", bytes=size, requests=len(ranges), whole=whole)
        finally:
            moto.kill()


if __name__ == "__main__":
    main()
