"""Install audiotag-dymn-lite into an empty virtual environment, use it as a newcomer would, and print its size.

    python packaging/check_lite.py

Needs pip's package index (or a mirror of it). Fails if torch is installed or imported, if the example is not tagged, or
if more than 170 MB were installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from build_lite import ROOT, build

MAX_MB = 170


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        venv.create(folder / "venv", with_pip=True)
        binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = str(binaries / "python")
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        before = size(site)
        run(python, "-m", "pip", "install", "-q", "--no-compile", str(wheel))
        installed = (size(site) - before) / 1e6
        command = str(binaries / "audiotag")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "AUDIOTAG_"))}
        offline = {**clean, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
        example = str(ROOT / "examples" / "train_jet_saw.ogg")
        print(run(command, "tag", example, env=offline, cwd=folder))
        print(run(command, "info", env=offline, cwd=folder))
        times = run(python, "-X", "importtime", "-m", "audiotag", "tag", example, env=offline, cwd=folder, stderr=True)
        assert "torch" not in times, "torch was imported"
        print(run(python, "-m", "pip", "list", "--format", "freeze"))
        print(f"installed: {installed:.0f} MB (at most {MAX_MB})")
        assert installed <= MAX_MB


def run(*command: str, stderr: bool = False, **options: object) -> str:
    """Run a command that must succeed; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stderr if stderr else done.stdout


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
