"""Converting, uploading and publishing checkpoints, against the Hub on loopback."""

import errno
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from audiotag.checkpoints import publish, push
from audiotag.checkpoints.access import Access
from audiotag.checkpoints.digests import digests
from audiotag.checkpoints.load import load_checkpoint, load_entry, save_weights
from audiotag.checkpoints.manifest import Source, manifest, parse
from audiotag.checkpoints.save import convert, save_checkpoint
from audiotag.errors import CheckpointError, InvalidInputError, OutputError, VerificationError
from audiotag.labels.label_set import audioset_labels

from .hub import TOKEN
from .tiny import same, tensors, tiny_checkpoint

# converting


def test_convert_makes_what_the_hub_wants(tiny, tmp_path):
    torch.save(tensors(tiny.state), tmp_path / "src.pt")
    made = convert(tmp_path / "src.pt", tmp_path / "out" / "dir")
    assert sorted(p.name for p in made.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in made.parent.iterdir()] == ["dir"]
    found = load_checkpoint(made)
    assert found.config == replace(tiny.config, name="src")
    assert all(np.array_equal(found.state[name], tiny.state[name]) for name in tiny.state)
    config = json.loads((made / "config.json").read_text())
    assert config["format_version"] == 1 and config["network"]["width"] == 0.1


def test_model_card(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "mit" and metadata["library_name"] == "audiotag"
    assert metadata["pipeline_tag"] == "audio-classification"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    assert "| Licence | MIT |" in body and "| Trained on | noise |" in body and "0.250" in body
    listed = [line.split(". ", 1)[1] for line in body.splitlines() if line.split(".")[0].isdigit()]
    assert listed == [label.display_name for label in audioset_labels()]
    assert "Tagger.from_pretrained" in body


def test_model_card_invents_nothing(tiny, tmp_path):
    made = save_checkpoint(replace(tiny, card={}), tmp_path / "x")
    text = (made / "README.md").read_text()
    assert "license" not in text and "model-index" not in text
    assert "| Licence | unknown |" in text and "| Trained on | unknown |" in text


def test_converted_release_file(shared_dir, tmp_path):
    made = convert(shared_dir / "reference" / "mn04_as_mAP_432.pt", tmp_path / "mn04")
    found = load_checkpoint(made)
    original = torch.load(shared_dir / "reference" / "mn04_as_mAP_432.pt", weights_only=True)
    assert all(np.array_equal(found.state[name], original[name].numpy()) for name in original)
    assert found.config == manifest().entries["mn04_as"].config
    text = (made / "README.md").read_text()
    assert "0.432" in text and "/v0.0.1/mn04_as_mAP_432.pt" in text and str(shared_dir) not in text


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_convert_refuses_a_full_folder_and_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    torch.save(tensors(tiny.state), tmp_path / "src.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(InvalidInputError, match="folder must be new or empty"):
        convert(tmp_path / "src.pt", tmp_path / "full")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "full", tmp_path / "new")
    torch.save({"in_c.0.weight": torch.zeros(1)}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.pt", tmp_path / "new")
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", full_disk)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left"):
            convert(tmp_path / "src.pt", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt", "full", "src.pt"]
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "src.pt", tmp_path / "empty") == tmp_path / "empty"


# uploading


def test_uploaded_folder_loads_from_the_hub(hub, folder, tiny, cache):
    (folder / "notes.txt").write_text("not for others")
    revision = push.push_to_hub(folder, "me/new", token=TOKEN)
    (folder / "notes.txt").unlink()
    commit, tree = hub.repositories["me/new"].commits[-1]
    assert revision == commit and sorted(tree) == ["README.md", "config.json", "model.safetensors"]
    assert same(load_checkpoint("me/new", Access(cache_dir=cache)), tiny)
    assert not hub.repositories["me/new"].private
    assert push.push_to_hub(folder, "me/new", token=TOKEN) == revision  # unchanged: nothing to commit
    assert all("authorization" not in headers for headers in hub.requested("PUT", "/large/"))


def test_loaded_checkpoint_is_uploaded(hub, tiny, cache):
    push.push_checkpoint(tiny, "me/loaded", token=TOKEN, private=True)
    assert hub.repositories["me/loaded"].private
    assert same(load_checkpoint("me/loaded", Access(cache_dir=cache, token=TOKEN)), tiny)


def test_uploads_that_cannot_be(hub, folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"me/x: the upload failed .*token that may write"):
        push.push_to_hub(folder, "me/x", token="wrong")
    with pytest.raises(InvalidInputError, match="folder must be a checkpoint folder"):
        push.push_to_hub(tmp_path / "none", "me/x", token=TOKEN)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        push.push_to_hub(tmp_path, "me/x", token=TOKEN)
    with pytest.raises(CheckpointError, match="three/part/name: the upload failed"):
        push.push_to_hub(folder, "three/part/name", token=TOKEN)
    assert hub.repositories == {}


def test_upload_that_arrives_changed_is_seen(hub, folder, monkeypatch):
    commit = type(hub).publish

    def spoil(handler, repository, repo_id):
        commit(hub, repo_id, {"model.safetensors": (folder / "model.safetensors").read_bytes()[::-1]})
        handler.json({"commitUrl": f"{hub.url}/{repo_id}/commit/x", "commitOid": repository.commits[-1][0]})

    monkeypatch.setattr(hub.RequestHandlerClass, "commit", spoil)
    with pytest.raises(VerificationError, match=r"me/x at .*: the Hub holds model.safetensors as"):
        push.push_to_hub(folder, "me/x", token=TOKEN)


# the maintainer's command


@pytest.fixture
def manifest_file(tmp_path):
    """A copy of the manifest behind a link, as at the repository's root."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "m.json").write_text(manifest().to_json())
    (tmp_path / "m.json").symlink_to("package/m.json")
    return tmp_path / "m.json"


def test_publishing_records_revision_size_and_digest(hub, shared_dir, manifest_file, cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    hub.releases["mn04_as_mAP_432.pt"] = (shared_dir / "reference" / "mn04_as_mAP_432.pt").read_bytes()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert publish.main(["--manifest", str(manifest_file), "hub", "mn04_as", "--namespace", "us"]) == 0
    assert manifest_file.is_symlink()
    known = parse(manifest_file.read_text())
    revision, tree = hub.repositories["us/mn04_as"].commits[-1]
    content = tree["model.safetensors"]
    assert known.hub_namespace == "us"
    assert known.entries["mn04_as"].sources[0] == Source(
        "hub", "model.safetensors", size=len(content), sha256=hashlib.sha256(content).hexdigest(), revision=revision
    )
    assert {n: e for n, e in known.entries.items() if n != "mn04_as"} == {
        n: e for n, e in manifest().entries.items() if n != "mn04_as"
    }
    found = load_entry(known.entries["mn04_as"], known, Access(cache / "other"))
    assert found.origin == f"Hub repository us/mn04_as at {revision}"
    original = load_checkpoint(shared_dir / "reference" / "mn04_as_mAP_432.pt")
    assert same(found, original)
    with pytest.raises(InvalidInputError, match="namespace must be the manifest's 'us'"):
        publish.publish_to_hub(known, "mn04_as", "them")


def test_command_reports_errors(hub, manifest_file, capsys):
    before = manifest_file.read_text()
    assert publish.main(["--manifest", str(manifest_file), "hub", "mn04_as"]) == 1
    assert "name one with --namespace" in capsys.readouterr().err
    assert publish.main(["--manifest", str(manifest_file), "pin", "nothing"]) == 1
    assert "no checkpoint is called 'nothing'" in capsys.readouterr().err
    assert publish.main(["--manifest", str(manifest_file), "pin", "dymn04_open"]) == 1
    assert "has no release file" in capsys.readouterr().err
    assert manifest_file.read_text() == before


def test_pinning_a_release_file(hub, manifest_file, cache, monkeypatch, tmp_path, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    made = tiny_checkpoint("mn")
    torch.save(tensors(made.state), tmp_path / "x.pt")
    hub.releases["mn01_as_mAP_298.pt"] = (tmp_path / "x.pt").read_bytes()
    assert publish.main(["--manifest", str(manifest_file), "pin", "mn01_as"]) == 0
    assert manifest_file.is_symlink() and not manifest_file.resolve().is_symlink()
    source = parse(manifest_file.read_text()).entries["mn01_as"].sources[1]
    assert (source.size, source.sha256, source.git_blob_sha1) == digests(tmp_path / "x.pt")
    assert source.sha256 in capsys.readouterr().out


def test_putting_the_built_in_checkpoint_into_the_package(tmp_path):
    known = manifest()
    entry = known.entries[known.default]
    small = replace(entry.config, network=replace(entry.config.network, width=0.1))
    network = {
        name: t.half() if t.is_floating_point() else t for name, t in tensors(tiny_checkpoint("dymn").state).items()
    }
    card = {"trained_on": "what it was", "mean_average_precision": 0.123, "metric_source": "ours", "teachers": ["a"]}
    save_weights(tmp_path / "new.safetensors", network, replace(small, name="last run"), card)
    target = tmp_path / "data" / "built-in.safetensors"
    target.parent.mkdir()
    with pytest.raises(CheckpointError, match="is not the manifest's"):
        publish.put_in_package(known, tmp_path / "new.safetensors", destination=target)
    known = publish.with_entry(known, replace(entry, config=small))
    with pytest.raises(InvalidInputError, match=r"facts must be among.*got colour"):
        publish.put_in_package(known, tmp_path / "new.safetensors", {"colour": "red"}, target)
    assert not target.exists()
    changed = publish.put_in_package(known, tmp_path / "new.safetensors", {"licence": "CC0-1.0"}, target)
    made = changed.entries[known.default]
    assert (made.sources[0].size, made.sources[0].sha256) == digests(target)[:2]
    assert (made.trained_on, made.mean_average_precision, made.licence) == ("what it was", 0.123, "CC0-1.0")
    found = load_checkpoint(target)
    assert found.config == small and found.card == {**made.card(), "teachers": ["a"]}
    assert all(np.array_equal(found.state[name], tensor.float().numpy()) for name, tensor in network.items())
    assert publish.put_in_package(changed, target, destination=target) == changed  # in place, and nothing left to do


def test_hub_source_is_added_where_there_was_none(folder):
    known = manifest()
    made = publish.with_source(known, "dymn04_open", Source("hub", "model.safetensors", revision="0" * 40))
    assert [s.kind for s in made.entries["dymn04_open"].sources] == ["hub", "package"]
    assert made.usable_sources(made.entries["dymn04_open"]) == known.entries["dymn04_open"].sources
