"""tag, events, embed and plot as a person types them, held against the Tagger on each file alone."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiotag import Tagger
from audiotag.checkpoints.save import save_checkpoint
from audiotag.cli import command as cli
from audiotag.outputs.formats import FORMATS, About

from .tiny import RATE, sound, tiny_checkpoint

NAMES = ("a 1.wav", "a 2.wav", "a 10.flac", "sub/long.wav")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tiny_checkpoint(), tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def tagger(model: str, runtime: str) -> Tagger:
    return Tagger.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "sub").mkdir()
    for seed, name in enumerate(NAMES):
        soundfile.write(folder / name, sound(23.5 if "long" in name else 1 + seed, seed), RATE)
    (folder / "z bad.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture
def here(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recordings)
    return tmp_path


@pytest.fixture
def run(model: str) -> Any:
    def typed(*words: Any) -> int:
        device = [] if "--device" in words else ["--device", "cpu"]
        return cli.main([*map(str, words), "--model", model, *device])

    return typed


def sources(names: tuple[str, ...] = NAMES) -> list[str]:
    return [os.path.join(".", *name.split("/")) for name in names]


def test_tag_json_lines(run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture) -> None:
    assert run("tag", ".", "--format", "jsonl", "--top", "3") == 1
    shown = capsys.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert [record["source"] for record in records] == [*sources(), os.path.join(".", "z bad.wav")]
    for record in records[:-1]:
        alone = tagger.predict(record["source"])
        assert record["tags"] == [tag.to_dict() for tag in alone.top(3)]
        assert record["duration_s"] == alone.duration_s
    assert "tags" not in records[-1] and "z bad.wav" in records[-1]["error"]
    assert "z bad.wav" in shown.err and "5 files, 1 failed" in shown.err


def test_tag_csv_with_windows(run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture) -> None:
    assert run("tag", "sub", "--format", "csv", "--windows", "--hop", "4", "--top", "all", "--quiet") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    table = pd.read_csv(io.StringIO(shown.out))
    alone = tagger.predict(os.path.join("sub", "long.wav"), hop_s=4)
    assert len(table) == 5 * 527
    for (start_s, rows), expected, where in zip(
        table.groupby("start_s"), alone.window_scores, alone.window_start_s, strict=True
    ):
        assert start_s == where
        np.testing.assert_allclose(rows.sort_values("index")["score"], expected, atol=1e-7)


def test_threshold_without_top_shows_all_that_reach_it(
    run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture
) -> None:
    scores = tagger.scores("a 1.wav")
    threshold = float(np.sort(scores)[-40])
    assert run("tag", "a 1.wav", "--format", "csv", "--threshold", threshold) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {int(row["index"]) for row in rows} == set(np.flatnonzero(scores >= np.float32(threshold)))
    assert run("tag", "a 1.wav", "--format", "csv") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10


def test_labels_that_hold_commas(run: Any, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("tag", "a 1.wav", "--format", "csv", "--include", "Male speech, man speaking", "--include", "Dog") == 0
    labels = {row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert "Male speech, man speaking" in labels and "Bark" in labels and "Cat" not in labels
    assert run("tag", "a 1.wav", "--include", "Animal", "--exclude", "Dog", "--top", "all", "--format", "csv") == 0
    labels = {row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert "Cat" in labels and "Bark" not in labels and "Speech" not in labels


def test_text_for_people(run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture) -> None:
    assert run("tag", "a 1.wav", "a 2.wav", "--top", "2") == 0
    blocks = capsys.readouterr().out.split("\n\n")
    for name, block in zip(NAMES, blocks, strict=False):
        heading, *lines = block.splitlines()
        assert heading.startswith(name)
        for tag, line in zip(tagger.predict(name).top(2), lines, strict=True):
            assert line.strip().startswith(tag.label) and f"{tag.score:.3f}" in line


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.csv", "out.txt", "out.parquet"])
def test_a_file_holds_what_is_printed(run: Any, here: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    form = {".txt": "text"}.get(Path(name).suffix, Path(name).suffix[1:])
    assert run("tag", ".", "-o", here / name, "--resume") == 1
    if form == "parquet":
        table = pd.read_parquet(here / name)
        assert run("tag", ".", "--format", "csv") == 1
        printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
        assert table["label"].tolist()[:-1] == printed["label"].tolist()[:-1]
        np.testing.assert_allclose(table["score"].to_numpy()[:-1], printed["score"].to_numpy()[:-1], rtol=1e-6)
        assert table["error"].notna().sum() == 1
    else:
        assert run("tag", ".", "--format", form) == 1
        assert (here / name).read_bytes().decode() == capsys.readouterr().out
    assert sorted(os.listdir(here)) == [name, f"{name}.run.json"]


def test_resume_refuses_another_model(run: Any, here: Path, capsys: pytest.CaptureFixture) -> None:
    output = here / "out.jsonl"
    run("tag", ".", "-o", output, "--resume")
    other = save_checkpoint(tiny_checkpoint("mn"), here / "other")
    assert cli.main(["tag", ".", "-o", str(output), "--resume", "--model", str(other), "--device", "cpu"]) == 2
    assert "checkpoint sha256 was" in capsys.readouterr().err
    assert run("tag", ".", "-o", output, "--resume", "--hop", "5") == 2
    assert "options hop_s was 10.0, now 5.0" in capsys.readouterr().err
    assert run("tag", "sub", "-o", output, "--resume") == 2
    assert 'inputs paths was ["."], now ["sub"]' in capsys.readouterr().err
    assert run("tag", ".", "-o", output, "--resume", "--workers", "1") == 1
    assert "nothing to do" in capsys.readouterr().err


def test_the_weights_decide_the_fingerprint_not_where_they_are(run: Any, here: Path, tagger: Tagger) -> None:
    run("tag", "sub", "-o", here / "out.jsonl", "--resume")
    moved = save_checkpoint(tiny_checkpoint(), here / "moved")
    words = ["tag", "sub", "-o", str(here / "out.jsonl"), "--resume", "--model", str(moved), "--device", "cpu"]
    assert cli.main(words) == 0


def test_events(run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture) -> None:
    words = ("events", "sub/long.wav", "--on", "0.6", "--off", "0.5", "--hop", "2", "--min-duration", "3")
    assert run(*words, "--format", "jsonl") == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    alone = tagger.predict("sub/long.wav", hop_s=2).events(0.6, off=0.5, min_duration_s=3)
    assert record["events"] == [event.to_dict() for event in alone] and alone
    assert run(*words, "-o", here / "x.labels.txt") == 0
    rows = [line.split("\t") for line in (here / "x.labels.txt").read_text().splitlines()]
    assert [(float(on), float(off), name) for on, off, name in rows] == [
        (event.onset_s, event.offset_s, event.label) for event in alone
    ]
    assert run("events", ".", "--format", "raven", "-o", here / "tables") == 1
    found = {str(path.relative_to(here / "tables")) for path in (here / "tables").rglob("*.txt")}
    assert found == {os.path.normpath(f"{name}.selections.txt") for name in NAMES}
    assert "z bad.wav" in (here / "tables" / "audiotag-errors.jsonl").read_text()


def test_shorter_windows_and_roll_up(run: Any, here: Path, tagger: Tagger, capsys: pytest.CaptureFixture) -> None:
    words = ("sub/long.wav", "--window", "4", "--roll-up", "--format", "jsonl")
    rolled = tagger.predict("sub/long.wav", window_s=4).roll_up()
    assert run("tag", *words) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["tags"] == [tag.to_dict() for tag in rolled.top(10)]
    assert run("events", *words, "--hop", "2", "--on", "0.8") == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    events = tagger.predict("sub/long.wav", window_s=4, hop_s=2).roll_up().events(0.8)
    assert record["events"] == [event.to_dict() for event in events] and events


@pytest.mark.parametrize("per", ["clip", "window"])
@pytest.mark.parametrize("layers", [[], ["logmel", "hidden"]])
def test_embed(run: Any, here: Path, tagger: Tagger, per: str, layers: list[str]) -> None:
    options = ["--per", per, "--hop", "5", *(word for layer in layers for word in ("--layer", layer))]
    alone = [tagger.embed(s, layer=layers or "embedding", per=per, hop_s=5) for s in sources()]
    vectors = np.stack(alone) if per == "clip" else np.concatenate([found.vectors for found in alone])
    rows = [
        s for s, found in zip(sources(), alone, strict=True) for _ in range(1 if per == "clip" else len(found.vectors))
    ]

    assert run("embed", ".", "-o", here / "e.npz", *options) == 1
    archive = np.load(here / "e.npz")
    np.testing.assert_allclose(archive["embeddings"], vectors, atol=1e-6)
    assert archive["embeddings"].dtype == np.float32
    assert archive["source"].tolist() == rows
    assert archive["failed"].tolist() == [os.path.join(".", "z bad.wav")]
    if per == "window":
        np.testing.assert_array_equal(archive["start_s"], np.concatenate([found.start_s for found in alone]))
        np.testing.assert_array_equal(archive["end_s"], np.concatenate([found.end_s for found in alone]))

    assert run("embed", ".", "-o", here / "e.parquet", *options) == 1
    table = pd.read_parquet(here / "e.parquet")
    np.testing.assert_allclose(np.stack(table["embedding"][:-1].to_list()), vectors, atol=1e-6)
    assert table["source"].tolist() == [*rows, os.path.join(".", "z bad.wav")]
    assert table["error"].notna().tolist() == [False] * len(rows) + [True]

    if per == "clip":
        assert run("embed", ".", "-o", here / "e.npy", *options) == 1
        matrix = np.load(here / "e.npy")
        np.testing.assert_allclose(matrix[:-1], vectors, atol=1e-6)
        assert np.isnan(matrix[-1]).all() and len(matrix) == 5, "rows match the inputs"


def test_embed_json_lines(run: Any, here: Path, tagger: Tagger, capfdbinary: pytest.CaptureFixture) -> None:
    assert run("embed", "a 1.wav", "gone.wav", "--format", "jsonl") == 1
    first, second = map(json.loads, capfdbinary.readouterr().out.splitlines())
    np.testing.assert_allclose(first["embedding"], tagger.embed("a 1.wav"), rtol=1e-6)
    assert "no such file" in second["error"]


def test_equal_embeddings_are_equal_files(run: Any, here: Path) -> None:
    for name in ("1.npz", "2.npz"):
        run("embed", "sub", "a 1.wav", "-o", here / name, "--per", "window")
    assert (here / "1.npz").read_bytes() == (here / "2.npz").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(run: Any, here: Path, suffix: str) -> None:
    assert run("plot", "sub/long.wav", "-o", here / f"p{suffix}", "--hop", "5", "--top", "4") == 0
    data = (here / f"p{suffix}").read_bytes()
    assert data.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in data
    assert run("plot", "z bad.wav", "-o", here / "q.png") == 1
    assert not (here / "q.png").exists()


def test_standard_input(
    run: Any, here: Path, tagger: Tagger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *where: int) -> int:
            raise OSError("a pipe")

    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(data)))

    given(Path("a 2.wav").read_bytes())
    assert run("tag", "-", "--format", "jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tags"] == [tag.to_dict() for tag in tagger.predict("a 2.wav").top(10)]
    given("\0".join(NAMES[:2]).encode())
    assert run("tag", "sub", "--from-file", "-", "--format", "jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["source"] for record in records] == [os.path.join("sub", "long.wav"), *NAMES[:2]]
    given(b"")
    assert run("tag", "-", "--format", "jsonl") == 1
    assert "error" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tag"], "name files or folders"),
        (["tag", "x", "--from-file", "no such list"], "no such list: cannot be read"),
        (["tag", "-", "--from-file", "-"], "not both"),
        (["tag", "sub", "--resume"], "--resume needs -o"),
        (["tag", "sub", "--format", "parquet"], "name a file with -o"),
        (["tag", "sub", "--format", "raven"], "invalid choice"),
        (["tag", "sub", "-o", "out.xyz"], "or say which with --format"),
        (["tag", "sub", "--top", "0"], "positive number or 'all'"),
        (["tag", "sub", "--threshold", "1.5"], "threshold must be a number in"),
        (["tag", "sub", "--hop", "11"], "hop_s must be"),
        (["tag", "sub", "--include", "Speach"], "near names: 'Speech'"),
        (["tag", "sub", "--workers", "0"], "workers must be a positive integer"),
        (["tag", "sub", "--batch-size", "-1"], "batch_size must be a positive integer"),
        (["embed", "sub", "-o", "x.npz", "--batch-size", "0"], "batch_size must be a positive integer"),
        (["tag", "sub", "-o", ""], "-o: is empty"),
        (["tag", "sub", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["events", "sub", "--on", "0.1", "--off", "0.2"], "off must not exceed"),
        (["events", ".", "-o", "x.vtt"], "holds one recording, got 5"),
        (["embed", "sub"], "standard output: embeddings go to a file ending in"),
        (["embed", "sub", "--layer", "block15", "-o", "x.npz"], "this network has"),
        (["plot", "a 1.wav", "-o", "x.gif"], "must end in .png"),
    ],
)
def test_wrong_use_is_2_says_what_to_do_and_writes_nothing(
    run: Any, here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(os.listdir())
    assert run(*words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == "" and "Traceback" not in shown.err
    assert sorted(os.listdir()) == before


def test_every_format_there_is_can_be_made() -> None:
    for form in FORMATS.values():
        for kind in form.kinds:
            file = open(os.devnull, "wb" if form.binary else "w")  # noqa: SIM115
            with file, contextlib.closing(form.make(file, About(kind, fmax_hz=15_000.0, features=2))) as writer:
                writer.write({"source": "a", "error": "none"})


def test_a_reader_that_leaves_and_a_device_as_output(model: str, here: Path) -> None:
    tag = f"'{sys.executable}' -m audiotag tag . --model '{model}' --device cpu"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    script = f"{tag} --quiet --format jsonl | head -c 10; echo; echo ${{PIPESTATUS[0]}}; {tag} -o /dev/stdout | wc -l"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert lines[1] in ("0", "1"), "1: all was written before head left"
    assert int(lines[2]) > 40, done.stderr
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


def test_killed_at_random_and_resumed() -> None:
    """Two cases of the recorded run, see tests/fuzz/kill_resume.py."""
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.kill_resume",
        "--times",
        "2",
        "--files",
        "20",
        "--seed",
        str(os.getpid()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs of 20 files" in done.stdout
