"""Learning rate and temperature over a training run: plain functions of the step."""

from __future__ import annotations

import math

WARMUP_SHARPNESS = 5.0  # of the exponential warm-up: it starts at exp(-5) of the full rate


def rate_factor(step: float, *, warmup: float, rampdown_start: float, rampdown: float, last: float) -> float:
    """Compute the share of the full learning rate: exponential warm-up, constant, linear ramp-down, constant.

    As in arXiv 2211.04772 and its predecessors: exp(-5 (1 - step / warmup)^2) up to `warmup`, 1 until `rampdown_start`,
    then a straight line to `last`, reached `rampdown` steps later.

    Parameters
    ----------
    step, warmup, rampdown_start, rampdown : float
        In one unit, steps or epochs. `warmup` may be 0; without a `rampdown` the rate stays.
    last : float
        Share of the full rate at the end, in [0, 1].
    """
    if step < warmup:
        return math.exp(-WARMUP_SHARPNESS * (1 - step / warmup) ** 2)
    if step < rampdown_start or not rampdown:
        return 1.0
    return 1.0 - (1.0 - last) * min(1.0, (step - rampdown_start) / rampdown)


def temperature_at(step: float, *, start: float, end: float, steps: float) -> float:
    """Compute the dynamic convolutions' temperature: a straight line from `start` to `end` over `steps`, then `end`.

    High at first, so that all kernels of a convolution learn (arXiv 2310.15648, section III).
    """
    if step >= steps:
        return end
    return start + (end - start) * step / steps
