"""How do gradients become steps: AdamW (torch's, or the published older one), linear warm-up and decay, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn import Parameter

from multitask_vl.config.schema import TrainingConfig

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices for which torch has a fused AdamW."""


class AdamWDecayAfter(torch.optim.AdamW):
    """The AdamW of transformers 4.2, with which VL-Adapter's numbers were made.

    It differs from torch's in two places: epsilon is added to the root of the *uncorrected* second moment, and decay
    is subtracted from the already updated weights. Tensors without a gradient are left alone altogether, so an adapter
    of a task that did not take this step neither moves nor decays.
    """

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                taken = state["step"].item()
                state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                rate = group["lr"] * math.sqrt(1 - beta2**taken) / (1 - beta1**taken)
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
                parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def build_optimizer(
    named_parameters: Mapping[str, Parameter], config: TrainingConfig, pretrained: Sequence[Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser of the trainable tensors, in groups: those that decay and those that do not, and with a rate of
    their own (`config.backbone_lr`) the pretrained ones apart, behind the others.

    Args:
        named_parameters: name -> trainable tensor; the name decides what counts as a bias.
        config: rates, betas, epsilon, decay and which AdamW.
        pretrained: which of the tensors are the backbone's own.
    """
    slow = {id(parameter) for parameter in pretrained} if config.backbone_lr is not None else set()

    def decays(name: str, parameter: Parameter) -> bool:
        if config.decay == "matrices":
            return parameter.ndim >= 2
        return "bias" not in name

    groups = [
        {
            "params": [p for n, p in named_parameters.items() if decays(n, p) == decay and (id(p) in slow) == own],
            "weight_decay": config.weight_decay if decay else 0.0,
            "relative": config.backbone_lr / config.lr if own and slow else 1.0,
        }
        for own in (False, True)
        for decay in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    common = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.optimizer == "adamw_decay_after":
        return AdamWDecayAfter(groups, **common)
    # one pass over each tensor instead of a dozen; what was computed so far is kept alike, so resuming stays exact
    fused = all(p.is_floating_point() and p.device.type in FUSED for p in named_parameters.values())
    return torch.optim.AdamW(groups, fused=fused, **common)


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Rate of 0-based ``step``: linear from 0 over int(total * warmup_ratio) steps, then linear to 0 at ``total``."""
    warmup = int(total * warmup_ratio)
    if step < warmup:
        return peak * step / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` from the next step on, in every group: as it is, or in the backbone's proportion to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["relative"]


def clip_gradients(parameters: Iterable[Parameter], max_norm: float | None) -> float:
    """Scale gradients so that their global L2 norm is at most ``max_norm``; returns the norm before clipping.

    ``None`` only measures.
    """
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), math.inf if max_norm is None else max_norm))
