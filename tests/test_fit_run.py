"""Fit and evaluate from recordings to a checkpoint folder, in Python and as commands."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

import audiotag
from audiotag import Tagger
from audiotag.cli import main
from audiotag.errors import CheckpointError, InvalidInputError

from .hub import TOKEN
from .sounds import RATE, made, write_folders, write_mixtures, write_table

REPORT = ("metrics.json", "per_class.csv", "splits.csv", "predictions.csv", "report.html")
PICTURES = ("confusion.png", "precision_recall.png", "reliability.png")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def negatives(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("negatives"), kinds=("none",), takes=6)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache of embeddings that the module's fits share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def run(sounds, negatives, kept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits") / "model"
    return audiotag.fit(sounds, folder, negatives=negatives, method="probe", cache_dir=kept)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_is_an_ordinary_checkpoint(run, sounds, tmp_path):
    tagger = Tagger.from_pretrained(run.folder)
    assert tagger.labels.names == ("beep", "buzz", "hiss") and run.tagger.labels == tagger.labels
    for kind in tagger.labels.names:
        top = tagger.predict(made(kind, 77), sample_rate=RATE).top(1)
        assert top and top[0].label == kind
    again = Tagger.from_pretrained(tagger.save_pretrained(tmp_path / "again"))
    sound = sounds / "buzz" / "0.wav"
    assert again.predict(sound) == tagger.predict(sound)
    assert not [p for p in run.folder.rglob("*") if p.suffix in (".pt", ".pkl", ".pickle", ".joblib")]
    np.testing.assert_array_equal(tagger.embed(sound), Tagger.from_pretrained().embed(sound))


def test_below_all_thresholds_the_answer_is_nothing(run, tmp_path, capsys):
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, made("none", 3, 2.0), RATE)
    prediction = run.tagger.predict(quiet)
    assert prediction.top() == [] and prediction.events() == [] and prediction.to_dict()["tags"] == []
    assert len(prediction.top(threshold=0)) == 3
    assert main(["tag", str(quiet), "--model", str(run.folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tags"] == []
    assert main(["events", str(quiet), "--model", str(run.folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["events"] == []


def test_report(run):
    for name in (*REPORT, *PICTURES, "README.md", "config.json", "model.safetensors"):
        assert (run.folder / name).stat().st_size > 100, name
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(run.metrics))
    figures = metrics["out_of_fold"]
    assert figures["accuracy"] == 1 and figures["clips"] == 30
    assert figures["false_alarms"]["clips"] == 6 and figures["false_alarms"]["per_hour"] < 1000
    low, high = figures["interval_95"]["accuracy"]
    assert low <= figures["accuracy"] <= high
    assert [r["label"] for r in rows_of(run.folder / "per_class.csv")] == ["beep", "buzz", "hiss"]
    splits, predictions = rows_of(run.folder / "splits.csv"), rows_of(run.folder / "predictions.csv")
    assert len(splits) == len(predictions) == 30
    assert {r["fold"] for r in splits} == {"1", "2", "3", "4", "5"}
    assert all(0 <= float(r["beep"]) <= 1 for r in predictions)
    right = sum(r["labels"] == r["said"] for r in predictions)
    assert right == round(figures["exact"] * 30)


def test_page_loads_nothing(run):
    page = (run.folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]+""", page) and "@import" not in page
    images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert sorted(base64.b64decode(i) for i in images) == sorted((run.folder / n).read_bytes() for n in PICTURES)


def test_scores_in_the_table_are_out_of_fold(run, sounds, kept, tmp_path):
    """They are not the final model's, which has seen every clip."""
    predictions = {r["file"]: r for r in rows_of(run.folder / "predictions.csv")}
    final = run.tagger
    differ = [
        abs(final.scores(path)[0] - float(predictions[str(path.relative_to(sounds))]["beep"]))
        for path in sorted(sounds.rglob("*.wav"))
    ]
    assert max(differ) > 1e-4


def test_a_second_fit_embeds_nothing_and_says_the_same(run, sounds, negatives, kept, tmp_path):
    again = audiotag.fit(sounds, tmp_path / "m", negatives=negatives, method="probe", cache_dir=kept)
    assert run.metrics["details"]["embedded"] == 30 and again.metrics["details"]["embedded"] == 0
    assert again.metrics["out_of_fold"] == run.metrics["out_of_fold"]
    a, b = run.tagger.checkpoint.state, again.tagger.checkpoint.state
    assert all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a)


def test_the_cache_is_by_content(sounds, kept, tmp_path):
    moved = shutil.copytree(sounds, tmp_path / "elsewhere")
    first = audiotag.fit(moved, tmp_path / "m", method="probe", cache_dir=kept)
    assert first.metrics["details"]["embedded"] == 0
    soundfile.write(moved / "buzz" / "0.wav", made("buzz", 500), RATE)
    second = audiotag.fit(moved, tmp_path / "n", method="probe", cache_dir=kept)
    assert second.metrics["details"]["embedded"] == 1


def test_a_damaged_cache_is_no_answer(sounds, tmp_path):
    (tmp_path / "embeddings.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(audiotag.OutputError, match="delete the file"):
        audiotag.fit(sounds, tmp_path / "m", method="probe", cache_dir=tmp_path)
    assert not (tmp_path / "m").exists()


def test_several_labels_and_audiosets_too(kept, tmp_path):
    table = write_mixtures(tmp_path / "mixed", 40)
    run = audiotag.fit(table, tmp_path / "m", method="probe", keep_audioset=True, cache_dir=kept)
    assert run.metrics["task"] == "multi" and run.metrics["out_of_fold"]["mean_average_precision"] > 0.8
    tagger, plain = run.tagger, Tagger.from_pretrained()
    assert len(tagger.labels) == 530 and tagger.labels.names[:527] == plain.labels.names
    mixture = 0.6 * (made("beep", 900) + made("hiss", 900))
    prediction = tagger.predict(mixture, sample_rate=RATE)
    np.testing.assert_allclose(prediction.scores[:527], plain.scores(mixture, sample_rate=RATE), atol=1e-6)
    own = {tag.label for tag in prediction.top(None) if not tag.mid}
    assert own == {"beep", "hiss"}
    assert tagger.predict(mixture, sample_rate=RATE).roll_up().scores.shape == (530,)


def test_own_names_that_audioset_has(sounds, kept, tmp_path):
    shutil.copytree(sounds / "beep", tmp_path / "data" / "Speech")
    shutil.copytree(sounds / "hiss", tmp_path / "data" / "Hiss")
    run = audiotag.fit(tmp_path / "data", tmp_path / "m", method="probe", keep_audioset=True, cache_dir=kept)
    assert run.tagger.labels.names[-2:] == ("Hiss (own)", "Speech (own)")


def test_test_split_is_reported_apart(sounds, kept, tmp_path):
    test = write_folders(tmp_path / "test", takes=4, first=300)
    run = audiotag.fit(sounds, tmp_path / "m", method="probe", test=test, cache_dir=kept)
    assert run.metrics["test"]["clips"] == 12 and run.metrics["out_of_fold"]["clips"] == 24
    assert run.metrics["test"]["accuracy"] > 0.9
    assert sum(r["fold"] == "test" for r in rows_of(run.folder / "splits.csv")) == 12


def test_evaluate(run, sounds, tmp_path, capsys):
    other = write_folders(tmp_path / "other", takes=4, first=200)
    told = audiotag.evaluate(run.folder, other, tmp_path / "report")
    assert told.metrics["figures"]["accuracy"] > 0.9 and told.metrics["figures"]["clips"] == 12
    assert all((tmp_path / "report" / name).is_file() for name in (*REPORT, *PICTURES))
    assert main(["evaluate", str(run.folder), str(other)]) == 0
    assert "Accuracy" in capsys.readouterr().out
    assert not told.metrics["data"]["warnings"]
    (other / "beep" / "seen.wav").write_bytes((sounds / "beep" / "0.wav").read_bytes())  # the fit had these bytes
    (warning,) = audiotag.evaluate(run.folder, other).metrics["data"]["warnings"]
    assert "1 of 13 clips are of recordings that the checkpoint was fitted to" in warning
    with pytest.raises(InvalidInputError, match="label 'cow' is not one of the checkpoint"):
        audiotag.evaluate(run.folder, write_folders(tmp_path / "cows", takes=2, kinds=("cow",)))


def test_evaluate_audiosets_labels(tmp_path):
    for name in ("Hiss", "Speech"):
        (tmp_path / name).mkdir()
        for i in range(2):
            soundfile.write(tmp_path / name / f"{i}.wav", made("hiss" if name == "Hiss" else "beep", i), RATE)
    told = audiotag.evaluate(None, tmp_path)
    assert set(told.metrics["thresholds"]) == {"Hiss", "Speech"}


def test_dry_run_makes_nothing(sounds, tmp_path, capsys):
    assert main(["fit", str(sounds), "--dry-run", "-o", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "24 recordings" in out and "beep" in out and not (tmp_path / "m").exists()


def test_problems_are_told_line_by_line(sounds, tmp_path, capsys):
    rows = [[str(sounds / "beep" / "0.wav"), "beep"], ["gone.wav", "beep"], [str(sounds / "buzz" / "1.wav"), "Beep"]]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    table = write_table(tmp_path / "t.csv", ["file", "label"], rows)
    assert main(["fit", str(table), "-o", str(tmp_path / "m")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "audiotag: error: 4 problems with the data, nothing was done:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        str(tmp_path / "m"), f"{table}:3", f"{table}:4", f"{table}:2",
    ]  # fmt: skip


def test_a_folder_that_is_not_empty_is_left_alone(sounds, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    assert main(["fit", str(sounds), "-o", str(tmp_path / "m")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["notes.txt"]


def test_one_that_says_other_scores_is_not_left(sounds, kept, tmp_path, monkeypatch):
    """A head that is saved wrongly is found by loading the folder again."""
    from audiotag.training.fit import run as module

    save = module.save_checkpoint

    def wrong(checkpoint, folder):
        state = dict(checkpoint.state)
        state["head.bias"] = state["head.bias"][::-1] + 1
        return save(replace(checkpoint, state=state), folder)

    monkeypatch.setattr(module, "save_checkpoint", wrong)
    with pytest.raises(CheckpointError, match="off the trained model"):
        audiotag.fit(sounds, tmp_path / "m", method="probe", cache_dir=kept)
    assert list(tmp_path.iterdir()) == []


def test_fit_from_a_fitted_checkpoint(run, sounds, kept, tmp_path):
    again = audiotag.fit(sounds, tmp_path / "m", model=run.folder, method="probe", cache_dir=kept)
    assert again.metrics["details"]["embedded"] == 0  # the network is the same
    assert again.tagger.labels.names == ("beep", "buzz", "hiss")


def test_a_fitted_folder_goes_to_the_hub_and_comes_back(run, sounds, hub, cache):
    run.tagger.push_to_hub("me/mine", token=TOKEN)
    again = Tagger.from_pretrained("me/mine", cache_dir=cache)
    assert again.labels.names == ("beep", "buzz", "hiss")
    sound = sounds / "hiss" / "1.wav"
    assert again.predict(sound) == run.tagger.predict(sound)
    assert again.config.thresholds == run.tagger.config.thresholds


def test_a_stream_of_own_labels(run):
    stream = run.tagger.stream(sample_rate=RATE)
    audio = np.concatenate([made("none", 1, 12.0), made("buzz", 5, 12.0), made("none", 2, 3.0)])
    ended = [e for w in (*stream.push(audio), *stream.flush()) for e in w.ended]
    assert {e.label for e in ended} == {"buzz"}


def test_embed_and_plot_commands(run, sounds, tmp_path):
    sound = str(sounds / "beep" / "0.wav")
    assert main(["embed", sound, "--model", str(run.folder), "-o", str(tmp_path / "v.npz")]) == 0
    assert main(["plot", sound, "--model", str(run.folder), "-o", str(tmp_path / "p.png")]) == 0


def test_the_card_tells_the_figures(run):
    card = (run.folder / "README.md").read_text()
    assert "Accuracy" not in card and "accuracy 100.0% (95 %: 100.0% to 100.0%)" in card
    assert "3, learnt from 30 clips (probe) on top of dymn04_open" in card and "3 scores in [0, 1]" in card


def test_the_probe_needs_no_torch(sounds, kept, tmp_path):
    """Where torch is not installed, another runtime embeds and nothing else of fit asks for it."""
    pytest.importorskip("onnxruntime", reason="something must run the network")
    program = """
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, n, *a: None if n.split(".")[0] == "torch" else real(n, *a))
import audiotag
run = audiotag.fit(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3])
assert "torch" not in sys.modules and run.tagger.runtime != "torch"
print(run.metrics["out_of_fold"]["accuracy"])
"""
    command = [sys.executable, "-c", program, sounds, tmp_path / "m", kept]
    environment = os.environ | {"AUDIOTAG_RUNTIME": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == "1.0", done.stderr
