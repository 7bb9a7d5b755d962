"""AdamW (torch's, or the published older one), linear warm-up and decay, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn import Parameter

from multitask_vl.config.schema import TrainingConfig

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types for which torch has a fused AdamW."""


class HFLegacyAdamW(torch.optim.AdamW):
    """The AdamW of transformers 4.2, which VL-Adapter's results were trained with.

    It differs from torch's in two places: epsilon is added to the root of the *uncorrected* second moment, and decay
    is subtracted from the already updated weights. Tensors without a gradient are skipped altogether, so an adapter
    of a task that is not in the batch neither moves nor decays.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("this optimizer does not take a closure")
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
                step = state["step"].item()
                state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                step_size = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-step_size)
                parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def build_optimizer(
    named_parameters: Mapping[str, Parameter], config: TrainingConfig, base_parameters: Sequence[Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable tensors.

    Parameter groups separate tensors with and without weight decay and, with ``config.backbone_lr``, the backbone's
    pretrained tensors, which come last.

    Args:
        named_parameters: name -> trainable tensor; the name decides what counts as a bias.
        config: learning rates, betas, epsilon, weight decay and the kind of AdamW.
        base_parameters: those of the tensors that belong to the pretrained backbone.
    """
    base_ids = {id(parameter) for parameter in base_parameters} if config.backbone_lr is not None else set()

    def decays(name: str, parameter: Parameter) -> bool:
        if config.weight_decay_on == "matrices":
            return parameter.ndim >= 2
        return "bias" not in name

    groups = [
        {
            "params": [
                p for n, p in named_parameters.items() if decays(n, p) == decay and (id(p) in base_ids) == is_base
            ],
            "weight_decay": config.weight_decay if decay else 0.0,
            "lr_scale": config.backbone_lr / config.lr if is_base and base_ids else 1.0,
        }
        for is_base in (False, True)
        for decay in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    common = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.optimizer == "adamw_hf_legacy":
        return HFLegacyAdamW(groups, **common)
    # one pass over each tensor instead of a dozen; a resumed run computes the same, so resuming stays exact
    fused = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in named_parameters.values())
    return torch.optim.AdamW(groups, fused=fused, **common)


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Return the learning rate of 0-based ``step``.

    Linear from 0 over int(total * warmup_ratio) steps, then linear to 0 at ``total``.
    """
    warmup = int(total * warmup_ratio)
    if step < warmup:
        return peak * step / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times the group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def clip_gradients(parameters: Iterable[Parameter], max_norm: float | None) -> float:
    """Scale gradients to a global L2 norm of at most ``max_norm`` and return the norm before clipping.

    ``None`` only measures.
    """
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), math.inf if max_norm is None else max_norm))
