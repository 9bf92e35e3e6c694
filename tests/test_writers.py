"""Every format, read back by another reader, or by the rules of the program it is for."""

import csv
import io
import json
import os
import re
import stat
import sys
import threading

import numpy as np
import pytest

from audiotag.errors import AudioError, InvalidInputError, MissingDependencyError, OutputError
from audiotag.files import whole_file
from audiotag.labels.label_set import LabelSet
from audiotag.outputs.formats import FORMATS, About, find_format, formats_for
from audiotag.outputs.records import COLUMNS, error_record, event_record, kind_of, rows, tag_record
from audiotag.outputs.writers import open_writer
from audiotag.results.prediction import Prediction
from audiotag.text import columns, printable

NAMES = ["calm", 'storm, "thunder"', "a --> b & <c>", "line\nbreak\ttab", "雷雨 é"]
LABELS = LabelSet.from_names(NAMES)


def predicted(source="a.wav", seed=0, windows=12):
    scores = np.random.default_rng(seed).random((windows, len(NAMES)), dtype=np.float32)
    start_s = np.arange(windows) * 1.0
    return Prediction(
        scores.max(0), scores, start_s, start_s + 3.25, LABELS, source, start_s[-1] + 3.25, "tiny", 1.0, 3.25, "max"
    )


PREDICTIONS = [predicted("a.wav"), predicted('b, "c".wav', 1), predicted("d\udce9\n.wav", 2)]
ERROR = error_record("e.wav", AudioError("e.wav: no such file,\n look again"))
TAG_RECORDS = [*(tag_record(p, k=3) for p in PREDICTIONS), ERROR]
EVENT_RECORDS = [*(event_record(p, on=0.6) for p in PREDICTIONS), ERROR]
FMAX_HZ = 11_025.0
RECORDS = {"tags": TAG_RECORDS, "events": EVENT_RECORDS}


def written(name, kind, records, path):
    with open_writer(FORMATS[name], About(kind, fmax_hz=FMAX_HZ), path) as writer:
        for record in records:
            writer.write(record)
    return path


def printed(name, kind, records):
    file = io.StringIO(newline="")
    with open_writer(FORMATS[name], About(kind, fmax_hz=FMAX_HZ), file) as writer:
        for record in records:
            writer.write(record)
    return file.getvalue()


def table(kind):
    return [row for record in RECORDS[kind] for row in rows(record, kind)]


def test_records():
    for prediction, tags, events in zip(PREDICTIONS, TAG_RECORDS, EVENT_RECORDS, strict=False):
        assert tags == prediction.to_dict(k=3) and kind_of(tags) == "tags"
        assert events["events"] == [event.to_dict() for event in prediction.events(0.6)] and kind_of(events) == "events"
        assert len(events["events"]) > 3 and tags["source"] == events["source"] == printable(prediction.source)
    assert ERROR == {"source": "e.wav", "error": r"e.wav: no such file,\n look again", "error_type": "AudioError"}
    for bad in ({}, {"source": "a"}, {"tags": []}):
        with pytest.raises(InvalidInputError, match="a record has source and"):
            kind_of(bad)


def test_rows_of_windows():
    prediction = predicted()
    found = list(rows(tag_record(prediction, windows=True), "tags"))
    assert len(found) == 12 * 5
    scores = np.zeros_like(prediction.window_scores)
    for row in found:
        scores[int(row["start_s"]), row["index"]] = row["score"]
        assert row["end_s"] == row["start_s"] + 3.25
    assert np.array_equal(scores, prediction.window_scores)


@pytest.mark.parametrize("kind", ["tags", "events"])
def test_json_lines(kind):
    text = printed("jsonl", kind, RECORDS[kind])
    lines = text.split("\n")
    assert lines.pop() == "" and [json.loads(line) for line in lines] == RECORDS[kind]
    assert "雷雨" in text, "names are readable as they are"


@pytest.mark.parametrize("kind", ["tags", "events"])
def test_json(kind):
    assert json.loads(printed("json", kind, RECORDS[kind])) == RECORDS[kind]
    assert json.loads(printed("json", kind, RECORDS[kind][:1])) == RECORDS[kind][:1]
    assert json.loads(printed("json", kind, [])) == []


def test_json_refuses_what_json_has_no_word_for():
    with pytest.raises(ValueError):
        printed("jsonl", "tags", [{"source": "a", "tags": [], "duration_s": float("nan")}])


@pytest.mark.parametrize("kind", ["tags", "events"])
def test_csv(kind):
    text = printed("csv", kind, RECORDS[kind])
    assert text.count("\r\n") == len(table(kind)) + 1
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(found[0]) == list(COLUMNS[kind])
    converted = [
        {name: (COLUMNS[kind][name](value) if value else None) for name, value in row.items()} for row in found
    ]
    assert converted == [{k: v if v != "" else None for k, v in row.items()} for row in table(kind)]


@pytest.mark.parametrize("kind", ["tags", "events"])
def test_csv_in_pandas(kind):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(printed("csv", kind, RECORDS[kind]), newline=""))
    score = "score" if kind == "tags" else "peak"
    assert frame[score].dropna().tolist() == [row[score] for row in table(kind) if row["error"] is None]
    assert frame.label.dropna().tolist() == [row["label"] for row in table(kind) if row["error"] is None]
    assert frame.error.dropna().tolist() == [ERROR["error"]]


@pytest.mark.parametrize("kind", ["tags", "events"])
def test_parquet(kind, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("audiotag.outputs.writers.PARQUET_ROWS", 4)  # several row groups
    path = written("parquet", kind, RECORDS[kind], tmp_path / "out.parquet")
    found = parquet.read_table(path)
    expected = [
        {k: np.float32(v) if k in ("score", "peak", "mean") and v is not None else v for k, v in row.items()}
        for row in table(kind)
    ]
    assert found.to_pylist() == expected and parquet.ParquetFile(path).num_row_groups > 1
    types = {field.name: str(field.type) for field in found.schema}
    assert types["index"] == "int32" and types["source"] == types["error"] == "string"
    assert {types[n] for n in types if n.endswith("_s")} == {"double"}
    assert {types[n] for n in types if n in ("score", "peak", "mean")} == {"float"}
    empty = parquet.read_table(written("parquet", kind, [], tmp_path / "empty.parquet"))
    assert empty.num_rows == 0 and empty.schema.equals(found.schema)


def test_parquet_without_pyarrow(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"audiotag-dymn\[parquet\]"):
        written("parquet", "tags", [], tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == []


def audacity_import(text):
    """Audacity's rules: one label a line; tabs, several counting as one, between start, end and title."""
    labels = []
    for line in text.splitlines():
        parts = [part for part in line.split("\t") if part]
        labels.append((float(parts[0]), float(parts[1]), parts[2]))
    return labels


def test_audacity():
    record = EVENT_RECORDS[0]
    assert audacity_import(printed("audacity", "events", [record])) == [
        (event["onset_s"], event["offset_s"], " ".join(event["label"].split())) for event in record["events"]
    ]
    text = printed("audacity", "events", [event_record(predicted(), on=0.5)])
    assert all(re.fullmatch(r"\d+\.\d{6}\t\d+\.\d{6}\t\S[^\t\r\n]*", line) for line in text.splitlines())


def test_raven():
    pandas = pytest.importorskip("pandas")
    record = EVENT_RECORDS[0]
    text = printed("raven", "events", [record])
    frame = pandas.read_csv(io.StringIO(text), sep="\t", quoting=csv.QUOTE_NONE)
    required = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    assert list(frame.columns)[:7] == required
    assert frame.Selection.tolist() == list(range(1, len(record["events"]) + 1))
    assert set(frame.View) == {"Spectrogram 1"} and set(frame.Channel) == {1}
    assert frame["Begin Time (s)"].tolist() == [event["onset_s"] for event in record["events"]]
    assert frame["End Time (s)"].tolist() == [event["offset_s"] for event in record["events"]]
    assert set(frame["Low Freq (Hz)"]) == {0} and set(frame["High Freq (Hz)"]) == {FMAX_HZ}, "the checkpoint's"
    assert frame.Annotation.tolist() == [" ".join(event["label"].split()) for event in record["events"]]
    assert frame["Peak Score"].to_numpy() == pytest.approx([e["peak"] for e in record["events"]], abs=5e-5)
    assert len({line.count("\t") for line in text.splitlines()}) == 1


def test_raven_names_the_sound_so_that_it_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert printed("raven", "events", EVENT_RECORDS[:1]).rstrip("\n").endswith(f"\t{tmp_path / 'a.wav'}")
    assert printed("raven", "events", EVENT_RECORDS[1:2]).rstrip("\n").endswith('\tb, "c".wav')


TIME = r"\d\d+:[0-5]\d:[0-5]\d\.\d{3}"
CUE = re.compile(rf"(?P<id>[^\n]+)\n(?P<onset>{TIME}) --> (?P<offset>{TIME})\n(?P<text>.+)")


def vtt_cues(text):
    """Cues by WebVTT's grammar: blocks between blank lines, after the header; entities in the text resolved."""
    header, *blocks = text.rstrip("\n").split("\n\n")
    assert header == "WEBVTT"
    for block in blocks:
        cue = CUE.fullmatch(block)
        assert cue and "-->" not in cue["text"] and "-->" not in cue["id"] and "<" not in cue["text"]
        assert not re.search(r"&(?!amp;|lt;|gt;)", cue["text"])
        h, m, s = cue["onset"].split(":")
        text = cue["text"].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        yield int(h) * 3600 + int(m) * 60 + float(s), cue["offset"] > cue["onset"], text


def test_webvtt():
    record = EVENT_RECORDS[0]
    assert [event["label"] for event in record["events"]].count("a --> b & <c>") > 0
    assert list(vtt_cues(printed("webvtt", "events", [record]))) == [
        (event["onset_s"], True, f"{' '.join(event['label'].split())} ({event['peak']:.2f})")
        for event in record["events"]
    ]
    late = {"onset_s": 359_999.9996, "offset_s": 360_000.0004, "label": "x", "peak": 1.0}
    text = printed("webvtt", "events", [{"source": "a", "events": [late]}])
    assert "100:00:00.000 --> 100:00:00.001\n" in text, "a cue ends after it starts"
    assert printed("webvtt", "events", [ERROR]) == "WEBVTT\n"


@pytest.mark.parametrize("name", ["audacity", "raven", "webvtt"])
def test_formats_of_one_recording_refuse_a_second(name, tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(InvalidInputError, match=r"holds one recording a file: a\.wav is in it"):
        written(name, "events", EVENT_RECORDS, path)
    assert os.listdir(tmp_path) == []


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def isatty(self):
        return True


def on_terminal(records, kind, width, encoding, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    file = Terminal(encoding)
    with open_writer(FORMATS["text"], About(kind, fmax_hz=FMAX_HZ), file) as writer:
        for record in records:
            writer.write(record)
    return file.buffer.getvalue().decode(encoding)


def test_text():
    storm = {"label": "storm, thunder", "score": 0.75, "index": 0, "mid": ""}
    calm = {"label": "calm", "score": 0.25, "index": 1, "mid": ""}
    event = {"label": "calm", "onset_s": 1.0, "offset_s": 3661.5, "peak": 0.5, "mean": 0.4}
    base = {"source": "a.wav", "duration_s": 61.04, "warnings": []}
    assert printed("text", "tags", [{**base, "tags": [storm, calm]}, {**base, "tags": [], "warnings": ["cut"]}]) == (
        "a.wav  1:01.0\n"
        "  storm, thunder  0.750  ███████████████\n"
        "  calm            0.250  █████\n"
        "\n"
        "a.wav  1:01.0\n"
        "  warning: cut\n"
        "  no tags at or above the threshold\n"
    )
    assert printed("text", "events", [{**base, "events": [event]}, ERROR]) == (
        "a.wav  1:01.0\n"
        "     0:01.0 - 1:01:01.5  calm  0.500  ██████████\n"
        "\n"
        "e.wav\n"
        r"  error: e.wav: no such file,\n look again"
        "\n"
    )


@pytest.mark.parametrize("width", [20, 30, 40, 200])
def test_text_fits_the_terminal(width, monkeypatch):
    for kind in ("tags", "events"):
        lines = on_terminal(RECORDS[kind][:1], kind, width, "utf-8", monkeypatch).splitlines()[1:]
        assert len(lines) >= 3 and max(map(columns, lines)) <= width
        assert all(re.search(r"  [01]\.\d{3}", line) for line in lines), "the score is always there"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_text_on_terminals_that_cannot_write_everything(encoding, monkeypatch):
    text = on_terminal(TAG_RECORDS + EVENT_RECORDS, "tags", 60, encoding, monkeypatch)
    assert "#####" in text and r"\u96f7\u96e8" in text and "d\\xe9" in text


@pytest.mark.parametrize("name", formats_for("tags"))
def test_files_appear_whole_or_not_at_all(name, tmp_path):
    path = tmp_path / "out"
    path.write_text("what was there")
    with (
        pytest.raises(RuntimeError, match="stop"),
        open_writer(FORMATS[name], About("tags", fmax_hz=FMAX_HZ), path) as writer,
    ):
        writer.write(TAG_RECORDS[0])
        assert path.read_text() == "what was there"
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == ["out"] and path.read_text() == "what was there"
    written(name, "tags", TAG_RECORDS, path)
    assert os.listdir(tmp_path) == ["out"] and path.read_bytes() != b"what was there"


def test_files_obey_the_umask_and_follow_links(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    before = os.umask(0o027)
    try:
        written("jsonl", "tags", TAG_RECORDS, tmp_path / "link")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text().count("\n") == 4
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_text()), daemon=True)
    reader.start()
    written("jsonl", "tags", TAG_RECORDS, pipe)
    reader.join(10)
    assert seen[0].count("\n") == 4 and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", formats_for("tags"))
def test_a_full_disk_is_an_output_error(name):
    with pytest.raises(OutputError, match="/dev/full: cannot be written"):
        written(name, "tags", TAG_RECORDS, "/dev/full")


def test_what_cannot_be_opened_is_an_output_error(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "such" / "folder.csv", tmp_path / "folder"):
        with pytest.raises(OutputError, match=re.escape(f"{path}: cannot be written")):
            written("csv", "tags", TAG_RECORDS, path)
    assert os.listdir(tmp_path) == ["folder"]


def test_errors_of_inputs_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"input\.wav"), whole_file(tmp_path / "out"):
        (tmp_path / "input.wav").read_bytes()
    with pytest.raises(AudioError, match=r"input\.wav"), whole_file(tmp_path / "out"):
        raise AudioError("input.wav: broken")


@pytest.mark.parametrize(
    ("name", "path", "kind", "expected"),
    [
        (None, None, "tags", "text"),
        (None, "out.jsonl", "tags", "jsonl"),
        (None, "OUT.JSON", "tags", "json"),
        (None, "out.labels.txt", "events", "audacity"),
        (None, "out.labels.txt", "tags", "text"),
        (None, "out.selections.txt", "events", "raven"),
        (None, "out.vtt", "events", "webvtt"),
        (None, "out.parquet", "events", "parquet"),
        (None, "out.npz", "embeddings", "npz"),
        ("jsonl", None, "embeddings", "jsonl"),
        ("csv", "out.jsonl", "events", "csv"),
    ],
)
def test_find_format(name, path, kind, expected):
    assert find_format(kind, name, path) is FORMATS[expected]


@pytest.mark.parametrize(("name", "kind"), [("webvtt", "tags"), ("xml", "tags"), ("xml", "events")])
def test_find_format_says_what_is_wrong(name, kind):
    with pytest.raises(InvalidInputError, match=f"format must be one of text, json, .* for {kind}, got '{name}'"):
        find_format(kind, name)
    for path, kind in ((None, "embeddings"), ("out", "embeddings"), ("out.npz", "tags"), ("out", "events")):
        with pytest.raises(InvalidInputError, match=f"{kind} go to a file ending in .*; or say which with --format"):
            find_format(kind, None, path)


def test_binary_formats_need_a_file():
    with pytest.raises(InvalidInputError, match="parquet is binary; name a file"):
        printed("parquet", "tags", [])
