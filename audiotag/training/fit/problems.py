"""What is wrong with labelled data: collected, and told all at once, each with its place and a remedy."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import InvalidDataError

ALIKE = 12  # problems with the same remedy that are told one by one


@dataclass(frozen=True)
class Problem:
    """One fault: where it is (a file, with ``:line`` in a table), what it is, what to do."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass
class Problems:
    """Faults that stop a fit, and others that are only told."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, where: str, what: str, remedy: str) -> None:
        self.errors.append(Problem(where, what, remedy))

    def warn(self, where: str, what: str, remedy: str) -> None:
        self.warnings.append(Problem(where, what, remedy))

    def stop(self) -> None:
        """Raise if there are errors.

        Raises
        ------
        InvalidDataError
            Its message has every error, one a line; of many that ask for the same remedy, the first `ALIKE`.
        """
        if not self.errors:
            return
        alike: dict[str, list[Problem]] = {}
        for problem in self.errors:
            alike.setdefault(problem.remedy, []).append(problem)
        lines = []
        for problems in alike.values():
            lines += [f"  {problem}" for problem in problems[:ALIKE]]
            if len(problems) > ALIKE:
                lines.append(f"  ... and {len(problems) - ALIKE:,} more like this one")
        count = len(self.errors)
        raise InvalidDataError(f"{count:,} problem{'s' if count != 1 else ''} with the data, nothing was done:", *lines)
