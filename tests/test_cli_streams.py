"""The command around its work: streams closed or full, outputs that are inputs, escapes, what parsing costs."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiotag import Tagger
from audiotag.checkpoints.save import save_checkpoint
from audiotag.cli import command as cli
from audiotag.cli.command import MODULES
from audiotag.labels.label_set import LabelSet
from audiotag.live.stream import Stream, StreamWindow
from audiotag.outputs.records import dumps
from audiotag.results.events import Event
from audiotag.runs.progress import tell

from .tiny import RATE, sound, tiny_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes descriptors")
COMMAND = f"'{sys.executable}' -m audiotag"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tiny_checkpoint("mn"), tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(name, sound(1, seed), RATE)
    return tmp_path


def shell(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (">&-", "standard output: cannot be written: Bad file descriptor"),
        (">/dev/full", "standard output: cannot be written: No space left on device"),
    ],
)
def test_stdout_that_takes_nothing_is_an_error(where: str, message: str) -> None:
    if "full" in where and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = shell(f"{COMMAND} labels {where}")
    assert done.returncode == 1 and done.stderr == f"audiotag: error: {message}\n"


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_without_stderr_the_work_is_done(model: str, here: Path, where: str) -> None:
    done = shell(f"{COMMAND} tag a.wav gone.wav --model '{model}' --device cpu --format jsonl {where}")
    assert done.returncode == 1 and done.stderr == ""
    tagged, failed = map(json.loads, done.stdout.splitlines())
    assert tagged["tags"] and "no such file" in failed["error"]


def test_a_descriptor_that_was_closed_is_not_given_to_a_file(here: Path) -> None:
    """What is opened next would be number 2, and a decoder's chatter on stderr would go into it."""
    program = "import os, sys; from audiotag.cli import command; command._fill_closed_streams(); "
    program += "sys.stdout.write(str(os.open('x', os.O_CREAT | os.O_WRONLY)))"
    assert int(shell(f"'{sys.executable}' -c \"{program}\" 2>&- <&-").stdout) > 2


@pytest.mark.parametrize("words", ["tag -", "tag --from-file -", "listen", "plot - -o x.png"])
def test_stdin_that_is_closed_is_wrong_use(
    words: str, here: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main([*words.split(), "--model", model, "--device", "cpu"]) == 2
    assert "standard input is closed; pipe" in capsys.readouterr().err


def test_a_list_from_a_pipe_is_read_twice(model: str, here: Path) -> None:
    done = shell(f"{COMMAND} tag --from-file <(ls *.wav) -o tree/ --model '{model}' --device cpu --quiet")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (here / "tree").glob("*.jsonl")) == ["a.wav.jsonl", "b.wav.jsonl"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("tag a.wav b.wav -o b.wav --format jsonl", "the input b.wav"),
        ("tag . -o ./b.wav --format csv --resume", "the input ./b.wav"),
        ("tag --from-file list.txt -o a.wav --format text", "the input a.wav"),
        ("tag --from-file list.txt -o list.txt", "the list --from-file list.txt"),
        ("tag a.wav -o link.jsonl", "the input a.wav"),
        ("embed a.wav -o hard.npz", "the input a.wav"),
        ("tag - -o b.wav --format jsonl", "standard input"),
        ("tag --from-file - -o b.wav --format jsonl", "standard input"),
        ("plot a.wav -o a.png", "the input"),
    ],
)
def test_an_output_that_is_read_is_refused_before_anything_is_opened(
    words: str, what: str, here: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (here / "list.txt").write_text("a.wav\n")
    (here / "link.jsonl").symlink_to("a.wav")
    os.link("a.wav", "hard.npz")
    if words.startswith("plot"):
        os.link("a.wav", "a.png")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    monkeypatch.setattr(Tagger, "from_pretrained", None)  # not even the checkpoint
    with open("b.wav") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main([*words.split(), "--model", model, "--device", "cpu"]) == 2
    assert f"is {what} and would be overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_a_file_called_dash_in_a_list(model: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    os.rename("a.wav", "-")
    (here / "list.txt").write_text("-\n")
    assert cli.main(["tag", "--from-file", "list.txt", "--format", "jsonl", "--model", model, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "./-"


ESCAPES = "\x1b]0;title\x07 \x9b31m \u202etxt.wav"


def test_labels_and_messages_cannot_move_the_terminal(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    labels = LabelSet.from_names([ESCAPES, "b"])
    event = Event(ESCAPES, 0.0, 1.0, 0.9, 0.8, 0, "")
    window = StreamWindow(0.0, 1.0, np.float32([0.9, 0.1]), (), (event,), labels)
    monkeypatch.setattr(Stream, "push", lambda self, chunk: [window])
    monkeypatch.setattr(Stream, "position_s", 1.0)
    for form in ("text", "jsonl"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\0\0" * 100)))
        assert cli.main(["listen", "--model", model, "--device", "cpu", "--top", "1", "--format", form]) == 0
        out = capsys.readouterr().out
        assert "title" in out and not set("\x1b\x07\x9b\u202e") & set(out)
        if form == "jsonl":
            assert json.loads(out.splitlines()[0])["label"] == ESCAPES, "JSON says the same"
    tell(f"error: {ESCAPES}")
    assert not set("\x1b\x07\x9b\u202e") & set(capsys.readouterr().err)
    assert json.loads(dumps({"source": ESCAPES})) == {"source": ESCAPES}


def test_the_command_line_is_known_without_other_peoples_packages() -> None:
    """Every module that adds a command is imported to parse anything: so none may cost time before it runs."""
    program = "import sys, audiotag.cli.command as c; c.build_parser(); "
    program += "print(sorted({'numpy', 'torch', 'tqdm', 'shtab', 'filelock', 'soundfile'} & set(sys.modules)))"
    done = shell(f"'{sys.executable}' -c \"{program}\"")
    assert done.stdout == "[]\n", done.stderr


def test_a_command_is_parsed_alike_whether_the_others_are_known() -> None:
    """Only the module of the command in the first word is imported."""
    told = {}
    for module, names in MODULES.items():
        for name in names:
            (found,) = (a for a in cli.build_parser([name])._actions if isinstance(a, argparse._SubParsersAction))
            (whole,) = (a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
            assert found.choices[name].format_help() == whole.choices[name].format_help()
            told.setdefault(module, set(found.choices) - {"completion"})
            assert name in told[module]
    assert told == {module: set(names) for module, names in MODULES.items()}
    assert cli.build_parser(["--debug", "tag", "fit"]).parse_args(["--debug", "tag", "fit"]).paths == ["fit"]


def events_by(words: list[str]) -> Any:
    return cli.build_parser().parse_args(words)


@pytest.mark.parametrize("command", [["events", "x"], ["listen"]])
def test_events_begin_and_end_by_on_and_off_everywhere(command: list[str], capsys: pytest.CaptureFixture) -> None:
    args = events_by([*command, "--on", "0.4", "--off", "0.2"])
    assert (args.on, args.off) == (0.4, 0.2)
    with pytest.raises(SystemExit):
        events_by([*command, "--threshold", "0.4"])
