"""What may be loaded, configurations that cannot be, and writing whole or not at all."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audiotag import Tagger
from audiotag.checkpoints.access import Access
from audiotag.checkpoints.load import load_checkpoint, save_weights
from audiotag.checkpoints.save import convert, save_checkpoint
from audiotag.errors import AudioError, CheckpointError, DownloadError, InvalidInputError, OutputError

from .tiny import sound, tensors, tiny_checkpoint


@pytest.fixture(scope="module")
def five():
    """Of five labels, so that their names are its own."""
    return tiny_checkpoint(n_labels=5)


# targets


def test_a_name_wins_over_a_path_and_dot_slash_gives_the_path(five, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(five, "mn05_as")
    with pytest.raises(DownloadError, match=r"mn05_as_mAP_443\.pt is not there"):
        load_checkpoint("mn05_as", Access(local_files_only=True, cache_dir=tmp_path / "cache"))
    assert load_checkpoint("./mn05_as").config == five.config
    assert load_checkpoint(Path("mn05_as")).config == five.config
    save_checkpoint(five, "owner/name")
    assert load_checkpoint("owner/name").config == five.config


@pytest.mark.parametrize(
    ("target", "kind", "named"),
    [
        ("dymn10", InvalidInputError, "did you mean dymn10_as"),
        ("no/such/folder", CheckpointError, "no such file or folder"),
        ("missing.pt", CheckpointError, "missing.pt: no such file"),
        (Path("missing"), CheckpointError, "missing: no such file"),
        ("", InvalidInputError, "non-empty"),
        ("a\0b", InvalidInputError, "non-empty"),
        (3, InvalidInputError, "must be a string, a path or None, got int"),
        (b"x", InvalidInputError, "got bytes"),
        ("x" * 5000, InvalidInputError, r"no checkpoint is called 'x{79}\.\.\.; "),
        ("x/" * 2500, CheckpointError, r"^(x/){100}: no such file"),
        (Path("x" * 5000), CheckpointError, "no such file"),
        ("~nobody-of-this-name/x.pt", CheckpointError, "no such file"),
        ("\ud800", InvalidInputError, "no checkpoint is called"),
    ],
)
def test_targets_that_are_nothing(target, kind, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=named):
        load_checkpoint(target)


def test_folders_and_files_that_are_no_checkpoints(five, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
    folder = save_checkpoint(five, tmp_path / "x")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_checkpoint(folder)
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(InvalidInputError, match=r"ends in \.safetensors or \.pt.*got '\.wav'"):
        load_checkpoint(tmp_path / "x.wav")
    with pytest.raises(InvalidInputError, match="revision 'v1' is for Hub repositories"):
        load_checkpoint(folder, Access(revision="v1"))
    with pytest.raises(InvalidInputError, match="the manifest pins 'mn04_as'"):
        load_checkpoint("mn04_as", Access(revision="v1"))


def test_pipes_are_no_checkpoints(five, tmp_path):
    """They would be waited for, for ever."""
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: must be a regular file or a folder"):
        load_checkpoint(tmp_path / "x.pt")
    folder = save_checkpoint(five, tmp_path / "x")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [("cache_dir", 3), ("cache_dir", b"x"), ("cache_dir", ""), ("token", 3), ("revision", 5), ("revision", "")],
)
def test_options_that_cannot_be(option, value):
    with pytest.raises(InvalidInputError, match=f"{option} must be .* or None, got "):
        load_checkpoint("someone/tiny", Access(**{option: value}))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"format_version": 1, "\\u001b[31mkey\\u202e": 1}', r"has no '\\x1b\[31mkey\\u202e'; it has name"),
        ("", "Expecting value"),
        ("[1]", "must be a JSON object"),
        ("{}", "format_version must be 1, got None"),
        ('{"format_version": 9}', "got 9; another model's file, or a newer audiotag's"),
        ('{"format_version": 1, "netwrok": {}}', "has no 'netwrok'; it has name, network"),
        ('{"format_version": 1, "network": {"width": "wide"}}', "config.json: "),
        ('{"format_version": 1, "card": 3}', "card must be a JSON object"),
        ("[" * 100_000, "config.json: "),
    ],
)
def test_broken_config(five, tmp_path, text, named):
    folder = save_checkpoint(five, tmp_path / "x")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder)


def test_an_endless_config(five, tmp_path):
    folder = save_checkpoint(five, tmp_path / "x")
    os.truncate(folder / "config.json", 1 << 40)
    with pytest.raises(CheckpointError, match=r"config\.json: larger than the 16777216 bytes"):
        load_checkpoint(folder)


def test_facts_that_are_none_do_not_stop_a_card(five, tmp_path):
    card = {"mean_average_precision": "good", "parameters": "many", "gmacs": [1], "licence": 3, "paper": {}}
    text = (save_checkpoint(replace(five, card=card), tmp_path / "x") / "README.md").read_text()
    assert "| Parameters | unknown |" in text and "model-index" not in text


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("network", "width", float("inf"), "width must be a positive number up to 8"),
        ("network", "width", float("nan"), "width must be a positive number"),
        ("network", "width", True, "width must be a positive number"),
        ("network", "width", 1e9, "width must be a positive number up to 8, got 1000000000.0"),
        ("network", "width", 10**400, "width must be a positive number up to 8, got an integer of 1329 bits"),
        ("network", "n_labels", 10**30, "labels null means AudioSet's 527, got n_labels an integer of 100 bits"),
        ("network", "n_labels", True, "n_labels must be a whole number at least 1, got True"),
        ("network", "strides", "2222", "strides must be"),
        ("network", "strides", [True, 2, 2, 2], r"strides must be four numbers, each 1 or 2, got \[True"),
        ("network", "strides", [2.0, 2, 2, 2], "strides must be four numbers"),
        ("network", "strides", 2, "NetworkConfig: 'int' object is not iterable"),
        ("network", "head", ["mlp"], "head must be one of"),
        ("network", "temperature", None, "temperature must be a positive number, got None"),
        ("network", "temperature", float("inf"), "temperature must be a positive number"),
        ("frontend", "fmax_hz", float("nan"), "need 0 <= fmin_hz"),
        ("frontend", "fmax_hz", "high", "need 0 <= fmin_hz"),
        ("frontend", "hop_samples", 1.5, "hop_samples must be a whole number from 1 to 1024"),
        ("frontend", "hop_samples", 1, "hop_samples 1 and n_mels 128 make more than 1048576 values"),
        ("frontend", "n_mels", 10**9, "n_mels must be a whole number from 1 to 1024"),
        ("frontend", "n_fft", 2**31, "n_fft must be a whole number from 1 to 16384"),
        ("frontend", "sample_rate_hz", 10**9, "sample_rate_hz must be a whole number from 1000 to 10000000"),
        (None, "window_s", float("inf"), r"window_s must be a positive number up to 524\.288"),
        (None, "window_s", 1e9, r"window_s must be a positive number up to 524\.288"),
        (None, "window_s", 500, "make more than 1048576 values of log-mel a window"),
        (None, "window_s", 1e-9, "must hold at least n_fft 1024 samples"),
        (None, "labels", "abcde", "labels must be a list of names"),
        (None, "labels", [1, 2, 3, 4, 5], "labels must be a list of names"),
        (None, "labels", ["a", "a", "b", "c", "d"], "labels must be names that differ"),
        (None, "labels", ["a"], "1 labels for a network with 5 outputs"),
        (None, "name", 5, "name must be a string"),
        (None, "network", None, "NetworkConfig must be a mapping"),
    ],
)
def test_config_values_that_cannot_be(five, tmp_path, part, key, value, named):
    plain = five.config.to_dict()
    (plain if part is None else plain[part])[key] = value
    if key != "labels":
        plain["labels"] = None if key == "n_labels" else plain["labels"]
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 1, **plain}))
    save_file(tensors(five.state), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(tmp_path)


def test_config_of_another_network(five, tmp_path):
    folder = save_checkpoint(five, tmp_path / "x")
    plain = json.loads((folder / "config.json").read_text())
    plain["network"]["width"] = 0.4
    (folder / "config.json").write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=r"does not fit dymn of width 0\.4 with 5 labels"):
        load_checkpoint(folder)


# nothing half-written


def full(*_):
    raise OSError(28, "No space left on device")


def test_failed_write_leaves_what_was_there(five, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_weights(path, five.state, five.config, five.card)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"x\.safetensors: cannot be written \(No space left"):
        save_weights(path, five.state, five.config, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_half_replaced_folder_is_no_checkpoint(five, tmp_path, monkeypatch):
    folder = save_checkpoint(five, tmp_path / "x")
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=rf"^{folder}/model\.safetensors: cannot be written"):
            save_checkpoint(five, folder)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(folder)


def test_a_failed_conversion_names_the_folder_that_was_asked_for(five, tmp_path, monkeypatch):
    save_checkpoint(five, tmp_path / "x")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"^{tmp_path}/new/model\.safetensors: cannot be written \(No space left"):
        convert(tmp_path / "x", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_weights_that_overflow_are_the_checkpoints_fault(five):
    state = tensors(five.state)
    state["layers.3.depth_norm.weight"] = torch.full_like(state["layers.3.depth_norm.weight"], 3e38)
    tagger = Tagger(replace(five, state=state), device="cpu")
    named = "tiny: this checkpoint's weights overflow in float32"
    with pytest.raises(CheckpointError, match=named):
        tagger.predict(sound(1))
    with pytest.raises(CheckpointError, match=named):
        tagger.embed(sound(1))
    assert [type(error) for _, error in tagger.predict_each([sound(1), "missing.wav", sound(1)], batch_size=3)] == [
        CheckpointError,
        AudioError,
        CheckpointError,
    ]
    with pytest.raises(CheckpointError, match=named):
        tagger.stream(sample_rate=32_000).push(sound(10))


def test_save_refuses_a_file_for_a_folder(five, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InvalidInputError, match="folder must be a folder"):
        save_checkpoint(five, tmp_path / "x")
