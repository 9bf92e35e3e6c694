"""Every exception audiotag raises on purpose: one root, each also the built-in that fits."""

from .text import printable


class AudiotagError(Exception):
    """Root of all errors raised on purpose; catch this to catch them all.

    Their texts quote files, servers and configurations of strangers, so all are `printable`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidInputError(AudiotagError, ValueError):
    """An argument is of the wrong type, shape, range or name."""


class InvalidDataError(InvalidInputError):
    """Labelled data has faults; the message tells each of them on a line of its own, below how many there are."""

    def __str__(self) -> str:
        return "\n".join(map(printable, map(str, self.args)))


class AudioError(AudiotagError, RuntimeError):
    """An audio input could not be found, opened, decoded or used."""


class CheckpointError(AudiotagError, RuntimeError):
    """A checkpoint could not be found, is malformed, or does not fit its network."""


class DownloadError(CheckpointError):
    """A checkpoint could not be fetched or stored."""


class VerificationError(CheckpointError):
    """A file's size or digest differs from what is recorded for it; the file was not used."""


class MissingDependencyError(AudiotagError, ImportError):
    """An optional package is needed for this; the message names the extra that installs it."""


class OutputError(AudiotagError, RuntimeError):
    """An output could not be written."""
