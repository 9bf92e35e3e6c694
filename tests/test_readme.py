"""What the README says of checkpoints, commands and examples is what the package does."""

import re
from pathlib import Path

from audiotag.checkpoints.manifest import manifest
from audiotag.cli import command as cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_checkpoints_is_the_manifests():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) M \| ([\d.?]+) \| ([\w. ]+) \| (about )?([\d.]+) MB \|$", README, re.M)
    assert {"dymn04_open", "dymn04_as", "dymn10_as", "dymn20_as", "mn04_as", "mn10_as"} <= {row[0] for row in rows}
    for name, parameters, gmacs, precision, about, megabytes in rows:
        entry = manifest().entries[name]
        assert float(parameters) == round(entry.parameters / 1e6, 2), name
        assert gmacs == ("?" if entry.gmacs is None else f"{entry.gmacs:g}"), name
        published = entry.mean_average_precision
        assert precision == ("not measured" if published is None else f"{published:g}"), name
        source = next(source for source in entry.sources if source.kind != "hub")
        size = 4 * entry.parameters if about else source.size
        assert abs(float(megabytes) - size / 1e6) <= (0.5 if size > 2e6 else 0.05), name


def test_commands_in_the_readme_exist():
    parser = cli.build_parser()
    typed = re.findall(r"^\$ (?:.* \| )?audiotag ([^#\n]+)", README, re.M)
    assert len(typed) > 5
    for line in typed:
        parser.parse_args(line.split())  # exits on an unknown command or option


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_what_the_readme_shows_is_what_comes_out(capsys):
    """Scores of the built-in checkpoint on the example, to 2e-3 for other processors' rounding."""
    shown = re.findall(r"^  (\S.*?) +(0\.\d{3})  \S+$", README, re.M)
    assert len(shown) == 5
    assert cli.main(["tag", str(ROOT / "examples" / "train_jet_saw.ogg"), "--top", "5", "--device", "cpu"]) == 0
    printed = re.findall(r"^  (\S.*?) +(0\.\d{3})  \S+$", capsys.readouterr().out, re.M)
    assert [name for name, _ in printed] == [name for name, _ in shown]
    assert all(abs(float(a) - float(b)) <= 2e-3 for (_, a), (_, b) in zip(printed, shown, strict=True))
