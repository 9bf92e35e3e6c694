"""What endings and first bytes say of a file; imports nothing, for commands ask it that decode nothing."""

from __future__ import annotations

# Endings that recordings, and videos with sound, have in folders. A file named explicitly is tried whatever its ending.
# fmt: off
AUDIO_EXTENSIONS = frozenset((
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".sph", ".voc", ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".aac", ".ac3", ".eac3", ".amr", ".ape", ".avi",
    ".dts", ".flv", ".mka", ".mkv", ".mp2", ".mpg", ".mpeg", ".3gp", ".spx", ".tta", ".ts", ".weba", ".webm", ".wma",
    ".wmv", ".wv",
))
# fmt: on


def better_with_ffmpeg(head: bytes) -> bool:
    """Tell from a file's first 32 bytes whether libsndfile reads it, but not as well as ffmpeg."""
    # MPEG audio: libsndfile guesses the length of a variable bit rate from its first frame, ends where the first of
    # several joined files ends, gives up sooner on damage, and prints. ALAC: it prints, even on standard output.
    mpeg = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return mpeg or head[28:32] == b"alac"
