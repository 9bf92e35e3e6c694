"""Loading checkpoints from files and folders: round trips, foreign files, and what damaged or hostile ones get."""

import io
import logging
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiotag.checkpoints.digests import digests
from audiotag.checkpoints.identify import infer_network
from audiotag.checkpoints.load import Checkpoint, build, load_checkpoint, save_weights
from audiotag.checkpoints.manifest import manifest
from audiotag.checkpoints.save import save_checkpoint
from audiotag.config import FrontendConfig, NetworkConfig
from audiotag.errors import AudiotagError, CheckpointError
from audiotag.networks.build import build_network

from .tiny import tensors, tiny_checkpoint


@pytest.fixture(scope="module")
def tiny():
    made = tiny_checkpoint(n_labels=5)
    card = {"licence": "MIT", "parameters": 3, "mean_average_precision": None}
    return replace(made, config=replace(made.config, frontend=FrontendConfig(hop_samples=160)), card=card)


@pytest.fixture
def pt_file(tiny, tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(tensors(tiny.state), path)
    return path


def same(a, b):
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def shapes_of(config):
    with torch.device("meta"):
        return build_network(config).state_dict()


# what is written is what is read


def test_folder_round_trip(tiny, tmp_path):
    folder = save_checkpoint(tiny, tmp_path / "a" / "b")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for found in (load_checkpoint(folder), load_checkpoint(str(folder)), load_checkpoint(folder / "model.safetensors")):
        assert found.config == tiny.config
        assert found.card == tiny.card
        assert same(found.state, tiny.state)


def test_built_network_is_the_one_saved(tiny, tmp_path):
    saved = load_checkpoint(save_checkpoint(tiny, tmp_path / "x"))
    seed = torch.random.get_rng_state()
    network = build(saved)
    assert torch.equal(torch.random.get_rng_state(), seed)  # the caller's random numbers are his
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    reference = build_network(tiny.config.network)
    reference.load_state_dict(tensors(tiny.state))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 128, 40), dtype=np.float32))
    with torch.no_grad():
        assert torch.equal(network(x).logits, reference.eval()(x).logits)
    next(network.parameters()).zero_()
    assert same(saved.state, tiny.state)  # the network's tensors are its own


def test_half_precision_file_is_float32_in_memory(tiny, tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors(tiny.state).items()}
    save_weights(tmp_path / "half.safetensors", half, tiny.config, tiny.card)
    save_weights(tmp_path / "full.safetensors", tiny.state, tiny.config, tiny.card)
    found = load_checkpoint(tmp_path / "half.safetensors")
    assert same(found.state, {name: t.float() if t.is_floating_point() else t for name, t in half.items()})
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * (tmp_path / "full.safetensors").stat().st_size


def test_one_checkpoint_has_one_digest(tiny, tmp_path):
    for name in "ab":
        save_weights(tmp_path / f"{name}.safetensors", tiny.state, tiny.config, tiny.card)
    assert digests(tmp_path / "a.safetensors") == digests(tmp_path / "b.safetensors")


def test_safetensors_without_header_takes_the_config_beside_it_or_infers(tiny, tmp_path):
    folder = save_checkpoint(tiny, tmp_path / "x")
    save_file(tensors(tiny.state), folder / "other.safetensors")
    assert load_checkpoint(folder / "other.safetensors").config == tiny.config
    shutil.move(folder / "other.safetensors", tmp_path / "alone.safetensors")
    inferred = load_checkpoint(tmp_path / "alone.safetensors").config
    assert inferred.network == tiny.config.network and inferred.frontend == FrontendConfig()


def test_an_edited_card_is_kept(tiny, tmp_path):
    folder = save_checkpoint(tiny, tmp_path / "x")
    (folder / "README.md").write_text("mine")
    save_checkpoint(tiny, folder)
    assert (folder / "README.md").read_text() == "mine"


# foreign files


@pytest.mark.parametrize("width", [0.1, 0.2, 0.4, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize(
    "rest",
    [
        {"architecture": "mn"},
        {"architecture": "mn", "head": "fully_convolutional"},
        {"architecture": "dymn", "n_labels": 50},
        {"architecture": "dymn", "dynamic_blocks": "replace_se"},
    ],
    ids=str,
)
def test_network_is_inferred_from_names_and_shapes(width, rest):
    config = NetworkConfig(width=width, **rest)
    assert infer_network(shapes_of(config), "x") == config


@pytest.mark.parametrize("name", manifest().entries)
def test_every_release_file_is_understood_from_its_name_and_tensors(name):
    from audiotag.checkpoints.identify import infer_config

    entry = manifest().entries[name]
    file = next((s.file for s in entry.sources if s.kind == "release"), None)
    if file is None:
        pytest.skip("not from the release")
    found = infer_config(shapes_of(entry.config.network), Path(file))
    assert replace(found, name=name) == entry.config


def test_imagenet_files_keep_their_temperature():
    from audiotag.checkpoints.identify import infer_config

    config = NetworkConfig("dymn", 0.4, n_labels=1000)
    assert infer_config(shapes_of(config), Path("dymn04_im.pt")).network.temperature == 30
    assert infer_config(shapes_of(config), Path("dymn04_imitation.pt")).network.temperature == 1


@pytest.mark.parametrize("name", ["mn_hop_99999.pt", "mn_mels_0.pt", "mn_mels_999999999.pt"])
def test_a_name_that_says_what_cannot_be(tiny, tmp_path, name):
    torch.save(tensors(tiny.state), tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: its name says what cannot be \((hop_samples|n_mels) must be"):
        load_checkpoint(tmp_path / name)


def test_foreign_pt(tiny, pt_file, caplog):
    with caplog.at_level(logging.INFO, "audiotag"):
        found = load_checkpoint(pt_file)
    assert same(found.state, tiny.state)
    assert found.config.network == tiny.config.network
    assert found.config.labels == tuple(f"label {i}" for i in range(5))
    assert "foreign.pt: DyMN of width 0.1 with 5 labels" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"module." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": {"model._orig_mod." + k: v for k, v in s.items()}},
    ],
)
def test_usual_wrappings_are_taken_off(tiny, tmp_path, wrap):
    torch.save(wrap(tensors(tiny.state)), tmp_path / "x.pt")
    assert same(load_checkpoint(tmp_path / "x.pt").state, tiny.state)


def test_release_file_is_known_by_its_digest_whatever_its_name(shared_dir, tmp_path):
    shutil.copy(shared_dir / "reference" / "mn04_as_mAP_432.pt", tmp_path / "hop_5_mels_40.pt")
    found = load_checkpoint(tmp_path / "hop_5_mels_40.pt")
    assert found.config == manifest().entries["mn04_as"].config
    assert found.card["mean_average_precision"] == 0.432 and found.card["licence"] == "MIT"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def pickled_with_code(state, bomb, form):
    loaded = {**state, "extra": bomb}
    buffer = io.BytesIO()
    if form == "torch zip":
        torch.save(loaded, buffer)
    elif form == "torch legacy":
        torch.save(loaded, buffer, _use_new_zipfile_serialization=False)
    else:
        pickle.dump(loaded, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "pickle"])
def test_code_in_a_pt_is_refused_and_not_run(tiny, tmp_path, form):
    bomb, path = tmp_path / "exploded", tmp_path / "x.pt"
    path.write_bytes(pickled_with_code(tiny.state, Bomb(bomb), form))
    named = "holds code or objects" if form == "torch zip" else "not a zip file.*bare pickle"
    with pytest.raises(CheckpointError, match=rf"x\.pt: {named}.*save"):
        load_checkpoint(path)
    assert not bomb.exists()
    # The bomb was live:
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(path, weights_only=False)
    assert bomb.exists()


# tensors that do not fit


def changed(state, **changes):
    return {name.replace("__", "."): tensor for name, tensor in ({**state, **changes}).items() if tensor is not None}


FIRST = "in_c.0.weight"
NORM = "in_c.1.running_var"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop(FIRST), rf"missing: {FIRST}"),
        (
            lambda s: [s.pop(k) for k in list(s) if "running_mean" in k],
            r"missing: in_c.1.running_mean, .*\.\.\. \(\d+ in all\)",
        ),
        (lambda s: s.update(surplus=torch.zeros(1)), "not of this network: surplus"),
        (
            lambda s: s.update({FIRST: s[FIRST][:, :, :1].clone()}),
            rf"wrong shape: {FIRST} \(8, 1, 1, 3\) instead of \(8, 1, 3, 3\)",
        ),
        (lambda s: s.update({FIRST: s[FIRST].int()}), rf"wrong type: {FIRST} is int32"),
        (lambda s: s.update({FIRST: torch.full_like(s[FIRST], float("nan"))}), rf"not finite: {FIRST}"),
        (lambda s: s.update({NORM: torch.full_like(s[NORM], float("inf"))}), rf"not finite: {NORM}"),
        (lambda s: s.update({NORM: -s[NORM]}), rf"negative variances: {NORM}"),
        (lambda s: s.update({FIRST: s[FIRST].to(torch.complex64)}), rf"wrong type: {FIRST} is complex64"),
    ],
)
@pytest.mark.parametrize("form", ["pt", "safetensors", "folder"])
def test_tensors_that_do_not_fit_are_named(tiny, tmp_path, change, named, form):
    state = tensors(tiny.state)
    change(state)
    if form == "pt":
        if FIRST not in state:
            named = "not the state dict of a DyMN or MN"  # what it is recognised by is gone
        path = tmp_path / "x.pt"
        torch.save(state, path)
    else:
        folder = save_checkpoint(tiny, tmp_path / "x")
        save_file(state, folder / "model.safetensors")
        path = folder if form == "folder" else folder / "model.safetensors"
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(path)


def test_a_checkpoint_checks_what_it_is_made_of(tiny):
    with pytest.raises(CheckpointError, match="wrong shape"):
        replace(tiny, config=replace(tiny.config, network=NetworkConfig("dymn", 0.2, 5)))
    with pytest.raises(CheckpointError, match="missing"):
        Checkpoint(tiny.config, {}, "nowhere")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([1, 2], "holds a list"),
        ({}, "an empty mapping"),
        (torch.zeros(3), "holds a Tensor"),
        ({"a": 1}, "other entries: a"),
        ({"weight": torch.zeros(3)}, "not the state dict of a DyMN or MN; its first names are weight"),
        ({"features.0.0.weight": torch.zeros(3)}, "features.16.0.weight is missing"),
    ],
)
def test_pt_without_a_state_dict(tmp_path, content, named):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(tmp_path / "x.pt")


def test_a_compressed_pt_is_not_inflated(tiny, pt_file, tmp_path):
    """A zip of few bytes that says it holds gigabytes is refused by what it says, before a byte of it is made."""
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(pt_file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    torch.load(packed, weights_only=True)  # torch itself inflates it
    with pytest.raises(CheckpointError, match=r"packed\.pt: holds \d+ bytes compressed, which torch\.save never does"):
        load_checkpoint(packed)


def test_one_value_shown_many_times_is_no_tensor(tiny, tmp_path):
    name = "classifier.2.weight"
    state = {**tensors(tiny.state), name: torch.zeros(1).expand(tiny.state[name].shape)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"wrong type: {name}"):
        load_checkpoint(tmp_path / "x.pt")


def test_damaged_files_are_refused_or_whole(tmp_path):
    """Truncations and random bytes: either a checkpoint of the right network comes out, or a named error."""
    tiny = tiny_checkpoint("mn", n_labels=5)
    save_weights(tmp_path / "whole.safetensors", tiny.state, tiny.config, tiny.card)
    torch.save(tensors(tiny.state), tmp_path / "whole.pt")
    rng = np.random.default_rng(1)
    refused = 0
    for whole in (tmp_path / "whole.safetensors", tmp_path / "whole.pt"):
        content = whole.read_bytes()
        path = tmp_path / f"damaged{whole.suffix}"
        cuts = [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]
        damaged = [content[:n] for n in cuts]
        for _ in range(30):
            changed = bytearray(content)
            for at in rng.integers(0, min(len(content), rng.choice([16, 4096, len(content)])), 4):
                changed[at] = rng.integers(256)
            damaged.append(bytes(changed))
        for i, data in enumerate(damaged):
            path.write_bytes(data)
            try:
                found = load_checkpoint(path)
            except AudiotagError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert i >= len(cuts) and list(found.state) == list(tiny.state)
                build(found)
    assert refused > 20


def test_a_file_is_hashed_once_and_its_tensors_checked_once(shared_dir, monkeypatch):
    """Whatever loads and builds it; each is a pass over all its bytes."""
    from audiotag.checkpoints import load

    passes = []
    for name in ("digests", "check_state"):
        real = getattr(load, name)
        monkeypatch.setattr(load, name, lambda *given, name=name, real=real: passes.append(name) or real(*given))
    build(load_checkpoint(shared_dir / "reference" / "mn04_as_mAP_432.pt"))
    assert sorted(passes) == ["check_state", "digests"]
