"""How does a frozen ResNet get rid of its batch norms: each is folded into the convolution before it."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold the batch norms of open_clip's ModifiedResNet in place; other modules are left as they are.

    In float64, so that a folded weight is rounded once: what is left is the rounding that any order of sums has.

    Args:
        module: in eval mode, float32.
    """
    for block in module.modules():
        for conv, norm in PAIRS:
            if _is_pair(getattr(block, conv, None), getattr(block, norm, None)):
                setattr(block, conv, _folded(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
        shortcut = getattr(block, "downsample", None)
        if isinstance(shortcut, nn.Sequential) and len(shortcut) == 3 and _is_pair(shortcut[1], shortcut[2]):
            shortcut[1], shortcut[2] = _folded(shortcut[1], shortcut[2]), nn.Identity()
    return module


def _is_pair(conv: object, norm: object) -> bool:
    # Exactly these classes: timm's norm of the same parent has an activation inside.
    return type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    return fuse_conv_bn_eval(conv.double(), norm.double()).float()
