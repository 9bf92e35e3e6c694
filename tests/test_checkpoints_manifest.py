"""The manifest: its facts against independent computations, its form, and what a broken one gets."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiotag.checkpoints.access import Access
from audiotag.checkpoints.digests import digests
from audiotag.checkpoints.fetch import package_path, status
from audiotag.checkpoints.load import load_checkpoint
from audiotag.checkpoints.manifest import Source, manifest, manifest_path, parse
from audiotag.config import FrontendConfig, NetworkConfig
from audiotag.errors import CheckpointError, InvalidInputError
from audiotag.networks.build import build_network

ENTRIES = manifest().entries
ROOT = Path(__file__).parents[1]

# The list of names, each with the published figures it must carry (parameters in millions, mAP; null: none).
PUBLISHED = {
    "dymn04_as": (1.97, 0.450),
    "dymn10_as": (10.57, 0.477),
    "dymn20_as": (40.02, 0.493),
    "dymn04_replace_se_as": (None, None),
    "dymn10_replace_se_as": (None, None),
    "mn01_as": (0.123783, 0.298),
    "mn02_as": (0.324695, 0.378),
    "mn04_as": (0.983, 0.432),
    "mn05_as": (1.43, 0.443),
    "mn10_as": (4.88, 0.471),
    "mn20_as": (17.91, 0.478),
    "mn30_as": (39.09, 0.482),
    "mn40_as": (68.43, 0.484),
    "mn40_as_ext": (68.43, 0.487),
    "mn40_as_no_im_pre": (68.43, 0.483),
    "mn10_as_hop_5": (4.88, 0.475),
    "mn10_as_hop_15": (4.88, 0.463),
    "mn10_as_hop_20": (4.88, 0.456),
    "mn10_as_hop_25": (4.88, 0.447),
    "mn10_as_mels_40": (4.88, 0.453),
    "mn10_as_mels_64": (4.88, 0.461),
    "mn10_as_mels_256": (4.88, 0.474),
    "mn10_as_fc": (None, 0.465),
    "mn10_as_fc_s2221": (None, 0.466),
    "mn10_as_fc_s2211": (None, 0.466),
}


def test_every_published_checkpoint_is_there():
    assert set(ENTRIES) == {*PUBLISHED, "dymn04_open"}
    assert manifest().default == "dymn04_open"


@pytest.mark.parametrize("name", ENTRIES)
def test_parameters_are_those_of_the_network(name):
    entry = ENTRIES[name]
    with torch.device("meta"):
        network = build_network(entry.config.network)
    assert entry.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    entry = ENTRIES[name]
    millions, metric = PUBLISHED[name]
    assert entry.mean_average_precision == metric
    assert (entry.metric_source is None) == (metric is None)
    if millions is not None:
        assert entry.parameters / 1e6 == pytest.approx(millions, rel=5e-3)  # the paper's own rounding, to 0.3 %


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_release_files_say_what_the_configuration_says(name):
    entry = ENTRIES[name]
    network, frontend = entry.config.network, entry.config.frontend
    (release,) = (source for source in entry.sources if source.kind == "release")
    assert release.file.startswith(name) and release.file.endswith(".pt")
    if told := re.search(r"_mAP_(\d{3})", release.file):
        assert int(told[1]) / 1000 == entry.mean_average_precision
    architecture, width = re.match(r"(dymn|mn)(\d\d)_", name).groups()
    assert (network.architecture, network.width) == (architecture, int(width) / 10)
    hop, mels = re.search(r"_hop_(\d+)", name), re.search(r"_mels_(\d+)", name)
    assert frontend.hop_samples == (int(hop[1]) * 32 if hop else FrontendConfig().hop_samples)
    assert frontend.n_mels == (int(mels[1]) if mels else FrontendConfig().n_mels)
    assert (network.head == "fully_convolutional") == ("_fc" in name)
    strides = re.search(r"_s(\d{4})", name)
    assert network.strides == (tuple(map(int, strides[1])) if strides else NetworkConfig().strides)
    assert (network.dynamic_blocks == "replace_se") == ("replace_se" in name)
    assert network.temperature == 1


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_has_facts_and_a_source(name):
    entry = ENTRIES[name]
    assert entry.licence and entry.description and entry.trained_on
    assert manifest().usable_sources(entry)
    assert not any(source.kind == "hub" for source in manifest().usable_sources(entry)) or manifest().hub_namespace


def test_known_digests(shared_dir):
    """The one release file at hand, and the figures of the others as the reference data give them."""
    file = shared_dir / "reference" / "mn04_as_mAP_432.pt"
    (release,) = (source for source in ENTRIES["mn04_as"].sources if source.kind == "release")
    found = digests(file)
    assert (release.size, release.sha256) == (found.size, found.sha256)
    text = (shared_dir / "reference" / "README.md").read_text()
    for entry in ENTRIES.values():
        for source in entry.sources:
            if source.kind == "release":
                assert source.file in text
                assert all(digest in text for digest in (source.sha256, source.git_blob_sha1) if digest)


def test_built_in_checkpoint_is_as_recorded():
    source = next(s for s in ENTRIES["dymn04_open"].sources if s.kind == "package")
    path = package_path(source)
    assert path.is_file(), "no built-in checkpoint; 'python -m audiotag.checkpoints.publish package FILE' adds it"
    found = digests(path)
    assert (source.size, source.sha256) == (found.size, found.sha256)


def test_built_in_checkpoint_has_thresholds_and_a_card_that_names_its_bytes():
    entry = ENTRIES["dymn04_open"]
    config = load_checkpoint("dymn04_open").config
    assert replace(config, thresholds=None, threshold_support=None) == entry.config
    known = [(t, n) for t, n in zip(config.thresholds, config.threshold_support, strict=True) if t is not None]
    assert len(known) >= 30 and all(0 < t < 1 and n >= 5 for t, n in known)
    source = next(s for s in entry.sources if s.kind == "package")
    card = package_path(source).with_suffix(".md").read_text(encoding="utf-8")
    assert source.sha256 in card and f"{source.size:,} bytes" in card and f"each of {len(known)} labels" in card


def test_git_blob_and_sha256_are_gits_and_sha256sums(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"what is up, doc?")
    # Pro Git, chapter 10.2, "Object Storage": the id of this very content.
    assert digests(file).git_blob_sha1 == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    file.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert digests(file).sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests(file).size == 3


def test_root_and_package_share_one_file():
    at_root, inside = ROOT / "weights_manifest.json", ROOT / "audiotag" / "weights_manifest.json"
    assert at_root.read_text() == inside.read_text()
    assert not inside.is_symlink()  # wheels and sdists hold the package's file
    assert at_root.is_symlink() or not (ROOT / ".git").exists()  # an sdist has a copy in the link's place


def test_text_and_entries_are_one_to_one():
    known = manifest()
    assert parse(known.to_json()) == known
    assert known.to_json() == manifest_path().read_text()


def broken(change):
    plain = json.loads(manifest().to_json())
    change(plain)
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "Expecting value"),
        ("[]", "indices must be"),
        (broken(lambda m: m.update(format_version=2)), "format_version must be 1"),
        (broken(lambda m: m.pop("checkpoints")), "checkpoints"),
        (broken(lambda m: m.update(default="x")), "default 'x'"),
        (broken(lambda m: m["checkpoints"]["mn04_as"].update(speed=1)), "'mn04_as'.*Entry has no 'speed'; it has name"),
        (broken(lambda m: m["checkpoints"]["mn04_as"].pop("licence")), "'mn04_as'.*licence"),
        (
            broken(lambda m: m["checkpoints"]["mn04_as"]["network"].update(width=-1)),
            "'mn04_as'.*width must be a positive number up to 8, got -1",
        ),
        (broken(lambda m: m["checkpoints"]["mn04_as"]["sources"][1].update(size="3")), "'mn04_as'.*size must be"),
        (
            broken(lambda m: m["checkpoints"]["mn04_as"]["sources"][1].update(sha256="ab")),
            "'mn04_as'.*sha256 must be 64",
        ),
        (broken(lambda m: m["checkpoints"]["mn04_as"]["sources"][1].update(file="../x")), "'mn04_as'.*without '..'"),
        (broken(lambda m: m["checkpoints"]["mn04_as"]["sources"].pop(1)), "'mn04_as' has no source"),
    ],
)
def test_broken_manifest_says_where(text, named):
    with pytest.raises(CheckpointError, match=named):
        parse(text, "some.json")


def test_unknown_name_gets_near_ones():
    with pytest.raises(InvalidInputError, match=r"'dymn-10-as'; did you mean dymn10_as.*audiotag models"):
        manifest().entry("dymn-10-as")
    assert manifest().near_names("MN10_AS")[0] == "mn10_as"
    with pytest.raises(InvalidInputError, match="no checkpoint is called 'zzz'; 'audiotag models'"):
        manifest().entry("zzz")


def test_status_says_where_from_and_whether_here(hub, cache):
    facts = status("mn04_as", Access(cache))
    assert facts["size"] == 4_066_513 and facts["from"] == "authors' release" and facts["cached"] is None
    assert facts["verifiable"] and not status("dymn20_as", Access(cache))["verifiable"]
    (cache / "audiotag").mkdir()
    (cache / "audiotag" / "mn04_as_mAP_432.pt").write_bytes(b"x")
    assert status("mn04_as", Access(cache))["cached"] == str(cache / "audiotag" / "mn04_as_mAP_432.pt")
    assert hub.requests == []


def test_sources_refuse_nonsense():
    with pytest.raises(InvalidInputError, match="kind must be one of package, hub, release"):
        Source("ftp", "x")
    assert not Source("release", "x").verifiable and Source("release", "x", git_blob_sha1="0" * 40).verifiable


def test_listing_needs_no_torch():
    code = (
        "import sys\nfrom audiotag.checkpoints.manifest import manifest\n"
        "from audiotag.checkpoints.fetch import status\n"
        "[status(n) for n in manifest().entries]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
