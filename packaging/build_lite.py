"""Build the distribution `audiotag-dymn-lite`: the same source as `audiotag-dymn`, without torch.

    python packaging/build_lite.py dist/

It stands to audiotag-dymn as opencv-python-headless stands to opencv-python: the same import name and command, other
requirements; install one of the two. What it requires is made of setup.cfg, so that the two cannot drift apart: torch
becomes an extra, so does PyAV, whose ffmpeg libraries are larger than everything else together (libsndfile reads wav,
flac, ogg, opus, mp3 and aiff without it), and onnxruntime takes torch's place.
"""

from __future__ import annotations

import argparse
import configparser
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "audiotag-dymn-lite"
EXTRA_OF = {"torch": "torch", "av": "media"}  # requirements that become extras of these names
RUNTIME = "onnxruntime"  # the extra that becomes a requirement
LEFT_OUT = ("train", "test", RUNTIME)  # extras
FILES = ("pyproject.toml", "README.md", "LICENSE", "weights_manifest.json")


def lite_setup(text: str) -> configparser.ConfigParser:
    """The lite distribution's setup.cfg, from the full one's text."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.optionxform = str  # type: ignore[method-assign,assignment]
    setup.read_string(text)
    options, extras = setup["options"], setup["options.extras_require"]
    for extra in [name for name in extras if name in LEFT_OUT and name != RUNTIME]:
        del extras[extra]
    required = _lines(options["install_requires"])
    kept = [line for line in required if _package(line) not in EXTRA_OF]
    for line in required:
        if _package(line) in EXTRA_OF:
            extras[EXTRA_OF[_package(line)]] = "\n" + line
    options["install_requires"] = "\n" + "\n".join([*kept, *_lines(extras.pop(RUNTIME))])
    setup["metadata"]["name"] = NAME
    setup["metadata"]["description"] += ", without torch"
    return setup


def _lines(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines() if line.strip() and not line.strip().startswith("#")]


def _package(requirement: str) -> str:
    return requirement.replace(">", " ").replace("=", " ").replace("[", " ").split()[0]


def build(out: Path, *, isolated: bool = True) -> Path:
    """Build the wheel into a folder; returns its path."""
    out = out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(ROOT / "audiotag", source / "audiotag", ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy2(ROOT / name, source)
        with open(source / "setup.cfg", "w", encoding="utf-8") as file:
            lite_setup((ROOT / "setup.cfg").read_text(encoding="utf-8")).write(file)
        made = Path(folder) / "made"
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(made), str(source)]
        subprocess.run([*command, *([] if isolated else ["--no-build-isolation"])], check=True, stdout=sys.stderr)
        (wheel,) = made.iterdir()
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(wheel, out))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the wheel of audiotag-dymn-lite.")
    parser.add_argument("folder", type=Path, help="where the wheel goes")
    parser.add_argument(
        "--no-build-isolation", action="store_true", help="use the setuptools that is installed instead of fetching one"
    )
    args = parser.parse_args()
    print(build(args.folder, isolated=not args.no_build_isolation))


if __name__ == "__main__":
    main()
