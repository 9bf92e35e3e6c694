"""Addresses instead of paths: files in ranges, listings, whole writes; through pyarrow (file://) and fsspec (memory://)."""

import io
import random
import tarfile
import uuid

import numpy as np
import pytest
import soundfile

pa = pytest.importorskip("pyarrow", reason="a corpus is read and written with pyarrow")

from audiotag.corpus import items as items_module  # noqa: E402
from audiotag.corpus.index import Indexer, listing  # noqa: E402
from audiotag.corpus.items import FILE, ROWS, TAR, Entry, items  # noqa: E402
from audiotag.corpus.plan import Plan  # noqa: E402
from audiotag.corpus.segments import Grid  # noqa: E402
from audiotag.corpus.storage import RangedFile, locate, walk  # noqa: E402
from audiotag.errors import AudioError, InvalidInputError  # noqa: E402
from audiotag.runs.inputs import natural_key  # noqa: E402

from .tiny import RATE, sound  # noqa: E402

GRID = Grid(320_000, 320_000, RATE)


def test_large_members_of_an_archive_wait_on_disk_and_keep_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(items_module, "SPOOLED_BYTES", 20_000)
    wave = sound(2)
    for name, n in (("short.wav", 5000), ("long.wav", 64_000)):
        soundfile.write(tmp_path / name, wave[:n], RATE, "FLOAT")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("short.wav", "long.wav"):
            archive.add(tmp_path / name, name)
    found = {}
    for item in items([Entry(TAR, "", str(tmp_path / "a.tar"))], "", GRID, lambda item: None, lambda id_: True):
        with item.open_stream(RATE) as stream:
            found[stream.name] = np.concatenate(list(stream.blocks()))
    assert list(found) == [f"{tmp_path}/a.tar#short.wav", f"{tmp_path}/a.tar#long.wav"]
    assert [len(samples) for samples in found.values()] == [5000, 64_000]
    assert np.array_equal(found[f"{tmp_path}/a.tar#long.wav"], wave)


class Counted:
    """What pyarrow's files have, over bytes; counts requests and the bytes asked for."""

    def __init__(self, data):
        self.data, self.requests, self.bytes = data, 0, 0

    def read_at(self, count, offset):
        self.requests += 1
        self.bytes += count
        return self.data[offset : offset + count]

    def close(self):
        pass


def test_a_ranged_file_is_the_file():
    rng = random.Random(0)
    data = rng.randbytes(9_000_000)
    file, plain = RangedFile(Counted(data), len(data), "x"), io.BytesIO(data)
    for _ in range(300):
        offset = rng.choice((rng.randrange(len(data)), 0, len(data) - 100, file.tell()))
        count = rng.choice((4, 4096, 100_000, 3_000_000))
        file.seek(offset)
        plain.seek(offset)
        expected = plain.read(count)
        found = b""
        while len(found) < count and (some := file.read(count - len(found))):
            found += some
        assert found == expected


def test_reading_on_takes_few_requests_and_a_look_at_the_head_few_bytes():
    data = bytes(100_000_000)
    counted = Counted(data)
    file = RangedFile(counted, len(data), "x")
    while file.read(1 << 16):
        pass
    assert counted.requests <= 20 and counted.bytes == len(data)
    counted = Counted(data)
    RangedFile(counted, len(data), "x").read(1024)
    assert counted.bytes <= 1 << 18
    small = Counted(bytes(1_500_000))
    file = RangedFile(small, 1_500_000, "x")
    while file.read(1 << 16):
        pass
    assert small.requests == 1


def test_an_address_of_an_unknown_kind_is_refused():
    with pytest.raises(InvalidInputError, match="nosuch://x: cannot be opened"):
        locate("nosuch://x/y")


def test_fsspec_serves_what_pyarrow_does_not_know():
    pytest.importorskip("fsspec")
    where, path = locate(f"memory://{uuid.uuid4().hex}/x y")
    where.write(f"{path}/a/2.txt", b"two")
    where.write(f"{path}/a/2.txt", b"two again")
    where.write(f"{path}/a/10.txt", b"ten")
    where.write(f"{path}/.hidden", b"")
    names = [found.path for found in walk(where, path, natural_key)]
    assert names == [f"{path}/a/2.txt", f"{path}/a/10.txt"]
    assert where.read(names[0]) == b"two again" and where.read(f"{path}/b") is None
    assert where.kind(f"{path}/a") == "folder" and where.kind(f"{path}/b") == ""
    with where.open_ranged(names[1]) as file:
        assert file.read() == b"ten"
    with pytest.raises(AudioError, match="no such file"):
        where.open_ranged(f"{path}/b")


@pytest.fixture
def folder(tmp_path):
    for name in ("in/a#1.wav", "in/sub/b?.wav", "in/sub/deep/c%20.wav", "in/.hidden.wav", "in/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, sound(0.1), RATE, format="WAV")
    (tmp_path / "in/table.parquet").write_bytes(parquet(x=[1]))
    (tmp_path / "in/audio.parquet").write_bytes(parquet(audio=[b"1", b"2"]))
    (tmp_path / "in/shard.tar").write_bytes(b"")
    return tmp_path


def parquet(**columns):
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("address", [False, True])
def test_what_inputs_mean(folder, address):
    def entries(*inputs, listed=(), output=("", "/nowhere"), segment_s=600.0):
        prefix = f"file://{folder}/" if address else f"{folder}/"
        found = listing([prefix + text for text in inputs], [prefix + text for text in listed], output)
        return list(Indexer(GRID, segment_s, set(), lambda entry: True).entries(found))

    def names(found):
        return [entry.path.removeprefix(str(folder) + "/") for entry in found]

    everything = entries("in")
    audio = ["in/a#1.wav", "in/sub/b?.wav", "in/sub/deep/c%20.wav"]
    assert sorted(names(everything)) == sorted([*audio, "in/audio.parquet", "in/shard.tar"])
    kinds = {entry.path.rsplit("/", 1)[1]: entry.kind for entry in everything}
    assert kinds["audio.parquet"] == ROWS and kinds["shard.tar"] == TAR and kinds["a#1.wav"] == FILE
    assert names(entries("in/**/c*.wav")) == audio[2:]
    assert sorted(names(entries("in/sub"))) == audio[1:]
    assert names(entries("in/sub", "in/sub")) == names(entries("in/sub"))
    assert names(entries(listed=["in/a#1.wav"])) == audio[:1]
    (missing,) = entries("in/nothing*")
    assert missing.kind == "nothing" and "matches" in missing.note
    (unfit,) = entries("in/table.parquet")
    assert unfit.kind == "nothing" and "no column of audio bytes; its columns are x" in unfit.note
    output = ("file:///" if address else "", f"{folder}/in/sub/deep")
    assert names(entries("in/sub", output=output)) == audio[1:2]
    assert [entry.uri for entry in entries("in/sub/b?.wav")] == [
        f"{'file://' if address else ''}{folder}/in/sub/b?.wav"
    ]


def test_only_what_may_be_long_is_looked_into_and_cut(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8000, 1) as file:
        file.write(sound(90)[: 90 * 8000])
    soundfile.write(tmp_path / "short.wav", sound(1), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF" + bytes(10**6))
    found = listing([str(tmp_path)], [], ("", "/nowhere"))
    entries = list(Indexer(GRID, 30.0, set(), lambda entry: True).entries(found))
    cut = [(e.path.rsplit("/", 1)[1], e.first, e.span, e.duration_s) for e in entries]
    assert cut == [
        ("bad.wav", 0, 0, 0.0),
        ("long.wav", 0, 3, 90.0),
        ("long.wav", 3, 3, 90.0),
        ("long.wav", 6, 0, 90.0),
        ("short.wav", 0, 0, 0.0),
    ]


def test_a_plan_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("audiotag.corpus.plan.PARTS_PER_FILE", 4)
    monkeypatch.setattr("audiotag.corpus.plan.ENTRIES_AT_ONCE", 7)
    monkeypatch.setattr("audiotag.corpus.plan.SHORTEST_PART_S", 10.0)
    from audiotag.corpus.items import Entry

    rng = random.Random(0)
    entries = [Entry(FILE, "", f"/x/\udcff{i}", i, weight=rng.choice((0.5, 3.0, 25.0))) for i in range(100)]
    plan = Plan(str(tmp_path / "out"))
    parts, weight = plan.extend(entries[:60], 0)
    assert weight == sum(entry.weight for entry in entries[:60])
    more, _ = plan.extend(entries[60:], parts)
    planned = list(plan.planned(more))
    assert [entry for _, some in planned for entry in some] == entries
    assert [part for part, _ in planned][:parts] == list(range(parts))
    assert all(sum(entry.weight for entry in some) <= 15 or len(some) == 1 for _, some in planned)
    assert plan.entries(planned[-1][0]) == planned[-1][1] and plan.entries(0) == planned[0][1]
    assert plan.extend([], more) == (more, 0.0)
    # shares: each entry in one of them, whatever the others hold
    shards = [Plan(str(tmp_path / "out"), (i, 3)) for i in (1, 2, 3)]
    assert all(sum(shard.shares(entry) for shard in shards) == 1 for entry in entries)
