"""The report as one HTML page that opens offline: figures, tables, pictures, and clips to listen to, all inside it."""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ...text import printable
from .outcome import Doubt, Outcome
from .pictures import DENSITY

PLAYED_S = 5.0
PLAYED_RATE_HZ = 22_050
TITLES = {
    "accuracy": ("Accuracy", "clips whose best label is the right one"),
    "mean_average_precision": (
        "Mean average precision",
        "how well each label's clips are ranked first, mean over labels",
    ),
    "macro_f1": ("F1 at the thresholds", "mean over labels"),
}

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1c232b; --soft: #5d6b7a; --line: #dde3ea;
  --accent: #2257c5; --good: #1d7f4e; --bad: #b3342b; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161b; --card: #1b2128; --ink: #e6ebf0; --soft: #9aa7b4;
  --line: #313a44; --accent: #8ab0ff; --good: #6fd3a0; --bad: #ff9a8f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 0 0 12px; }
p { margin: 4px 0 12px; } .soft { color: var(--soft); } small { font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px;
  margin-top: 18px; }
.heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; margin-top: 18px; }
.head { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.head b { display: block; font-size: 1.9rem;
  line-height: 1.2; color: var(--accent); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
.pictures { display: flex; flex-wrap: wrap; justify-content: center; gap: 10px; }
.pictures img { max-width: 100%; height: auto; border-radius: 8px; }
@media (prefers-color-scheme: dark) { .pictures img { filter: invert(.89) hue-rotate(180deg); } }
ol.clips { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
ol.clips li { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
ol.clips audio { width: 100%; height: 36px; margin-top: 6px; } .file { overflow-wrap: anywhere; color: var(--soft); }
.given { color: var(--good); } .said { color: var(--bad); } ul { margin: 0; padding-left: 20px; }
li { overflow-wrap: anywhere; }
"""
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentElement, body = th.closest("table").tBodies[0];
  const down = th.getAttribute("aria-sort") !== "descending", at = th.cellIndex;
  for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
  const less = (a, b) => { const x = parseFloat(value(a)), y = parseFloat(value(b));
    return isNaN(x) || isNaN(y) ? (isNaN(x) - isNaN(y)) || value(a).localeCompare(value(b)) : x - y; };
  const rows = [...body.rows].sort((a, b) => down ? -less(a, b) : less(a, b));
  body.append(...rows);
};
"""


def report_page(outcome: Outcome, pictures: Mapping[str, bytes], sounds: Mapping[int, str]) -> str:
    """The whole page, which loads nothing; `sounds` are those of `page_sounds`."""
    metrics, name = outcome.metrics, outcome.metrics["checkpoint"]
    mistakes, suspects = outcome.mistakes, outcome.suspects
    parts = [
        f"<h1>{_text(name)}</h1>",
        f"<p class=soft>{_text(_what(outcome))}</p>",
        _headlines(outcome.main),
        _section("How these figures were made", _how(outcome)),
    ]
    if outcome.folds is not None and metrics["test"] is not None:
        parts.append(_section("On the test split", _headlines(metrics["test"])))
    parts.append(_section("Each label", _class_table(outcome)))
    if outcome.main["false_alarms"]:
        parts.append(_section("False alarms", _false_alarms(outcome.main["false_alarms"])))
    parts.append(_section("Pictures", _pictures(pictures)))
    none = "No other clip was judged wrongly." if suspects else "No clip was judged wrongly."
    told = "<p class=soft>Without the clips whose own label may be wrong: they come next.</p>" if suspects else ""
    parts.append(_section("Worst mistakes", told + _doubts(outcome, mistakes, sounds, "said", none)))
    told = "<p class=soft>Clips that look like another label than the one they carry. Listen, and correct the data.</p>"
    parts.append(
        _section(
            "Labels that may be wrong", told + _doubts(outcome, suspects, sounds, "looks like", "None is suspected.")
        )
    )
    if metrics["data"]["warnings"]:
        items = "".join(f"<li>{_text(line)}</li>" for line in metrics["data"]["warnings"])
        parts.append(_section("What was noticed in the data", f"<ul>{items}</ul>"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)}: report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _text(value: Any) -> str:
    return escape(printable(str(value)))


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n"


def _what(outcome: Outcome) -> str:
    data, details = outcome.metrics["data"], outcome.metrics["details"]
    made = {"probe": "A probe", "finetune": "A fine-tuned network", "evaluate": "An evaluation"}[outcome.method]
    base = f" on {details['base']}" if details.get("base") else ""
    task = "one label a clip" if outcome.dataset.task == "single" else "any number of labels a clip"
    return f"{made}{base}: {data['clips']:,} clips, {len(outcome.dataset.labels)} labels, {task}."


def _headlines(figures: Mapping[str, Any]) -> str:
    cards = []
    for key, (title, about) in TITLES.items():
        if figures.get(key) is None:
            continue
        interval = figures["interval_95"].get(key)
        between = f"<small class=soft>95 %: {interval[0]:.1%} to {interval[1]:.1%}</small>" if interval else ""
        cards.append(
            f"<div class=head>{title}<b>{figures[key]:.1%}</b>{between}<br><small class=soft>{about}</small></div>"
        )
    if figures.get("calibration_error") is not None:
        cards.append(
            f"<div class=head>Calibration error<b>{figures['calibration_error']:.1%}</b>"
            "<small class=soft>mean distance of score and frequency</small></div>"
        )
    return f"<div class=heads>{''.join(cards)}</div>\n"


def _how(outcome: Outcome) -> str:
    metrics, main = outcome.metrics, outcome.main
    lines = []
    if outcome.folds is None:
        lines.append(f"{main['clips']:,} clips, scored by the checkpoint as it is, at its thresholds.")
    else:
        lines.append(
            f"Out-of-fold: {main['clips']:,} clips in {len(outcome.folds)} "
            f"{'given ' if outcome.folds.given else ''}folds, each scored by a model that saw none of its fold. "
            "No recording, no copy of its bytes and no group is on both sides. Settings, calibration and thresholds of "
            "a fold's model were chosen without the fold, too. The checkpoint itself was then fitted on all of them."
        )
        if main["clips"] < metrics["data"]["clips"] - (metrics["test"] or {"clips": 0})["clips"]:
            lines.append(
                "Not all folds were evaluated, for lack of time: the figures are of the clips of those that were."
            )
    lines.append(f"Intervals: bootstrap over {main['groups']:,} groups of recordings.")
    details = {k: v for k, v in metrics["details"].items() if k not in ("chosen_by_fold", "curve") and v is not None}
    told = "; ".join(
        f"{k.replace('_', ' ')}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in details.items()
    )
    return "".join(f"<p>{_text(line)}</p>" for line in lines) + (
        f"<p class=soft><small>{_text(told)}</small></p>" if told else ""
    )


def _class_table(outcome: Outcome) -> str:
    header, *rows = outcome.class_table
    shown = ["label", "positives", "average_precision", "precision", "recall", "f1", "false_alarms", "threshold"]
    at = [header.index(name) for name in shown]
    heads = "".join(f"<th scope=col><button>{escape(name.replace('_', ' '))}</button></th>" for name in shown)
    body = "".join("<tr>" + "".join(_cell(row[i], header[i]) for i in at) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any, column: str) -> str:
    if column == "label":
        return f"<td>{_text(value)}</td>"
    if value == "" or value is None:
        return "<td class=soft>-</td>"
    return f"<td data-v={value}>{value:.3f}</td>" if isinstance(value, float) else f"<td data-v={value}>{value:,}</td>"


def _false_alarms(told: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{rate:,.1f}</td></tr>"
        for name, rate in sorted(told["by_label"].items(), key=lambda pair: -pair[1])
    )
    heads = "<thead><tr><th>label</th><th>per hour</th></tr></thead>"
    table = f"<div class=scroll><table>{heads}<tbody>{rows}</tbody></table></div>"
    return (
        f"<p><b>{told['per_hour']:,.1f} per hour</b> on {told['clips']:,} clips without any label, "
        f"{told['hours'] * 60:,.1f} minutes in all; {told['clips_with_any']:,} of them got some label.</p>"
        + (table if rows else "")
    )


def _pictures(pictures: Mapping[str, bytes]) -> str:
    about = {
        "confusion.png": "Table of what was said of clips with each label",
        "precision_recall.png": "Curves of precision against recall",
        "reliability.png": "Share of right answers against score",
    }
    images = []
    for name, content in pictures.items():
        data = base64.b64encode(content).decode()
        width, height = (n // DENSITY for n in struct.unpack(">II", content[16:24]))  # as the PNG's header has them
        size = f"width={width} height={height}"
        images.append(f'<img alt="{about[name]}" {size} src="data:image/png;base64,{data}">')
    return f"<div class=pictures>{''.join(images)}</div>"


def _doubts(outcome: Outcome, doubts: Sequence[Doubt], sounds: Mapping[int, str], verb: str, none: str) -> str:
    if not doubts:
        return f"<p>{none}</p>"
    items = []
    for doubt in doubts:
        clip = outcome.dataset.clips[doubt.clip]
        sound = sounds.get(doubt.clip)
        player = f'<audio controls preload=none src="{sound}"></audio>' if sound else "<small>cannot be played</small>"
        items.append(
            f"<li><span class=given>given {_text(doubt.given)}</span> {doubt.given_score:.2f}, "
            f"<span class=said>{verb} {_text(doubt.said)}</span> {doubt.said_score:.2f}"
            f"<br><small class=file>{_text(outcome.dataset.shown(clip))}</small>{player}</li>"
        )
    return f"<ol class=clips>{''.join(items)}</ol>"


def page_sounds(outcome: Outcome) -> dict[int, str]:
    """The first seconds of the clips to listen to, as data URLs: FLAC, which browsers play and is quickly written."""
    import soundfile

    from ...errors import AudiotagError
    from .features import excerpts

    clips = [doubt.clip for doubt in (*outcome.mistakes, *outcome.suspects)]
    found = {}
    for i in dict.fromkeys(clips):
        clip = outcome.dataset.clips[i]
        start = clip.onset_s or 0.0
        length = PLAYED_S if math.isnan(clip.duration_s) else min(PLAYED_S, max(clip.duration_s, 0.05))
        file = io.BytesIO()
        try:
            samples = next(iter(excerpts(clip.path, [(start, start + length)], PLAYED_RATE_HZ)))
            if not len(samples):
                continue
            samples = samples / max(1.0, float(np.abs(samples).max()))
            soundfile.write(file, samples, PLAYED_RATE_HZ, format="FLAC", subtype="PCM_16")
        except (AudiotagError, OSError, RuntimeError, StopIteration):
            continue
        found[i] = f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
    return found
