"""Expansion of paths, folders, patterns and lists into inputs."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from audiotag.audio.formats import AUDIO_EXTENSIONS
from audiotag.errors import InvalidInputError
from audiotag.runs.inputs import Input, common_folder, expand, natural_key, read_list


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12")


def paths(*arguments: str | Path, listed: tuple[str, ...] = ()) -> list[str]:
    return [item.path for item in expand(map(str, arguments), listed) if item.error is None]


def errors(*arguments: str | Path) -> dict[str, str]:
    return {item.path: item.error for item in expand(map(str, arguments)) if item.error is not None}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_is_walked_in_natural_order_without_hidden_and_other_files(here: Path) -> None:
    make(
        here, "d/take 10.wav", "d/take 2.WAV", "d/sub/b.flac", "d/sub/a.opus", "d/notes.txt", "d/.x.wav", "d/.git/c.wav"
    )
    make(here, "d/zz/deep/er/m.mp3", "d/._take 2.wav")
    assert paths("d") == [
        os.path.join("d", *name.split("/"))
        for name in ("sub/a.opus", "sub/b.flac", "take 2.WAV", "take 10.wav", "zz/deep/er/m.mp3")
    ]


def test_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{a}/{b}{n}.wav" for a in ("x", "Y", "y2") for b in "aBc" for n in (1, 9, 10, 100)]
    orders = []
    for seed in (1, 2):
        random.Random(seed).shuffle(names)
        root = tmp_path / str(seed)
        make(root, *names)
        orders.append([os.path.relpath(p, root) for p in paths(root)])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(map(os.path.normpath, names))


@pytest.mark.parametrize(
    ("first", "second"), [("2", "10"), ("a2b10", "a10b2"), ("A1", "b0"), ("a", "a1"), ("007", "8"), ("a1", "a01")]
)
def test_natural_key_orders_as_people_do(first: str, second: str) -> None:
    assert sorted([second, first], key=natural_key) == sorted([first, second], key=natural_key)
    assert natural_key(first) != natural_key(second)
    if first != "a1":
        assert natural_key(first) < natural_key(second)


def test_a_named_file_is_taken_whatever_its_ending(here: Path) -> None:
    make(here, "noise.dat", ".hidden.wav", "d/.in/x.wav")
    assert paths("noise.dat", ".hidden.wav", "d/.in") == ["noise.dat", ".hidden.wav", os.path.join("d", ".in", "x.wav")]
    assert ".dat" not in AUDIO_EXTENSIONS


def test_each_input_once_at_its_first_place(here: Path) -> None:
    make(here, "d/a.wav", "d/b.wav", "d/s/c.wav")
    b, c = os.path.join("d", "b.wav"), os.path.join("d", "s", "c.wav")
    assert paths(b, "./d/b.wav", "d") == [b, os.path.join("d", "a.wav"), c]
    assert paths("d", b, "d", "d/s", "d/s/../a.wav") == [os.path.join("d", "a.wav"), b, c]
    assert paths(os.path.join("d", "s"), "d") == [c, os.path.join("d", "a.wav"), b]
    assert paths("-", "-") == ["-"]
    assert not errors("d", b, "d/s")


def test_the_size_is_told(here: Path) -> None:
    make(here, "a.wav")
    assert list(expand(["a.wav"])) == [Input("a.wav", size_bytes=2)]


def test_links(here: Path) -> None:
    make(here, "d/a.wav", "far/b.wav")
    (here / "d" / "loop").symlink_to(here / "d")
    (here / "d" / "m").symlink_to(here / "far")
    (here / "d" / "n").symlink_to(here / "far")
    (here / "d" / "link.wav").symlink_to(here / "d" / "a.wav")
    (here / "d" / "gone.wav").symlink_to(here / "nowhere")
    assert paths("d") == [os.path.join("d", *n.split("/")) for n in ("a.wav", "gone.wav", "link.wav", "m/b.wav")]
    assert paths("d/**/*.wav") == paths("d")


def test_what_is_no_input_is_reported_and_the_rest_goes_on(here: Path) -> None:
    make(here, "a.wav", "texts/a.txt")
    (here / "empty").mkdir()
    found = list(expand(["gone.wav", "empty", "a.wav", "texts", "x*.wav", "a\0b"]))
    assert [item.path for item in found if item.error is None] == ["gone.wav", "a.wav"]
    messages = {item.path: item.error for item in found if item.error}
    assert "no audio file in this folder" in (messages["empty"] or "")
    assert "no audio file in this folder" in (messages["texts"] or "")
    assert "pattern" in (messages["x*.wav"] or "")
    assert "not a path" in (messages["a\0b"] or "")


def test_a_missing_file_is_tried_though_its_folder_was_walked(here: Path) -> None:
    make(here, "d/a.wav")
    assert paths("d", "d/b.wav") == [os.path.join("d", "a.wav"), "d/b.wav"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_cannot_be_read_is_reported(here: Path) -> None:
    make(here, "d/a.wav", "d/closed/b.wav", "d/z.wav")
    (here / "d" / "closed").chmod(0)
    try:
        assert len(paths("d")) == 2
        assert "Permission denied" in errors("d")[os.path.join("d", "closed")]
    finally:
        (here / "d" / "closed").chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_a_folder_is_left_alone(here: Path) -> None:
    make(here, "d/a.wav")
    os.mkfifo(here / "d" / "b.wav")
    assert paths("d") == [os.path.join("d", "a.wav")]


def test_patterns(here: Path) -> None:
    make(here, "a10.wav", "a2.wav", "a.txt", "d/b.wav", "d/e/c.flac", "[x].wav")
    assert paths("a*") == ["a2.wav", "a10.wav"]
    assert paths("*/*.wav") == [os.path.join("d", "b.wav")]
    assert paths("**/*.flac") == [os.path.join("d", "e", "c.flac")]
    assert paths("d*") == [os.path.join("d", "b.wav"), os.path.join("d", "e", "c.flac")]
    assert paths("d/**") == [os.path.join("d", "b.wav"), os.path.join("d", "e", "c.flac")]
    assert paths("**/e/*") == paths("**/e") == [os.path.join("d", "e", "c.flac")]
    assert paths(here / "**" / "c.*") == [str(here / "d" / "e" / "c.flac")]
    assert "nothing it matches is an audio file" in errors("*.txt")["*.txt"]
    assert paths("[x].wav") == ["[x].wav"], "a file that is called so is no pattern"
    assert paths(listed=("a2.wav", "d")) == ["a2.wav", os.path.join("d", "b.wav"), os.path.join("d", "e", "c.flac")]
    assert paths(listed=("a*",)) == ["a*"], "no patterns in lists"


@pytest.mark.parametrize(
    "raw",
    [
        b"a.wav\nb c.wav\n",
        b"a.wav\r\n\r\nb c.wav",
        b"\xef\xbb\xbfa.wav\nb c.wav",
        b"a.wav\0b c.wav\0",
        b"a.wav\0b c.wav",
    ],
)
def test_lists(raw: bytes) -> None:
    assert list(read_list(io.BytesIO(raw), "list")) == ["a.wav", "b c.wav"]


def test_a_list_longer_than_a_chunk() -> None:
    names = [f"folder {i}/{'x' * (i % 90)}\n.wav" for i in range(5000)]
    assert list(read_list(io.BytesIO("\0".join(names).encode()), "list")) == names


def test_names_that_are_not_utf8_survive_a_list() -> None:
    assert [os.fsencode(p) for p in read_list(io.BytesIO(b"\xff\xe9.wav\n"), "list")] == [b"\xff\xe9.wav"]


def test_a_utf16_list_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="UTF-16"):
        list(read_list(io.BytesIO("a.wav\n".encode("utf-16")), "list"))


def test_common_folder(here: Path) -> None:
    make(here, "x/A/1.wav", "x/B/2.wav", "y/A/3.wav")
    assert common_folder(["x/A"]) == str(here / "x" / "A")
    assert common_folder(["x/A", "x/B"]) == str(here / "x")
    assert common_folder(["x/A/1.wav"]) == str(here / "x" / "A")
    assert common_folder(["x/A/1.wav", "y/A"]) == str(here)
    assert common_folder(["x/*/*.wav"]) == str(here / "x")
    assert common_folder(["x/**/gone*"]) == str(here / "x")
    assert common_folder(["-"]) == str(here)


def test_deep_nesting(here: Path) -> None:
    deep = here
    for _ in range(400):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.wav").write_bytes(b"")
    assert len(paths("d")) == 1


def test_memory_does_not_grow_with_the_number_of_files(here: Path) -> None:
    """Peak memory of walking 200 folders of 20 files is that of 20 folders, but for what a folder's identity takes."""

    def peak(root: str, folders: int) -> int:
        make(here, *(f"{root}/{i}/{j}.wav" for i in range(folders) for j in range(20)))
        tracemalloc.start()
        assert sum(1 for _ in expand([root])) == folders * 20
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak("few", 20), peak("many", 200)
    assert many - few < 180 * 600, f"{few} bytes for 400 files, {many} for 4000"
