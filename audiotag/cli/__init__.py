"""The command."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `audiotag.cli.command.main`."""
    from .command import main as run

    return run(argv)
