"""Networks with random weights whose signals survive the depth and whose dynamic parts really depend on the input."""

import torch
from torch import nn

from audiotag.config import NetworkConfig
from audiotag.networks.build import build_network


def log_mels(batch, frames, seed=0, bands=128):
    """Inputs that differ from clip to clip, band to band and frame to frame: (B, 1, mels, frames)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 1, -(-bands // 8), -(-frames // 32), generator=generator)
    coarse = coarse.repeat_interleave(8, 2).repeat_interleave(32, 3)[:, :, :bands, :frames]
    return coarse + 0.5 * torch.randn(batch, 1, bands, frames, generator=generator)


def randomise(module, seed=0):
    """Fill convolutions and linear layers in the manner of Kaiming, batch norms around one; 0.3 of that where a
    sigmoid, tanh or softmax follows."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor, scale, centre=0.0):
        tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, part in module.named_modules():
            gating = any(word in name for word in ("conv_f", "conv_t", "residuals", "coef_net"))
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                fill(part.weight, (0.3 if gating else 1) * (2 / part.weight[0].numel()) ** 0.5)
                if part.bias is not None:
                    fill(part.bias, 0.1)
            elif isinstance(part, nn.BatchNorm2d):
                fill(part.weight, 0.1, 1.0)
                fill(part.bias, 0.1)
                fill(part.running_mean, 0.1)
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
            elif hasattr(part, "shape"):  # DynamicConv: its bank
                outputs = part.shape[0]
                fan_in = part.weight.numel() // part.weight.shape[2] // outputs
                fill(part.weight, (2 / fan_in) ** 0.5)
    return module.eval().requires_grad_(False)


def random_network(architecture="dymn", width=0.1, seed=0, **network):
    """A whole network, its batch norms' statistics those of `log_mels`, its logits a few units wide."""
    network = randomise(build_network(NetworkConfig(architecture, width, **network)), seed)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the plain average over the calls that follow
    with torch.no_grad():
        network.train()
        for frames in (100, 300):
            network(log_mels(8, frames, seed))
        for part in norms:  # a channel that was nearly constant must not explode on other input
            part.running_var.clamp_(min=0.3 * part.running_var.mean())
        logits = network.eval()(log_mels(8, 200, seed + 1)).logits
        network.classifier[5 if network.config.head == "mlp" else 1].weight *= 2 / logits.std(0).median()
        logits = network(log_mels(8, 200, seed + 2)).logits
        assert 0.1 < logits.std(0).median() < 10, "the network does not hear its input"
    return network
