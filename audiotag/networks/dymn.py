"""DyMN: MobileNetV3-Large whose convolutions, activations and attention depend on the input.

Reference: Schmid, Koutini, Widmer, "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio
Models", arXiv 2310.15648, section III; the released state dicts load here with ``strict=True``. This is the
readable definition: training uses it, and `audiotag.runtimes.fused` is tested against it. The block table is
`audiotag.networks.table.BLOCKS`, which the paper keeps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import NetworkConfig
from .mobilenet import (
    MOMENTUM,
    InvertedResidual,
    Output,
    activation,
    classifier,
    conv_norm,
    initialise,
    run_network,
)
from .table import N_KERNELS, N_SLOPES, NORM_EPS, BlockSpec, context_channels, is_dynamic, scaled_blocks


class DynamicConv(nn.Module):
    """Convolution with a kernel mixed per sample: sum_k softmax(linear(h) / temperature)_k W_k."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        temperature: float,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.shape = (outputs, inputs // groups, kernel, kernel)
        self.stride, self.groups, self.temperature = stride, groups, temperature
        bank = torch.empty(N_KERNELS, *self.shape)
        for one in bank if not bank.is_meta else ():  # see `initialise`
            nn.init.kaiming_normal_(one, mode="fan_out")
        self.weight = nn.Parameter(bank.reshape(1, 1, N_KERNELS, -1))
        self.residuals = nn.Sequential(nn.Linear(context, N_KERNELS))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        batch, channels, freq, time = x.shape
        attention = (self.residuals(h) / self.temperature).softmax(-1)  # (B, K)
        kernels = attention @ self.weight[0, 0]  # (B, outputs * inputs/groups * k * k)
        # One grouped convolution over the batch laid out as channels gives every sample its own kernel.
        y = F.conv2d(
            x.reshape(1, batch * channels, freq, time),
            kernels.reshape(batch * self.shape[0], *self.shape[1:]),
            stride=self.stride,
            padding=(self.shape[-1] - 1) // 2,
            groups=batch * self.groups,
        )
        return y.reshape(batch, self.shape[0], *y.shape[2:])


class DynamicReLU(nn.Module):
    """max over m of slope_m x + intercept_m, per sample and channel (arXiv 2003.10027, variant B)."""

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.coef_net = nn.Sequential(nn.Linear(context, 2 * N_SLOPES * channels))
        self.register_buffer("lambdas", torch.tensor([1.0] * N_SLOPES + [0.5] * N_SLOPES))
        self.register_buffer("init_v", torch.tensor([1.0] + [0.0] * (2 * N_SLOPES - 1)))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        theta = 2 * self.coef_net(h).sigmoid() - 1  # (B, 2M E)
        theta = theta.reshape(*x.shape[:2], 1, 1, 2 * N_SLOPES) * self.lambdas + self.init_v
        slopes, intercepts = theta[..., :N_SLOPES], theta[..., N_SLOPES:]  # (B, E, 1, 1, M)
        return (x[..., None] * slopes + intercepts).amax(-1)


class ContextGenerator(nn.Module):
    """The block's view of its whole input: a vector h (B, H) and attention logits along frequency and time."""

    def __init__(self, inputs: int, context: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.joint_conv = nn.Conv2d(inputs, context, 1, bias=False)
        self.joint_norm = nn.BatchNorm2d(context, eps=NORM_EPS, momentum=MOMENTUM)
        self.conv_f = nn.Conv2d(context, expanded, 1)
        self.conv_t = nn.Conv2d(context, expanded, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        freq = x.shape[2]
        positions = torch.cat([x.mean(3), x.mean(2)], 2)[..., None]  # (B, C, F + T, 1)
        g = F.hardswish(self.joint_norm(self.joint_conv(positions)))  # (B, H, F + T, 1)
        h = g.mean((2, 3))  # (B, H)
        g_f, g_t = g[:, :, :freq], g[:, :, freq:]
        if self.stride > 1:
            g_f, g_t = (F.avg_pool2d(part, (3, 1), (self.stride, 1), (1, 0)) for part in (g_f, g_t))
        a_f = self.conv_f(g_f)  # (B, E, F', 1)
        a_t = self.conv_t(g_t).transpose(2, 3)  # (B, E, 1, T')
        return h, a_f, a_t


class DynamicBlock(nn.Module):
    """Dynamic expand, depthwise and project convolutions with dynamic ReLU and coordinate attention (figure 2)."""

    def __init__(self, spec: BlockSpec, width: float, temperature: float) -> None:
        super().__init__()
        inputs, expanded, outputs = spec.inputs, spec.expanded, spec.outputs
        context = context_channels(expanded, width)

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=MOMENTUM)

        self.expands = expanded != inputs
        if self.expands:
            self.exp_conv = DynamicConv(inputs, expanded, context, temperature)
            self.exp_norm = norm(expanded)
            self.exp_act = activation(spec.activation)
        self.depth_conv = DynamicConv(expanded, expanded, context, temperature, spec.kernel, spec.stride, expanded)
        self.depth_norm = norm(expanded)
        self.depth_act = DynamicReLU(expanded, context)
        self.proj_conv = DynamicConv(expanded, outputs, context, temperature)
        self.proj_norm = norm(outputs)
        self.context_gen = ContextGenerator(inputs, context, expanded, spec.stride)
        self.residual = spec.stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h, a_f, a_t = self.context_gen(x)
        y = self.exp_act(self.exp_norm(self.exp_conv(x, h))) if self.expands else x  # (B, E, F, T)
        y = self.depth_act(self.depth_norm(self.depth_conv(y, h)), h)  # (B, E, F', T')
        y = y * a_f.sigmoid() * a_t.sigmoid()
        y = self.proj_norm(self.proj_conv(y, h))  # (B, C', F', T')
        return x + y if self.residual else y


class DyMN(nn.Module):
    """Dynamic MobileNet for log-mel input.

    Parameters
    ----------
    config : NetworkConfig
        With ``architecture="dymn"``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        specs = scaled_blocks(config)
        features = 6 * specs[-1].outputs
        self.in_c = conv_norm(1, specs[0].inputs, 3, 2, act="hswish")
        self.layers = nn.ModuleList(
            DynamicBlock(spec, config.width, config.temperature)
            if is_dynamic(spec, config)
            else InvertedResidual(spec, squeeze=False)
            for spec in specs
        )
        self.out_c = conv_norm(specs[-1].outputs, features, act="hswish")
        self.classifier = classifier(config, features)
        initialise(self)

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> Output:
        """Compute logits and features of log-mel spectrograms (B, 1, mels, frames)."""
        return run_network(self.in_c, self.layers, self.out_c, self.classifier, x, taps)

    def set_temperature(self, temperature: float) -> None:
        """Set the softmax temperature of every dynamic convolution; training lowers it from 30 to 1."""
        for module in self.modules():
            if isinstance(module, DynamicConv):
                module.temperature = temperature
