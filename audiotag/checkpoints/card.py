"""The model card of a checkpoint: a README.md with the metadata the Hub reads and the facts a person wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import CheckpointConfig

UNKNOWN = "unknown"
PAPER_TITLES = {
    "arXiv 2310.15648": "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models",
    "arXiv 2211.04772": "Efficient Large-scale Audio Tagging via Transformer-to-CNN Knowledge Distillation",
}


def model_card(config: CheckpointConfig, card: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Write the text of a README.md.

    Parameters
    ----------
    card : mapping
        Facts as `audiotag.checkpoints.load.Checkpoint` has them; what is missing is said to be unknown.
    labels : sequence of str
        Names, in the order of the scores.
    """
    lines = ["---", metadata(config, card), "---", "", f"# {config.name}", ""]
    lines += [
        f"{card.get('description') or _architecture(config)}. For tagging and embedding audio with `audiotag`.",
        "",
    ]
    lines += ["```python", "from audiotag import Tagger", ""]
    lines += ['tagger = Tagger.from_pretrained("owner/name")  # this repository, or the path of a local copy']
    lines += ['tagger.predict("street.wav").top(5)', "```", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts(config, card).items()), ""]
    lines += [
        "## Files",
        "",
        "`model.safetensors` holds the weights and, in its header, the configuration; `config.json` repeats it.",
    ]
    lines += ["", f"## Labels ({len(labels)})", "", "In the order of the scores.", ""]
    lines += [f"{index}. {name}" for index, name in enumerate(labels)]
    return "\n".join(lines) + "\n"


def facts(config: CheckpointConfig, card: Mapping[str, Any]) -> dict[str, str]:
    """Collect what the card's table says, in its order."""
    frontend = config.frontend
    metric, parameters, gmacs = (_number(card, key) for key in ("mean_average_precision", "parameters", "gmacs"))
    paper = card.get("paper")
    return {
        "Network": _architecture(config),
        "Parameters": UNKNOWN if parameters is None else f"{parameters:,}",
        "Multiply-accumulates for 10 s": UNKNOWN if gmacs is None else f"{gmacs:g} G (published)",
        "Mean average precision on AudioSet's evaluation set": UNKNOWN
        if metric is None
        else f"{metric:.3f} ({card.get('metric_source') or 'source unknown'})",
        "Trained on": str(card.get("trained_on") or UNKNOWN),
        "Licence": str(card.get("licence") or UNKNOWN),
        "Paper": f"{PAPER_TITLES.get(paper, '')} {paper}".strip() if paper else UNKNOWN,
        "Original file": str(card.get("source") or "this one"),
        "Input": f"mono waveform at {frontend.sample_rate_hz:,} Hz, windows of {config.window_s:g} s",
        "Frontend": f"log-mel, {frontend.n_mels} bands from {frontend.fmin_hz:g} to {frontend.fmax_hz:g} Hz, a frame "
        f"every {1000 * frontend.hop_samples / frontend.sample_rate_hz:g} ms",
        "Output": f"{config.n_scores} scores in [0, 1]",
        **_own_facts(config, card),
    }


def _own_facts(config: CheckpointConfig, card: Mapping[str, Any]) -> dict[str, str]:
    """Return what a checkpoint of own labels says besides: how they were learnt, and how well."""
    told = card.get("own_labels")
    if config.head is None or not isinstance(told, Mapping):
        return {}
    figures, intervals = told.get("figures"), told.get("interval_95")
    parts = []
    for name, value in figures.items() if isinstance(figures, Mapping) else ():
        pair = intervals.get(name) if isinstance(intervals, Mapping) else None
        between = f" (95 %: {pair[0]:.1%} to {pair[1]:.1%})" if isinstance(pair, list) and len(pair) == 2 else ""
        parts.append(f"{name.replace('_', ' ')} {value:.1%}{between}")
    thresholds = [t for t in config.thresholds or () if t is not None]
    return {
        "Own labels": f"{len(config.head.labels)}, learnt from {told.get('clips', '?')} clips "
        f"({told.get('method', '?')}) on top of {card.get('base', '?')}; {config.head.activation} of a linear layer on "
        f"{', '.join(config.head.inputs)}",
        "Measured": f"{'; '.join(parts) or UNKNOWN} ({told.get('how', 'how is not known')})",
        "Thresholds": f"{len(thresholds)} stored, used by default" if thresholds else "none",
    }


def metadata(config: CheckpointConfig, card: Mapping[str, Any]) -> str:
    """Write the card's YAML, as the Hub defines it."""
    from huggingface_hub import EvalResult, ModelCardData

    metric = _number(card, "mean_average_precision")
    results = None
    if metric is not None:
        results = [
            EvalResult(
                task_type="audio-classification",
                dataset_type="audioset",
                dataset_name="AudioSet (evaluation set)",
                metric_type="mean_average_precision",
                metric_value=metric,
            )
        ]
    licence = card.get("licence")
    return ModelCardData(
        license=str(licence).lower().replace(" ", "-") if licence else None,
        library_name="audiotag",
        pipeline_tag="audio-classification",
        tags=["audio-tagging", "audio-embedding", "audioset", config.network.architecture],
        model_name=config.name,
        eval_results=results,
    ).to_yaml()


def _number(card: Mapping[str, Any], name: str) -> float | None:
    """Return a fact if it is a number: in a stranger's configuration it may be anything."""
    fact = card.get(name)
    return fact if isinstance(fact, (int, float)) and not isinstance(fact, bool) else None


def _architecture(config: CheckpointConfig) -> str:
    network = config.network
    return f"{'DyMN' if network.architecture == 'dymn' else 'MN'} of width {network.width:g}"
