"""What a service says of its checkpoint and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .limits import Limits

if TYPE_CHECKING:
    from ..tagger import Tagger


def models_of(tagger: Tagger, limits: Limits) -> dict[str, Any]:
    """Describe the checkpoint that is served, in the list form that OpenAI's clients read."""
    config = tagger.config
    frontend = config.frontend
    model = {
        "id": config.name,
        "object": "model",
        "owned_by": "audiotag",
        "architecture": config.network.architecture,
        "width": config.network.width,
        "n_labels": len(tagger.labels),
        "sample_rate_hz": frontend.sample_rate_hz,
        "window_s": config.window_s,
        "mels": frontend.n_mels,
        "fmin_hz": frontend.fmin_hz,
        "fmax_hz": frontend.fmax_hz,
        "frame_s": frontend.hop_samples / frontend.sample_rate_hz,
        "layers": tagger.layers,
        "device": tagger.device,
        "runtime": tagger.engine.runtime.name,
        "limits": {
            "max_seconds": limits.max_seconds,
            "max_bytes": limits.max_bytes,
            "max_channels": limits.max_channels,
            "max_rate_hz": limits.max_rate_hz,
            "max_frame_bytes": limits.max_frame_bytes,
        },
    }
    return {"object": "list", "data": [model]}


def labels_of(tagger: Tagger, words: str) -> list[dict[str, Any]]:
    """List labels whose names contain the words, as `audiotag labels --format json` does, with all that is above."""
    labels = tagger.labels
    return [labels.describe(label) for label in (labels.find(words) if words else labels)]
