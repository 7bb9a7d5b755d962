"""Folding of batch norms into the convolutions before them."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONV_NORM_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold the batch norms of open_clip's ModifiedResNet in place; other modules stay unchanged.

    Weights are folded in float64 and rounded once, so features differ no more than with another order of summation.

    Args:
        module: in eval mode, float32.
    """
    for block in module.modules():
        for conv, norm in CONV_NORM_PAIRS:
            if _is_pair(getattr(block, conv, None), getattr(block, norm, None)):
                setattr(block, conv, _fold(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
        shortcut = getattr(block, "downsample", None)
        if isinstance(shortcut, nn.Sequential) and len(shortcut) == 3 and _is_pair(shortcut[1], shortcut[2]):
            shortcut[1], shortcut[2] = _fold(shortcut[1], shortcut[2]), nn.Identity()
    return module


def _is_pair(conv: object, norm: object) -> bool:
    # Exact types only: timm's subclass of BatchNorm2d includes an activation.
    return type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    return fuse_conv_bn_eval(conv.double(), norm.double()).float()
