"""Five hundred damaged files: each gives samples or an AudiotagError. ``tests/fuzz/run.py`` runs thousands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"


@pytest.mark.skipif(sys.platform != "linux", reason="the workers limit their memory as Linux counts it")
def test_five_hundred_damaged_files() -> None:
    command = [sys.executable, str(FUZZ / "run.py"), "--cases", "500", "--seed", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["samples"] > 50 and counts["samples, with warnings"] > 20 and counts["AudioError"] > 50
