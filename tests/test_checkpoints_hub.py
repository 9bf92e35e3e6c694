"""The Hub on loopback: loading repositories, pinned entries, offline, tokens, tampering."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from audiotag.checkpoints import hub as hub_module
from audiotag.checkpoints.access import Access
from audiotag.checkpoints.digests import digests
from audiotag.checkpoints.fetch import fetch, fetch_entry
from audiotag.checkpoints.load import load_checkpoint
from audiotag.checkpoints.manifest import Manifest, Source, manifest
from audiotag.errors import CheckpointError, DownloadError, InvalidInputError, VerificationError

from .hub import TOKEN, Fault
from .tiny import same

ROOT = Path(__file__).parents[1]
REPOSITORY = "someone/tiny"


@pytest.fixture
def published(hub, folder):
    """The commit of a repository that holds the tiny checkpoint."""
    return hub.publish(REPOSITORY, {path.name: path.read_bytes() for path in folder.iterdir()})


def pinned(folder, commit, **changes):
    """A manifest with one entry on the Hub, and the same file in the release."""
    file = folder / "model.safetensors"
    source = Source("hub", "model.safetensors", size=file.stat().st_size, sha256=digests(file).sha256, revision=commit)
    release = Source("release", "tiny.safetensors", sha256=source.sha256)
    entry = replace(manifest().entries["mn01_as"], name="tiny", sources=(replace(source, **changes), release))
    return Manifest("tiny", "someone", "http://127.0.0.1:9/", {"tiny": entry})


# any repository


def test_repository_loads_from_the_hub_then_from_the_cache(hub, published, tiny, cache, request):
    found = load_checkpoint(REPOSITORY, Access(cache_dir=cache))
    assert same(found, tiny)
    assert found.origin == f"Hub repository {REPOSITORY} at {published}"
    large = hub.requested("GET", "/large/")
    assert len(large) == 1
    request.getfixturevalue("offline")
    hub.requests.clear()
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache)), tiny)
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, revision=published)), tiny)
    assert hub.requests == []


def test_local_files_only(hub, published, tiny, cache):
    with pytest.raises(DownloadError, match=r"config.json: not in the cache.*HF_HUB_OFFLINE and local_files_only"):
        load_checkpoint(REPOSITORY, Access(cache_dir=cache, local_files_only=True))
    assert hub.requests == []
    load_checkpoint(REPOSITORY, Access(cache_dir=cache))
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, local_files_only=True)), tiny)


def test_a_revision_is_kept_to(hub, published, tiny, cache):
    hub.publish(REPOSITORY, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="format_version must be 1"):
        load_checkpoint(REPOSITORY, Access(cache_dir=cache))
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, revision=published)), tiny)


def test_configuration_and_weights_are_of_one_commit(hub, published, tiny, cache, monkeypatch):
    """Even where the repository changes between the two requests."""
    plain = hub_module.hub_file

    def then_change(repo_id, name, access, **options):
        path = plain(repo_id, name, access, **options)
        hub.publish(REPOSITORY, {"model.safetensors": b"of the next commit"})
        return path

    monkeypatch.setattr(hub_module, "hub_file", then_change)
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache)), tiny)


@pytest.mark.parametrize(
    ("target", "options", "named"),
    [
        (
            "someone/missing",
            {},
            "someone/missing/config.json: the Hub has no such repository.*check the name",
        ),
        (REPOSITORY, {"revision": "v9"}, "at revision v9: the repository has no such revision"),
        (
            "someone/empty",
            {},
            "someone/empty/config.json: the repository has no such file; it is not",
        ),
        ("someone/private", {}, "someone/private/config.json: the Hub has no such repository, or hides it.*token"),
        ("someone/gated", {}, "someone/gated/config.json: the repository is gated; accept its terms"),
    ],
)
def test_what_the_hub_refuses(hub, published, cache, target, options, named):
    hub.publish("someone/empty", {"x": b"x"})
    hub.publish("someone/private", {"config.json": b"x"}, private=True)
    hub.publish("someone/gated", {"config.json": b"x"}, gated=True)
    with pytest.raises(DownloadError, match=named):
        load_checkpoint(target, Access(cache_dir=cache, **options))


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a/-b", "a/b\x1b[31m"])
def test_names_that_no_repository_has(hub, cache, name):
    with pytest.raises(InvalidInputError, match="a Hub repository is called owner/name") as caught:
        fetch(name, Access(cache_dir=cache))
    assert hub.requests == [] and "\x1b" not in str(caught.value)


def test_token_opens_a_private_repository_and_stays_on_the_hub(hub, published, folder, tiny, cache):
    hub.repositories[REPOSITORY].private = True
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, token=TOKEN)), tiny)
    assert all("authorization" in headers for headers in hub.requested("HEAD", "/resolve/"))
    assert all("authorization" not in headers for headers in hub.requested("GET", "/large/"))


def test_tampering_on_the_way_is_seen(hub, published, folder, cache):
    """The Hub names the content by its digest; another content under that name is never used."""
    (oid,) = hub.large
    hub.large[oid] = hub.large[oid][:-4] + b"\0\0\0\1"
    with pytest.raises(VerificationError, match=f"model.safetensors: SHA-256 .*expected {oid}.*not used"):
        load_checkpoint(REPOSITORY, Access(cache_dir=cache))
    assert len(hub.requested("GET", "/large/")) == 2  # once, and once more in case it was chance


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_cache_is_fetched_again_or_refused_offline(hub, published, tiny, cache, name, caplog):
    path = fetch(REPOSITORY, Access(cache_dir=cache)).parent / name
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    with pytest.raises(VerificationError, match=f"{path}: .*not used; delete it and fetch it with a connection"):
        load_checkpoint(REPOSITORY, Access(cache_dir=cache, local_files_only=True))
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache)), tiny)
    assert "fetching it again" in caplog.text


def unlinked(path):
    """A cached file as systems without links keep it: itself, not a link to a blob with the digest's name."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def test_cache_without_links_is_compared_with_what_the_hub_says(hub, published, tiny, cache, caplog):
    path = fetch(REPOSITORY, Access(cache_dir=cache))
    for name in ("config.json", "model.safetensors"):
        unlinked(path.with_name(name))
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, revision=published)), tiny)
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, local_files_only=True)), tiny)
    assert "cannot be verified offline" in caplog.text
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache, revision=published)), tiny)
    assert "fetching it again" in caplog.text
    unlinked(path)
    hub.clear()
    with pytest.raises(DownloadError, match=rf"{REPOSITORY}/config.json at revision {published}: the Hub has no such"):
        unlinked(path.with_name("config.json"))
        load_checkpoint(REPOSITORY, Access(cache_dir=cache, revision=published))


def test_cut_connection_to_the_hub(hub, published, tiny, cache):
    """huggingface_hub resumes, or, before 0.26, gives up; what it leaves is never taken for whole."""
    hub.faults = [Fault(cut_after=1000)]
    with suppress(DownloadError):
        load_checkpoint(REPOSITORY, Access(cache_dir=cache))
    assert same(load_checkpoint(REPOSITORY, Access(cache_dir=cache)), tiny)


def test_environment_variables_work_as_everywhere(hub, published, tmp_path):
    """HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, read by a fresh process."""
    hub.repositories[REPOSITORY].private = True
    code = (
        "import sys; from audiotag.checkpoints.fetch import fetch; from audiotag.errors import AudiotagError\n"
        "try: print(fetch(sys.argv[1]))\nexcept AudiotagError as e: print(type(e).__name__, e)"
    )

    def run(**changes):
        environment = os.environ | {"HF_HOME": str(tmp_path)} | changes
        done = subprocess.run(
            [sys.executable, "-c", code, REPOSITORY], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert run(HF_HUB_OFFLINE="1").startswith("DownloadError")
    assert hub.requests == []
    stored = run(HF_TOKEN=TOKEN)
    assert stored.startswith(str(tmp_path / "hub")) and stored.endswith("model.safetensors")
    hub.clear()
    assert run(HF_HUB_OFFLINE="1") == stored and hub.requests == []


# entries of the manifest


def test_pinned_entry_comes_from_the_hub_at_its_revision(hub, published, folder, tiny, cache):
    known = pinned(folder, published)
    hub.publish(REPOSITORY, {"model.safetensors": b"newer"})
    got = fetch_entry(known.entries["tiny"], known, Access(cache))
    assert got.path.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert got.origin == f"Hub repository {REPOSITORY} at {published}"
    assert not hub.requested("GET", "/releases/")
    hub.requests.clear()
    assert fetch_entry(known.entries["tiny"], known, Access(cache)) == got
    assert hub.requests == []


def test_entry_with_the_wrong_digest_on_the_hub_comes_from_the_release(hub, published, folder, cache):
    hub.releases["tiny.safetensors"] = (folder / "model.safetensors").read_bytes()
    known = pinned(folder, published)
    (oid,) = hub.large
    hub.large[oid] = b"y" * len(hub.large[oid])
    got = fetch_entry(known.entries["tiny"], known, Access(cache))
    assert got.origin == hub.release_url + "tiny.safetensors"


def test_both_sources_failing_are_both_named(hub, published, folder, cache, offline):
    known = pinned(folder, published)
    with pytest.raises(DownloadError, match=r"tiny: someone/tiny/model.*not in the cache.*; .*tiny.*is not there"):
        fetch_entry(known.entries["tiny"], known, Access(cache))


def test_cached_release_file_spares_a_download_from_the_hub(hub, published, folder, cache):
    hub.releases["tiny.safetensors"] = (folder / "model.safetensors").read_bytes()
    known = pinned(folder, published)
    unpublished = replace(known, hub_namespace=None)
    first = fetch_entry(unpublished.entries["tiny"], unpublished, Access(cache))
    hub.requests.clear()
    assert fetch_entry(known.entries["tiny"], known, Access(cache)) == first
    assert hub.requests == []


def test_unpublished_entry_never_asks_the_hub(hub, folder, cache):
    known = replace(pinned(folder, "0" * 40), hub_namespace=None)
    hub.releases["tiny.safetensors"] = (folder / "model.safetensors").read_bytes()
    fetch_entry(known.entries["tiny"], known, Access(cache))
    assert all(path.startswith("/releases/") for _, path, _ in hub.requests)
