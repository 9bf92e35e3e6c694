"""The command outside runs over recordings: models, labels, info, completion, and how it fails."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiotag.checkpoints.manifest import manifest
from audiotag.cli import command as cli
from audiotag.labels.label_set import audioset_labels


def test_models_says_what_the_manifest_says(capsys):
    assert cli.main(["models", "--format", "json"]) == 0
    found = {facts["name"]: facts for facts in json.loads(capsys.readouterr().out)}
    assert set(found) == set(manifest().entries)
    assert found["dymn10_as"]["mean_average_precision"] == 0.477
    assert found["dymn10_as"]["parameters"] == 10_548_479
    assert found["dymn10_as"]["cached"] is None

    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("dymn10_as "))
    assert "10.55 M" in row and "~42 MB" in row and "0.477" in row and "0.58" in row and row.endswith("no")
    assert next(line for line in lines if line.startswith(manifest().default)).split()[1] == "*"


def test_labels_lists_and_searches(capsys):
    assert cli.main(["labels"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 527
    assert cli.main(["labels", "--format", "json", "TRAIN", "horn"]) == 0
    (horn,) = json.loads(capsys.readouterr().out)
    assert horn == {
        "index": 331,
        "mid": "/m/0284vy3",
        "name": "Train horn",
        "parents": ["Train"],
        "ancestors": ["Train", "Rail transport", "Vehicle", "Sounds of things"],
        "category": "Sounds of things",
    }
    assert horn["mid"] == audioset_labels()[331].mid
    assert cli.main(["labels", "xylophage"]) == 1
    assert "no label contains 'xylophage'" in capsys.readouterr().err


def test_info_names_versions_that_are_installed(capsys):
    import numpy
    import torch

    assert cli.main(["info", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    extras = set(config["options.extras_require"]) - {"test"}
    assert {f"extra [{extra}]" for extra in extras} == {name for name in facts if name.startswith("extra")}
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0] and facts["numpy"] == numpy.__version__
    assert cli.main(["info"]) == 0
    assert f"numpy  {numpy.__version__}" in " ".join(capsys.readouterr().out.split()).replace("numpy ", "numpy  ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands_and_their_options(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("tag", "events", "embed", "listen", "models", "threshold"))


def test_bash_can_read_its_completion(capsys, tmp_path):
    cli.main(["completion", "bash"])
    script = tmp_path / "audiotag.bash"
    script.write_text(capsys.readouterr().out)
    shown = subprocess.run(["bash", "-c", f". {script} && complete -p audiotag"], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.rstrip().endswith(" audiotag")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["tagg", "x.wav"], 2, "invalid choice: 'tagg'"),
        (["fetch", "dymn10_az"], 2, "did you mean dymn10_as"),
        (["convert", "no-such-file.pt", "out"], 1, "no-such-file.pt: no such file"),
    ],
)
def test_wrong_use_is_2_and_failure_1_with_what_to_do(capsys, argv, code, message):
    assert cli.main(argv) == code
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and shown.out == ""


def test_debug_shows_the_traceback():
    from audiotag import InvalidInputError

    with pytest.raises(InvalidInputError):
        cli.main(["--debug", "fetch", "dymn10_az"])


def test_a_reader_that_leaves_early_is_no_error():
    run = subprocess.run(
        f"'{sys.executable}' -m audiotag labels | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert run.stdout.splitlines()[-1] == "0" and run.stderr == ""


def test_an_interrupt_is_130(monkeypatch, capsys):
    from audiotag.cli import checkpoints as cli_models

    def interrupted(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_models, "run_labels", interrupted)
    assert cli.main(["labels"]) == 130
    assert "interrupted" in capsys.readouterr().err
