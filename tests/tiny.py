"""Tiny checkpoints whose scores differ from sound to sound, for tests that need a network but not a good one."""

import numpy as np
import torch

from audiotag.checkpoints.load import Checkpoint
from audiotag.config import CheckpointConfig, NetworkConfig
from audiotag.frontend.logmel import LogMel
from audiotag.networks.build import build_network

RATE = 32_000


def sound(seconds, seed=0):
    """A sweep in noise, float32 (samples,) at 32 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    sweep = np.sin(2 * np.pi * (200 + 3000 * rng.random() + 400 * t) * t) * (0.5 + 0.5 * np.sin(2 * np.pi * t))
    return (0.3 * sweep + 0.05 * rng.random() * rng.standard_normal(t.size)).astype(np.float32)


def tiny_checkpoint(architecture="dymn", **network):
    """Random weights of width 0.1, batch norms set to real statistics so that signals survive the depth."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = NetworkConfig(architecture, width=0.1, **network)
    module = build_network(config)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # average over the calls
    # Batch norms see what tests play: sounds, short clips tiled to almost constant ones, and silence.
    long = sound(40).reshape(4, -1)
    short = [sound(1, 1)[:n] for n in (1, 10, 200, 16_000, 32_000)] + [np.zeros(1, np.float32)]
    clips = np.stack([*long, *(sound(10, seed) for seed in (1, 2)), *(np.resize(clip, 10 * RATE) for clip in short)])
    with torch.no_grad():
        mel = LogMel()(torch.from_numpy(clips))
        module.train()(mel)
        largest = module.eval()(mel).logits.abs().max()
        module.classifier[5 if config.head == "mlp" else 1].weight *= 4 / largest  # scores between 0.02 and 0.98
    torch.random.set_rng_state(generator)
    labels = None if config.n_labels == 527 else tuple(f"label {i}" for i in range(config.n_labels))
    return Checkpoint(CheckpointConfig("tiny", config, labels=labels), module.eval().state_dict(), "a test")


def tensors(state):
    """A checkpoint's arrays as torch's, sharing nothing with them."""
    return {name: torch.tensor(array) for name, array in state.items()}


def same(a, b):
    """Whether two checkpoints are equal in configuration, facts and every tensor."""
    return (
        a.config == b.config
        and a.card == b.card
        and all(np.array_equal(a.state[name], b.state[name]) for name in a.state)
    )
