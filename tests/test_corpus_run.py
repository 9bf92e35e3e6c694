"""A corpus run without Ray: rows are what the tagger says, and survive kills, damage and changes."""

import os
import tarfile

import numpy as np
import pytest
import soundfile

pa = pytest.importorskip("pyarrow", reason="a corpus is written with pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from audiotag import Tagger, cli, corpus  # noqa: E402
from audiotag.checkpoints.save import save_checkpoint  # noqa: E402
from audiotag.corpus import worker  # noqa: E402
from audiotag.errors import InvalidInputError, OutputError  # noqa: E402

from .tiny import RATE, sound, tiny_checkpoint  # noqa: E402

LENGTHS = {"b/2.wav": 3.0, "b/10.flac": 25.3, "a.wav": 10.0, "long.wav": 64.7}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint(tiny_checkpoint(), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def tagger(model):
    return Tagger.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (name, seconds) in enumerate(LENGTHS.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, sound(seconds, seed), RATE)
    (folder / "bad.wav").write_bytes(b"RIFF" + bytes(50))
    (folder / "notes.txt").write_text("not audio")
    with tarfile.open(folder / "shard-000.tar", "w") as archive:
        for name in ("x/1.flac", "x/1.json", "x/2.flac"):
            archive.add(folder / "b/10.flac" if name.endswith("flac") else folder / "notes.txt", name)
    cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in ("a.wav", "b/2.wav")]
    pq.write_table(pa.table({"audio": [*cells, {"bytes": None, "path": "gone.wav"}]}), folder / "rows.parquet")
    return folder


def rows_of(output):
    return pq.read_table(output).to_pylist()


def by_uri(rows):
    assert len({row["id"] for row in rows}) == len(rows), "an id twice"
    found = {}
    for row in rows:
        found.setdefault(row["uri"], []).append(row)
    return {uri: sorted(some, key=lambda row: row["start_s"]) for uri, some in found.items()}


def tags(row):
    return [(tag["label"], np.float32(tag["score"])) for tag in row["tags"]]


def expected_tags(prediction, **options):
    return [(tag.index, np.float32(tag.score)) for tag in prediction.top(**options)]


def test_rows_are_what_the_tagger_says(recordings, model, tagger, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["corpus", str(recordings), "-o", str(output), "--shard", "1/1", "--actors", "1", "--model", model]
    assert cli.main([*words, "--segment", "20", "--windows", "--hop", "5", "--top", "7", "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    found = by_uri(rows_of(output))
    names = ["a.wav", "b/2.wav", "b/10.flac", "long.wav", "bad.wav"]
    inside = ["shard-000.tar#x/1.flac", "shard-000.tar#x/2.flac", *(f"rows.parquet#{i}" for i in range(3))]
    assert sorted(found) == sorted(str(recordings / name) for name in names + inside)
    sources = {name: recordings / name for name in names[:3]}
    sources |= {name: recordings / "b/10.flac" for name in inside[:2]}
    sources |= {inside[2]: recordings / "a.wav", inside[3]: recordings / "b/2.wav"}
    for name, source in sources.items():
        expected = tagger.predict(source, hop_s=5.0)
        (row,) = found[str(recordings / name)]
        assert row["status"] == "ok" and row["error"] is None
        assert tags(row) == expected_tags(expected, k=7)  # bit for bit
        assert (row["start_s"], row["end_s"], row["duration_s"]) == (0.0, expected.duration_s, expected.duration_s)
        assert [w["start_s"] for w in row["windows"]] == expected.window_start_s.tolist()
        assert row["model"] == "tiny" and len(row["model_digest"]) == 64 and row["version"] and row["run_id"]
    for name in ("bad.wav", "rows.parquet#2"):
        (row,) = found[str(recordings / name)]
        assert row["status"] == "error" and row["tags"] is None and name.split("#")[0] in row["error"]
        assert row["error"] in told
    assert "10 files, 2 failed" in told

    # the long one is cut, and its windows are those of the whole
    expected = tagger.predict(recordings / "long.wav", hop_s=5.0)
    cut = found[str(recordings / "long.wav")]
    assert [(row["start_s"], row["end_s"]) for row in cut] == [(0.0, 25.0), (20.0, 45.0), (40.0, expected.duration_s)]
    windows = [window for row in cut for window in row["windows"]]
    assert [w["start_s"] for w in windows] == expected.window_start_s.tolist()
    assert [w["end_s"] for w in windows] == expected.window_end_s.tolist()
    for window, scores in zip(windows, expected.window_scores, strict=True):
        labels = [tag["label"] for tag in window["tags"]]
        np.testing.assert_allclose([tag["score"] for tag in window["tags"]], scores[labels], rtol=0, atol=1e-5)
        assert scores[labels].min() >= np.sort(scores)[-7] - 1e-5
    labels = pq.read_table(output / "_audiotag/labels.parquet").to_pylist()
    assert [label["name"] for label in labels] == list(tagger.labels.names)


def test_embeddings_and_events(recordings, model, tagger, tmp_path):
    shared = {"model": model, "shard": (1, 1), "actors": 1, "device": "cpu"}
    names = [str(recordings / name) for name in ("a.wav", "b/10.flac")]
    corpus.run([*names, str(recordings / "bad.wav")], str(tmp_path / "vectors"), kind="embeddings", **shared)
    corpus.run(names, str(tmp_path / "events"), kind="events", on=0.5, segment_s=10, **shared)
    vectors, events = by_uri(rows_of(tmp_path / "vectors")), by_uri(rows_of(tmp_path / "events"))
    schema = pq.read_schema(next((tmp_path / "vectors").glob("part*")))
    assert schema.field("embedding").type == pa.list_(pa.float16(), tagger.layers["embedding"])
    (row,) = vectors[str(recordings / "bad.wav")]
    assert row["status"] == "error" and row["embedding"] is None
    for name in names:
        (row,) = vectors[name]
        np.testing.assert_array_equal(np.float16(row["embedding"]), tagger.embed(name).astype(np.float16))
        (row,) = events[name]
        expected = tagger.predict(name, hop_s=1.0).events(0.5)
        assert [(e["label"], e["onset_s"], e["offset_s"]) for e in row["events"]] == [
            (e.index, e.onset_s, e.offset_s) for e in expected
        ]


def test_a_killed_run_goes_on_and_takes_what_is_new(recordings, model, tmp_path, monkeypatch, capsys):
    """A part that was not committed is done again, one that was is left alone; then come new and changed inputs."""
    monkeypatch.setattr("audiotag.corpus.plan.SHORTEST_PART_S", 1.0)  # a part for each
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("1.wav", "2.wav", "3.wav"):
        (folder / name).write_bytes((recordings / "b/2.wav").read_bytes())
    (folder / "bad.wav").write_bytes(b"RIFF" + bytes(50))
    options = {"model": model, "shard": (1, 1), "actors": 1, "device": "cpu"}
    written = []
    write = worker.Plan.write_part

    def write_until(self, part, contents):
        if len(written) == 2:
            raise OutputError("the disk is full")
        written.append(part)
        write(self, part, contents)

    monkeypatch.setattr(worker.Plan, "write_part", write_until)
    with pytest.raises(OutputError, match="disk is full"):
        corpus.run(str(folder), str(output), **options)
    with pytest.raises(InvalidInputError, match="holds a run already; --resume"):
        corpus.run(str(folder), str(output), **options)
    with pytest.raises(InvalidInputError, match="options top was 10, now 3"):
        corpus.run(str(folder), str(output), top=3, resume=True, **options)
    with pytest.raises(InvalidInputError, match="holds a run with shard 1-of-1"):
        corpus.run(str(folder), str(output), resume=True, **{**options, "shard": (1, 2)})
    kept = {path: path.stat().st_mtime_ns for path in output.glob("part*")}
    assert len(kept) == 2
    monkeypatch.setattr(worker.Plan, "write_part", write)
    (folder / "4.wav").write_bytes((recordings / "b/2.wav").read_bytes())
    summary = corpus.run(str(folder), str(output), resume=True, **options)
    assert (summary.parts, summary.parts_before, summary.files, summary.failed) == (3, 2, 3, 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = by_uri(rows_of(output))
    assert [os.path.basename(uri) for uri in sorted(found)] == ["1.wav", "2.wav", "3.wav", "4.wav", "bad.wav"]
    again = corpus.run(str(folder), str(output), resume=True, **options)
    assert (again.parts, again.parts_before) == (0, 5)

    # what failed is mended; what was good is not done again
    (folder / "bad.wav").write_bytes((recordings / "a.wav").read_bytes())
    mended = corpus.run(str(folder), str(output), retry_errors=True, **options)
    assert (mended.files, mended.failed) == (1, 0)
    rows = by_uri(rows_of(output))
    assert sorted(rows) == sorted(found) and all(row["status"] == "ok" for (row,) in rows.values())
    assert all(rows[uri] == found[uri] for uri in found if not uri.endswith("bad.wav"))


def test_what_kills_its_process_is_isolated(recordings, model, tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "CHILD", "tests.hostile_child")
    for name in ("1.wav", "2-segfault.wav", "3-once.wav", "4.wav"):
        (tmp_path / name).write_bytes((recordings / "b/2.wav").read_bytes())
    output = tmp_path / "out"
    summary = corpus.run(str(tmp_path), str(output), model=model, shard=(1, 1), actors=1, device="cpu")
    assert (summary.files, summary.failed, summary.crashed) == (4, 1, 1)
    found = {os.path.basename(row["uri"]): row for row in rows_of(output)}
    assert {name: row["status"] for name, row in found.items()} == {
        "1.wav": "ok",
        "2-segfault.wav": "crashed",
        "3-once.wav": "ok",  # whatever ended its process the first time did not do so again
        "4.wav": "ok",
    }
    assert "SIGSEGV" in found["2-segfault.wav"]["error"]
    assert tags(found["3-once.wav"]) == expected_tags(tagger.predict(recordings / "b/2.wav"), k=10)


def test_shards_share_the_work(recordings, model, tmp_path):
    names = ["a.wav", "b/2.wav", "long.wav"]
    inputs = [str(recordings / name) for name in names]
    output = tmp_path / "out"
    options = {"model": model, "actors": 1, "device": "cpu", "segment_s": 10}
    sums = [corpus.run(inputs, str(output), shard=(i, 2), **options) for i in (1, 2)]
    found = by_uri(rows_of(output))
    assert sorted(found) == sorted(inputs)
    assert all(summary.rows for summary in sums) and sum(s.rows for s in sums) == len(rows_of(output)) == 8


def test_arguments(recordings, model, tmp_path, capsys):
    def run(**options):
        corpus.run(str(recordings), str(tmp_path / "out"), model=model, **{"shard": (1, 1), **options})

    for options, match in (
        ({"kind": "tag"}, "kind must be one of tags"),
        ({"segment_s": 0}, "segment_s must be"),
        ({"shard": (3, 2)}, "shard must be"),
        ({"actors": (3, 2)}, "actors must be"),
        ({"threshold": 2.0}, "threshold must be"),
        ({"include": "no such label"}, "no such label"),
        ({"hop_s": 20.0}, "hop_s must be"),
        ({"kind": "embeddings", "layer": "nope"}, "layer"),
        ({"kind": "embeddings", "window_s": 3.0}, "window_s is for tags"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            run(**options)
    assert not (tmp_path / "out").exists()
    assert cli.main(["corpus", "-o", "x"]) == 2 and "nothing to do" in capsys.readouterr().err
    assert cli.main(["corpus", "a", "-o", "x", "--shard", "3/2"]) == 2


def test_nothing_there_is_a_row_too(model, tmp_path):
    (tmp_path / "empty").mkdir()
    inputs = [str(tmp_path / "empty"), str(tmp_path / "gone.wav")]
    summary = corpus.run(inputs, str(tmp_path / "out"), model=model, shard=(1, 1), device="cpu")
    assert summary.failed == 2
    errors = {row["uri"]: row["error"] for row in rows_of(tmp_path / "out")}
    assert "no audio file" in errors[inputs[0]] and "no such file" in errors[inputs[1]]
