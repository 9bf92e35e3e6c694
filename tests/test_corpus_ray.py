"""A corpus on Ray, as far as a suite can afford it; `tests.corpus` kills nodes and drivers. Skipped without Ray."""

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import soundfile

from audiotag import cli, corpus
from audiotag.checkpoints.save import save_checkpoint

from .tiny import RATE, sound, tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint(tiny_checkpoint(), tmp_path_factory.mktemp("model") / "tiny"))


def run(*words, timeout_s=180):
    """The command in a process of its own: Ray's client looks for this machine's address beyond loopback."""
    return subprocess.run(
        [sys.executable, "-m", "audiotag", "corpus", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""},
    )


def test_importing_is_light():
    code = (
        "import sys, audiotag.corpus, audiotag.cli.corpus; "
        "print([name for name in ('ray', 'pyarrow', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_without_ray_it_says_what_to_install_and_what_to_do_instead(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["corpus", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "audiotag-dymn[ray]" in told and "--shard 1/1" in told
    assert not (tmp_path / "out").exists()


def test_rows_are_those_of_a_run_without_ray(model, tmp_path):
    pytest.importorskip("ray", reason="needs the extra [ray]")
    (tmp_path / "in").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / f"in/{i}.wav", sound(12 + i, i), RATE)
    (tmp_path / "in/bad.wav").write_bytes(b"RIFF" + bytes(50))
    options = [str(tmp_path / "in"), "--model", model, "--device", "cpu", "--segment", "10"]
    done = run(*options, "-o", str(tmp_path / "ray"), "--address", "local", "--actors", "1")
    assert done.returncode == 1, done.stderr  # for one is bad
    assert "4 files, 1 failed" in done.stderr and "bad.wav" in done.stderr and not done.stdout
    corpus.run(options[0], str(tmp_path / "shard"), model=model, device="cpu", segment_s=10, shard=(1, 1), actors=1)
    found, expected = (
        [{**row, "run_id": None} for row in pq.read_table(tmp_path / name).to_pylist()] for name in ("ray", "shard")
    )
    assert sorted(found, key=lambda row: row["id"]) == sorted(expected, key=lambda row: row["id"])
    assert len(found) == 4


def test_too_few_processors_are_told_and_waited_for_never(model, tmp_path):
    pytest.importorskip("ray", reason="needs the extra [ray]")
    soundfile.write(tmp_path / "a.wav", sound(1), RATE)
    words = [str(tmp_path), "-o", str(tmp_path / "out"), "--model", model, "--device", "cpu", "--address", "local"]
    done = run(*words, "--actors", "4096")
    assert done.returncode == 2
    assert "an actor needs 1 CPU" in done.stderr and "at least 4096 must run; lower --actors" in done.stderr
