"""The examples run as they are, on files made here, with a tiny checkpoint where the sounds do not matter."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiotag import Tagger

from .tiny import RATE, sound, tiny_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Tagger(tiny_checkpoint(), device="cpu").save_pretrained(tmp_path_factory.mktemp("checkpoint"))


def run(name, *args):
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_tag_file(checkpoint):
    done = run("tag_file.py", EXAMPLES / "train_jet_saw.ogg", checkpoint)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "train_jet_saw.ogg: 9.3 s" in lines[0] and len(lines) == 6
    scores = [float(line.split()[0]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True)


def test_tag_folder_reports_the_bad_file_and_tags_the_others(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(1), RATE)
    (tmp_path / "b.wav").write_text("no audio")
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "sub" / "c.flac", sound(2), RATE)
    done = run("tag_folder.py", tmp_path, checkpoint)
    assert done.returncode == 1
    assert "a.wav: " in done.stdout and "c.flac: " in done.stdout and "b.wav" not in done.stdout
    assert "b.wav" in done.stderr and "Traceback" not in done.stderr


def test_own_labels(tmp_path):
    pytest.importorskip("sklearn", reason="the extra [fit] is not installed")
    done = run("own_labels.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("48 clips") and float(lines[1].split()[1]) > 0.9
    assert {line.split(": ")[1].split()[0] for line in lines[2:]} == {"nothing", "engine", "hail", "whistle"}


def test_train_classifier_learns_what_can_be_learned(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    for i in range(6):
        for name, wave in {"tone": np.sin(2 * np.pi * (300 + 50 * i) * t), "noise": rng.standard_normal(RATE)}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            soundfile.write(tmp_path / name / f"{i}.wav", 0.2 * wave, RATE)
    (tmp_path / "tone" / "broken.wav").write_text("no audio")
    done = run("train_classifier.py", tmp_path, checkpoint)
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr and "broken.wav" in done.stderr
    accuracy = float(done.stdout.split("held-out files: ")[1].split()[0])
    assert accuracy >= 0.9  # tones and noise differ already in the log-mel means
