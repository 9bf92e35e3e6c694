"""What is built and installed holds the manifest: from a checkout, from an sdist, read from another folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="building a wheel needs setuptools")

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{0}(sys.argv[1]))"
READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
import audiotag
assert audiotag.__file__.startswith(sys.argv[1]), audiotag.__file__
from audiotag.checkpoints.manifest import manifest
from audiotag.checkpoints.fetch import package_path
print(json.dumps([manifest().to_json(), str(package_path(manifest().entries[manifest().default].sources[0]))]))
"""


def built(source, kind, out):
    out.mkdir()
    command = [sys.executable, "-c", BUILD.format(kind), str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def read_installed(wheel, folder):
    """Unpack a wheel, which is all that installing one of pure Python does, and read the manifest there."""
    shutil.unpack_archive(wheel, folder, "zip")
    command = [sys.executable, "-c", READ, str(folder)]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_manifest_survives_every_way_of_building(tmp_path):
    checkout = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "dist", ".*cache", "tests", "runs")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=unwanted)
    text = (ROOT / "weights_manifest.json").read_text()

    sdist = built(checkout, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "audiotag" / "weights_manifest.json").read_text() == text

    # A checkout without links, as git makes it on Windows: the root's file holds the path only.
    plain = tmp_path / "plain"
    shutil.copytree(checkout, plain, symlinks=True)
    (plain / "weights_manifest.json").unlink()
    (plain / "weights_manifest.json").write_text(os.readlink(ROOT / "weights_manifest.json"))

    for name, source in (("checkout", checkout), ("sdist", unpacked), ("plain", plain)):
        wheel = built(source, "wheel", tmp_path / f"wheel-{name}")
        assert wheel.name.endswith("-py3-none-any.whl")
        found, built_in = read_installed(wheel, tmp_path / f"site-{name}")
        assert found == text
        assert Path(built_in).is_file() == Path(ROOT / "audiotag" / "data" / Path(built_in).name).is_file()
