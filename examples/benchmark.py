"""How fast audiotag is on this machine, against the networks as the papers write them and against rivals.

    python examples/benchmark.py                    # all networks, a few minutes
    python examples/benchmark.py --quick            # under a minute
    python examples/benchmark.py --device cuda      # throughput of dymn10 on a GPU
    python examples/benchmark.py --runtimes         # every runtime, and whole commands; --networks dymn04 for one
    python examples/benchmark.py --json results.json

Weights are random (speed does not depend on them) unless checkpoints are named. "Textbook" is the readable network run
eagerly, with the filterbank rebuilt for every call as the published code does. The forms take turns in one process;
reported are medians, with the 10th and 90th percentile. Runtimes keep threads of their own that wait busily for each
other, so with --runtimes every form has processes of its own, and those take turns. Rivals are measured where they
import; nothing is installed or downloaded for them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

import audiotag
from audiotag.checkpoints.load import Checkpoint, build, load_checkpoint
from audiotag.config import CheckpointConfig, FrontendConfig, NetworkConfig
from audiotag.frontend.logmel import LogMel
from audiotag.frontend.mel import LOG_FLOOR, LOG_SCALE, LOG_SHIFT, PREEMPHASIS, mel_filterbank
from audiotag.inference.runtime import open_runtime
from audiotag.networks.build import build_network
from audiotag.runtimes.fused import fuse

NETWORKS = {
    "dymn10": ("dymn", 1.0),
    "dymn04": ("dymn", 0.4),
    "dymn20": ("dymn", 2.0),
    "mn04": ("mn", 0.4),
    "mn10": ("mn", 1.0),
}
DYMN10_PRODUCTS = 580_000_000  # multiply-adds for 10 s (arXiv 2310.15648, table I)
GOALS = {  # (must, aim), times faster than textbook
    "dymn10": (3, 5),
    "dymn10, 16 clips": (3, 5),
    "dymn04": (3, 5),
    "dymn20": (2, 3.5),
    "mn04": (2, 4),
    "mn10": (2, 4),
    "frontend": (3, 5),
    "dymn10, efficiency": (0.35, 0.55),
}


def textbook_frontend(waveform: torch.Tensor, config: FrontendConfig) -> torch.Tensor:
    """The formulas step by step, in the published order; (B, samples) to (B, 1, mels, frames).

    Pre-emphasis as a convolution, real and imaginary parts squared and summed along the last axis, filterbank rebuilt
    and dense.
    """
    emphasis = torch.tensor([[[-PREEMPHASIS, 1.0]]], device=waveform.device)
    x = torch.nn.functional.conv1d(waveform[:, None], emphasis)[:, 0]
    window = torch.hann_window(config.window_samples, periodic=False, device=x.device)
    spectrum = torch.stft(x, config.n_fft, config.hop_samples, config.window_samples, window, return_complex=True)
    power = (torch.view_as_real(spectrum) ** 2).sum(-1)
    mel = torch.from_numpy(mel_filterbank(config)).to(x.device) @ power
    return (((mel + LOG_FLOOR).log() + LOG_SHIFT) / LOG_SCALE)[:, None]


def random_checkpoint(name: str) -> tuple[CheckpointConfig, nn.Module]:
    """A network with random weights, its batch norms calibrated: untouched ones would let signals die out into
    denormal numbers, which are slow."""
    architecture, width = NETWORKS[name]
    config = NetworkConfig(architecture, width)
    torch.manual_seed(0)
    network = build_network(config)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    network.train()(LogMel()(0.1 * torch.randn(2, 160_000)))
    return CheckpointConfig(name, config), network.eval().requires_grad_(False)


def named_checkpoint(name: str) -> tuple[CheckpointConfig, nn.Module]:
    checkpoint = load_checkpoint(name)
    return checkpoint.config, build(checkpoint)


def measure(forms: dict, *, repeats: int, device: str) -> dict:
    """Milliseconds of each form, taking turns after one warm-up each: median, 10th and 90th percentile."""
    times: dict = {name: [] for name in forms}
    for turn in range(repeats + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn > 1:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: summary(values) for name, values in times.items()}


def summary(values: list) -> dict:
    ordered = sorted(values)
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.1, 0.9))
    return {"median_ms": statistics.median(ordered), "p10_ms": low, "p90_ms": high, "repeats": len(ordered)}


def row(name: str, result: dict, clips: int = 1) -> dict:
    """A line of the table from the measured forms "textbook" and "audiotag"."""
    ratio = result["textbook"]["median_ms"] / result["audiotag"]["median_ms"]
    return {"what": name, "clips": clips, **result, "ratio": ratio, "goal": GOALS.get(name)}


def against_textbook(name: str, checkpoint, batch: int, repeats: int, device: str, dtype=None) -> dict:
    """Waveform to scores: the two forms, and the largest difference of their scores."""
    config, network = checkpoint
    network = network.to(device)
    frontend, fused = LogMel(config.frontend).to(device), fuse(network, dtype=dtype)
    clips = (0.1 * torch.randn(batch, config.window_samples, generator=torch.Generator().manual_seed(1))).to(device)

    def textbook():
        return network(textbook_frontend(clips, config.frontend)).logits.sigmoid()

    def ours():
        return fused(frontend(clips)).logits.sigmoid()

    with torch.inference_mode():
        line = row(name, measure({"textbook": textbook, "audiotag": ours}, repeats=repeats, device=device), batch)
        line["score_difference"] = float((textbook() - ours()).abs().max())
    return line


def efficiency(checkpoint, repeats: int) -> dict:
    """dymn10's network alone against a float32 matrix product with the same multiply-adds."""
    config, network = checkpoint
    fused, x = fuse(network), LogMel(config.frontend)(0.1 * torch.randn(1, config.window_samples))
    a, b = torch.randn(1024, 1024), torch.randn(1024, round(DYMN10_PRODUCTS / 1024**2))
    with torch.inference_mode():
        result = measure({"matrix product": lambda: a @ b, "audiotag": lambda: fused(x)}, repeats=repeats, device="cpu")
    ratio = result["matrix product"]["median_ms"] / result["audiotag"]["median_ms"]
    rate = a.shape[0] * b.numel() / result["matrix product"]["median_ms"] / 1e6
    return {
        "what": "dymn10, efficiency",
        "clips": 1,
        **result,
        "ratio": ratio,
        "goal": GOALS["dymn10, efficiency"],
        "matrix_product_gmacs_per_s": rate,
    }


def frontend_row(repeats: int) -> dict:
    config, frontend, clip = FrontendConfig(), LogMel(), 0.1 * torch.randn(1, 320_000)
    forms = {"textbook": lambda: textbook_frontend(clip, config), "audiotag": lambda: frontend(clip)}
    return row("frontend", measure(forms, repeats=repeats, device="cpu"))


def rivals(checkpoint, repeats: int) -> list[dict]:
    """Whatever of onnxruntime, OpenVINO, PANNs and AST imports here, each on one 10 s clip."""
    config, network = checkpoint
    x = LogMel(config.frontend)(0.1 * torch.randn(1, config.window_samples))
    waveform = 0.1 * torch.randn(1, config.window_samples).numpy()
    found = []

    class Logits(nn.Module):  # exporters want tensors out
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).logits

    logits = Logits().eval()

    def openvino():
        import openvino

        model = openvino.convert_model(logits, example_input=x, input=[x.shape])
        compiled = openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        return lambda: compiled([x.numpy()])

    def onnxruntime():
        import io

        import onnxruntime

        file = io.BytesIO()
        torch.onnx.export(logits, (x,), file, dynamo=False, opset_version=17, input_names=["x"])
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x.numpy()})

    def panns_inference():
        from panns_inference.models import Cnn14

        model = Cnn14(32000, 1024, 320, 64, 50, 14000, 527).eval()
        return lambda: model(torch.from_numpy(waveform))

    def transformers():
        from transformers import ASTConfig, ASTForAudioClassification

        model = ASTForAudioClassification(ASTConfig(num_labels=527)).eval()
        spectrogram = torch.randn(1, 1024, 128)
        return lambda: model(spectrogram)

    labels = {
        openvino: "OpenVINO, dymn10 network",
        onnxruntime: "onnxruntime, dymn10 network",
        panns_inference: "PANNs CNN14, waveform",
        transformers: "AST, log-mel",
    }
    for make, label in labels.items():
        if find_spec(make.__name__) is None:
            continue
        try:
            with torch.no_grad():
                result = measure({"rival": make()}, repeats=max(3, repeats // 3), device="cpu")
        except Exception as error:  # a rival that cannot be run says nothing about audiotag
            print(f"{label}: not measured ({type(error).__name__}: {str(error).strip()[:200]!r})", file=sys.stderr)
            continue
        found.append(
            {"what": label, "clips": 1, **result, "version": metadata.version(make.__name__.replace("_", "-"))}
        )
    return found


RUNTIME_GOALS = {  # times faster than textbook, the best runtime: one window, 16 windows
    "dymn04": (5, 5),
    "dymn10": (4, 6),
    "dymn20": (3, 5),
    "mn04": (5, 5),
    "mn10": (5, 5),
}
FORMS = ("textbook", "torch", "openvino", "onnxruntime")
ROUNDS = 3


def one_form(form: str, name: str, repeats: int) -> dict:
    """Waveform to scores by one form in this process: milliseconds a window of 1 and of 16 windows, median."""
    config, network = random_checkpoint(name)
    if form == "textbook":

        def scores(clips):
            return network(textbook_frontend(torch.from_numpy(clips), config.frontend)).logits.sigmoid().numpy()

    else:
        state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
        runtime = open_runtime(Checkpoint(config, state, "benchmark"), runtime=form, device="cpu")

        def scores(clips):
            return runtime.run(runtime.log_mel(clips), ("scores",))["scores"]

    clips = (0.1 * torch.randn(16, config.window_samples, generator=torch.Generator().manual_seed(1))).numpy()
    found = {}
    for batch in (1, 16):
        result = measure({form: lambda n=batch: scores(clips[:n])}, repeats=max(3, repeats // batch), device="cpu")[
            form
        ]
        found[str(batch)] = result["median_ms"] / batch
    return found | {"scores": scores(clips[:1])[0, ::50].tolist()}


def runtimes_rows(name: str, repeats: int) -> list[dict]:
    """Every form of a network, in processes that take turns: the medians over the rounds."""
    found: dict = {form: [] for form in FORMS if form in ("textbook", "torch") or find_spec(form)}
    for _ in range(ROUNDS):
        for form, results in found.items():
            command = [sys.executable, __file__, "--one-form", form, "--networks", name, "--repeats", str(repeats)]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = []
    for i, batch in enumerate(("1", "16")):
        times = {form: statistics.median(one[batch] for one in results) for form, results in found.items()}
        best = min((form for form in times if form != "textbook"), key=times.__getitem__)
        rows.append(
            {
                "what": f"{name}, waveform, {batch} window{'s' if i else ''}",
                "ms_per_window": times,
                "best": best,
                "ratio": times["textbook"] / times[best],
                "runtime_goal": RUNTIME_GOALS[name][i],
            }
        )
    reference = found["textbook"][0]["scores"]
    rows[0]["score_difference"] = max(
        abs(a - b) for results in found.values() for a, b in zip(results[0]["scores"], reference, strict=True)
    )
    return rows


def command_rows(rounds: int = 7) -> list[dict]:
    """``audiotag tag`` of one 10 s file with the built-in checkpoint, whole processes that take turns: time, memory."""
    found: dict = {form: [] for form in FORMS[1:] if form == "torch" or find_spec(form)}
    with tempfile.TemporaryDirectory() as folder:
        wav = f"{folder}/noise.wav"
        t = np.arange(320_000) / 32_000
        soundfile.write(wav, 0.2 * np.sin(2 * np.pi * 440 * t) * np.sin(2 * np.pi * t), 32_000)
        for turn in range(rounds + 1):
            for form, results in found.items():
                command = [sys.executable, "-c", MEASURED, "tag", wav, "--runtime", form, "--device", "cpu"]
                start = time.perf_counter()
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                taken = time.perf_counter() - start
                if turn:  # the first is to fill caches, OpenVINO's compiled network among them
                    results.append((1000 * taken, int(done.stderr.splitlines()[-1])))
    rows = []
    for form, results in found.items():
        ms, kilobytes = (statistics.median(column) for column in zip(*results, strict=True))
        torch_ms, torch_kilobytes = (statistics.median(column) for column in zip(*found["torch"], strict=True))
        rows.append(
            {
                "what": f"audiotag tag, {form}",
                "process_ms": ms,
                "memory_mb": kilobytes / 1000,
                "of_torch": [ms / torch_ms, kilobytes / torch_kilobytes],
            }
        )
    return rows


# Runs the command and says, last on stderr, how much memory it took at most.
MEASURED = """
import resource, sys
from audiotag.cli import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:  # what getrusage says counts the process that started this one, too
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
except OSError:
    pass
print(peak, file=sys.stderr)
sys.exit(code)
"""


def memory_rows(rounds: int = 3, files: int = 200) -> list[dict]:
    """``audiotag tag`` of many 10 s files by torch, freed memory kept, as the command does, and given back: ms a file.

    Processes take turns; each times two files and then all, and what is told is the difference for each further file.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dymn04", "mn04"):
            torch.save(random_checkpoint(name)[1].state_dict(), f"{folder}/{name}.pt")
        noise = np.random.default_rng(0)
        for i in range(files):
            part = Path(folder) / ("few" if i < 2 else "many")
            part.mkdir(exist_ok=True)
            soundfile.write(part / f"{i}.wav", 0.1 * noise.standard_normal(320_000), 32_000)
        for name in ("dymn04", "mn04"):
            found: dict = {"given back": [], "kept": []}
            for _ in range(rounds):
                for way, results in found.items():
                    command = [sys.executable, "-c", MEMORY, way, folder, f"{folder}/{name}.pt"]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    results.append(json.loads(done.stdout))
            ms, faults = (
                {way: statistics.median(one[i] for one in results) / (files - 4) for way, results in found.items()}
                for i in (0, 1)
            )
            rows.append({"what": f"{name}, tag, torch", "memory_ms": ms, "page_faults": faults})
    return rows


# Runs the command on two files and on many, and prints the differences in milliseconds and page faults.
MEMORY = """
import json, resource, sys, time
from audiotag.cli import main, memory
way, folder, model = sys.argv[1:]
if way == "given back":
    memory.keep_freed_memory = lambda: False
def measured(part):
    start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    options = ["--runtime", "torch", "--device", "cpu", "--model", model]
    assert main(["tag", f"{folder}/{part}", "-o", f"{folder}/{part}.jsonl", *options]) == 0
    return 1000 * (time.perf_counter() - start), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
measured("few")
few, many = measured("few"), measured("many")
print(json.dumps([b - a for a, b in zip(few, many)]))
"""


def machine(device: str) -> dict:
    """Where this ran."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    facts = {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "audiotag": audiotag.__version__,
    }
    return facts | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def text(line: dict) -> str:
    """One result as a line: times per clip in milliseconds, ratio, goals."""
    if "process_ms" in line:
        shares = " and ".join(f"{share:.2f}" for share in line["of_torch"])
        return f"{line['what']:28s}  {line['process_ms']:6.0f} ms  {line['memory_mb']:5.0f} MB  ({shares} of torch's)"
    if "memory_ms" in line:
        back, kept = line["memory_ms"].values()
        faults = " and ".join(f"{count:.0f}" for count in line["page_faults"].values())
        return (
            f"{line['what']:28s}  ms a file, freed memory given back {back:.2f}, kept {kept:.2f}: "
            f"{back / kept:.2f} times (goal 1.3); page faults {faults}"
        )
    if "ms_per_window" in line:
        times = "  ".join(f"{form} {ms:.2f}" for form, ms in line["ms_per_window"].items())
        verdict = "reached" if line["ratio"] >= line["runtime_goal"] else "missed"
        goal = f"{line['best']} {line['ratio']:.1f} times textbook (goal {line['runtime_goal']}: {verdict})"
        differ = f"  scores differ by {line['score_difference']:.1e}" if "score_difference" in line else ""
        return f"{line['what']:28s}  ms a window: {times}  {goal}{differ}"
    parts = [f"{line['what']:28s}"]
    for form in ("textbook", "matrix product", "rival", "audiotag"):
        if form in line:
            t = {key: value / line["clips"] for key, value in line[form].items() if key.endswith("ms")}
            parts.append(f"{form} {t['median_ms']:8.2f} ms [{t['p10_ms']:.2f}, {t['p90_ms']:.2f}]")
    if "ratio" in line:
        parts.append(f"ratio {line['ratio']:.2f}")
    if line.get("goal"):
        must, aim = line["goal"]
        verdict = "aim reached" if line["ratio"] >= aim else "must reached" if line["ratio"] >= must else "below must"
        parts.append(f"(must {must}, aim {aim}: {verdict})")
    if "score_difference" in line:
        parts.append(f"scores differ by {line['score_difference']:.1e}")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", help="checkpoints to measure besides random weights of every kind")
    parser.add_argument("--quick", action="store_true", help="fewer turns, no batch of 16, no dymn20, no rivals")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=256, help="clips at once on a GPU")
    parser.add_argument("--runtimes", action="store_true", help="every runtime that is installed, and whole commands")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="with --runtimes: only these, no commands")
    parser.add_argument("--one-form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=25, help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")

    if args.one_form:
        with torch.no_grad():
            print(json.dumps(one_form(args.one_form, args.networks[0], args.repeats)))
        return
    facts, lines = machine(args.device), []
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)

    def add(line: dict) -> None:
        lines.append(line)
        print(text(line), flush=True)

    repeats = 7 if args.quick else 25
    with torch.no_grad():
        if args.runtimes:
            for line in [] if args.networks else [*command_rows(), *memory_rows()]:
                add(line)
            for name in args.networks or NETWORKS:
                for line in runtimes_rows(name, repeats):
                    add(line)
        elif args.device == "cuda":
            for dtype in (torch.float16, torch.bfloat16):
                name = f"dymn10, {args.batch} clips, {str(dtype)[6:]}"
                add(against_textbook(name, random_checkpoint("dymn10"), args.batch, repeats, "cuda", dtype))
        else:
            for name in NETWORKS:
                if args.quick and name == "dymn20":
                    continue
                checkpoint = random_checkpoint(name)
                add(against_textbook(name, checkpoint, 1, repeats, "cpu"))
                if name == "dymn10":
                    add(efficiency(checkpoint, repeats))
                    if not args.quick:
                        add(against_textbook("dymn10, 16 clips", checkpoint, 16, 3, "cpu"))
                        for line in rivals(checkpoint, repeats):
                            add(line)
            for name in args.checkpoints:
                add(against_textbook(name, named_checkpoint(name), 1, repeats, "cpu"))
            add(frontend_row(repeats))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": facts, "results": lines}, file, indent=2)


if __name__ == "__main__":
    main()
