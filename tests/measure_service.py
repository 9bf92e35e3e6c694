"""Measure the service beside the bare Tagger, in one run: latency, throughput, fairness, live streams, memory.

    python -m tests.measure_service [--model NAME] [--only latency,throughput,fair,live,memory]

The server is a process of its own and this one is the client, so both share the cores, as where the service is used
from the same machine. In process and service take turns; medians are given.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import soundfile

from .tiny import RATE, sound

ROOT = Path(__file__).parent.parent


def wav(seconds, seed=0):
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, seed), RATE, format="WAV")
    return file.getvalue()


class Client:
    """One connection that is kept."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, data, path="/v1/tag"):
        self.connection.request("POST", path, data, {"Content-Type": "audio/wav"})
        answer = self.connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)


@contextlib.contextmanager
def serving(model):
    command = [sys.executable, "-m", "audiotag", "serve", "--port", "0", *(["--model", model] if model else [])]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        while "serving at" not in line:
            assert line, "the server did not start"
            line = process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        port = int(line.split("://")[1].split("/")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(600):
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                break
            time.sleep(0.1)
        yield port, process
    finally:
        process.terminate()
        process.wait(20)


def timed(call, *args):
    since = time.perf_counter()
    call(*args)
    return (time.perf_counter() - since) * 1000


def latency(tagger, port, n=60):
    data, client = wav(10), Client(port)
    bare, served = [], []
    for i in range(n + 5):
        a, b = timed(tagger.predict, data), timed(client.post, data)
        if i >= 5:
            bare.append(a)
            served.append(b)
    a, b = statistics.median(bare), statistics.median(served)
    print(f"one client, 10 s WAV: in process {a:.1f} ms, service {b:.1f} ms (allowed {1.05 * a + 5:.1f} ms)")


def throughput(tagger, port, n=160, clients=8):
    data = wav(10)

    def bare():
        for _ in range(n):
            tagger.predict(data)

    def served():
        def ask():
            client = Client(port)
            for _ in range(n // clients):
                client.post(data)

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ratios, rates = [], []
    served()
    for _ in range(3):
        a, b = timed(bare), timed(served)
        ratios.append(a / b)
        rates.append((1000 * n / a, 1000 * n / b))
    rates = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    ratio = statistics.median(ratios)
    print(f"{clients} clients: in process {rates[0]:.0f} clips/s, service {rates[1]:.0f} clips/s, ratio {ratio:.2f}")


def fair(tagger, port, n=60):
    short, long, client = wav(3), wav(600), Client(port)
    idle = sorted(timed(client.post, short) for _ in range(n))
    stop = threading.Event()

    def work():
        other = Client(port)
        while not stop.is_set():
            other.post(long, "/v1/events")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1)
    busy = []
    while len(busy) < n:
        busy.append(timed(client.post, short))
        time.sleep(0.05)
    stop.set()
    thread.join()
    busy.sort()
    runtime = tagger.engine.runtime
    logmel = runtime.log_mel(np.stack([sound(10, seed) for seed in range(runtime.default_batch)]))
    batch = statistics.median(timed(tagger.engine.scores, logmel) for _ in range(20))
    p95 = int(0.95 * n)
    print(
        f"3 s clip: idle median {idle[n // 2]:.1f} ms, p95 {idle[p95]:.1f} ms; while 10 minutes are worked on "
        f"median {busy[n // 2]:.1f} ms, p95 {busy[p95]:.1f} ms "
        f"(allowed {2 * idle[p95] + batch:.1f} ms: twice the idle p95, and a batch of {len(logmel)} windows, "
        f"{batch:.1f} ms)"
    )


def live(port, streams=20, seconds=20):
    from websockets.sync.client import connect

    lags, told = [], []
    chunk = 1600

    def run(seed):
        samples = np.round(sound(seconds, seed)[::2] * 20_000).astype("<i2")
        with connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None) as ws:
            ws.send(json.dumps({"type": "start", "sample_rate": 16_000, "top": 1}))
            ws.recv(10)
            since = time.monotonic()

            def listen():
                with contextlib.suppress(Exception):
                    while True:
                        message = json.loads(ws.recv())
                        if message["type"] == "scores":
                            lags.append(time.monotonic() - since - message["end_s"])
                        elif message["type"] == "lag":
                            told.append(message)

            listener = threading.Thread(target=listen)
            listener.start()
            for i, start in enumerate(range(0, len(samples), chunk)):
                time.sleep(max(0, since + (i + 1) * chunk / 16_000 - time.monotonic()))
                ws.send(samples[start : start + chunk].tobytes())
            ws.send(json.dumps({"type": "stop"}))
            listener.join(20)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(streams)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    lags.sort()
    median, p99 = 1000 * lags[len(lags) // 2], 1000 * lags[int(0.99 * len(lags))]
    print(
        f"{streams} live streams for {seconds} s: {len(lags)} windows, after their last sample "
        f"median {median:.0f} ms, p99 {p99:.0f} ms; lag told {len(told)} times"
    )


def resident(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def memory(port, process, n=1000):
    data, client = wav(3), Client(port)
    for _ in range(100):
        client.post(data)
    before = resident(process)
    for _ in range(n):
        client.post(data)
    after = resident(process)
    change = 100 * (after / before - 1)
    print(f"memory: {before:.0f} MB after 100 requests, {after:.0f} MB after {n} more ({change:+.1f} %)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--only", default="latency,throughput,fair,live,memory")
    args = parser.parse_args()
    wanted = args.only.split(",")
    from audiotag import Tagger

    tagger = None
    if {"latency", "throughput", "fair"} & set(wanted):
        tagger = Tagger.from_pretrained(args.model)
        print(f"{tagger!r}, {os.cpu_count()} cores", flush=True)
    with serving(args.model) as (port, process):
        if "latency" in wanted:
            latency(tagger, port)
        if "throughput" in wanted:
            throughput(tagger, port)
        if "fair" in wanted:
            fair(tagger, port)
        if "live" in wanted:
            live(port)
        if "memory" in wanted:
            memory(port, process)


if __name__ == "__main__":
    main()
