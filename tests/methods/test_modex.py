"""ModeX: sizes, formulas, initialization, placement and modality bias, as in its paper and code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from multitask_vl.config import load_config
from multitask_vl.config.schema import RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.modex import EXPERTS, Experts, ModexConfig, ModexSite
from multitask_vl.methods.sites import Site
from multitask_vl.routing.context import Context
from tests.tiny_models import perturb, tiny_batch, tiny_model

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "modex" / "single.yaml"
SITE = Site("layer", "decoder", 0, "ffn", "ffn_out", 768, 768)
CONTEXT = Context(("task",), RoutingConfig())


def experts(width: int, rank: int, shared_projection: str, **settings) -> Experts:
    """A single adapter."""
    config = ModexConfig(name="modex", rank=rank, **settings)
    return Experts(width, SITE, config, shared_projection, CONTEXT)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestSizes:
    """Parameter counts at d = 768."""

    @pytest.mark.parametrize("rank", [4, 16, 32, 96])
    def test_formulas(self, rank):
        d, r, router = 768, rank, 3 * 768 + 3
        assert size(experts(d, r, "both")) == 2 * d * r + r + d
        assert size(experts(d, r, "down")) == (d * r + r) + 3 * (r * d + d) + router
        assert size(experts(d, r, "up")) == 3 * (d * r + r) + (r * d + d) + router
        assert size(experts(d, r, "none")) == 3 * (2 * d * r + r + d) + router

    def test_values(self):
        found = {(kind, r): size(experts(768, r, kind)) for kind in ("both", "down", "up") for r in (16, 32)}
        assert (found["both", 16], found["both", 32]) == (25_360, 49_952)
        assert (found["down", 16], found["down", 32], found["up", 16]) == (53_779, 102_947, 52_275)

    @pytest.mark.parametrize(
        ("shared_projection", "rank", "caption", "nlvr2"),
        [
            ("down", 16, 2_298_888, 9_973_514),
            ("down", 32, 4_364_232, 12_038_858),
            ("up", 16, None, 9_937_418),
            ("none", 16, None, 10_564_106),
            ("both", 16, None, 9_291_458),
        ],
    )
    def test_published_totals_on_blip(self, shared_projection, rank, caption, nlvr2):
        """Twelve layers of image and of text, their layer norms; NLVR2 with its merging layers and head."""
        ms, mec = size(experts(768, rank, "both")), size(experts(768, rank, shared_projection))
        total = 12 * (2 * ms + ms + 2 * mec) + 38_400 + 56_832
        assert caption in (None, total)
        assert total + 7_082_496 + 592_130 == nlvr2


def reference(module: Experts, x: torch.Tensor) -> torch.Tensor:
    """The formulas with three separate experts, as in the paper."""
    rank = module.rank
    weights = torch.softmax((x @ module.router.weight.T + module.router.bias) / module.temperature, -1)
    downs = [
        lambda s, w=w, b=b: s @ w.T + b
        for w, b in zip(module.down.weight.split(rank), module.down.bias.split(rank), strict=True)
    ]
    ups = [
        lambda u, w=w, b=b: u @ w.T + b
        for w, b in zip(module.up.weight.split(rank, 1), module.up_bias.split(x.shape[-1]), strict=True)
    ]
    if module.shared_projection == "down":
        inner = torch.relu(downs[0](x))
        return sum(weights[..., i, None] * ups[i](inner) for i in range(3))
    if module.shared_projection == "up":
        return ups[0](torch.relu(sum(weights[..., i, None] * downs[i](x) for i in range(3))))
    return sum(weights[..., i, None] * ups[i](torch.relu(downs[i](x))) for i in range(3))


@pytest.mark.parametrize("shared_projection", ["down", "up", "none"])
@pytest.mark.parametrize("shape", [(2, 5, 12), (5, 12)])
def test_concatenated_experts_equal_separate_experts(shared_projection, shape):
    torch.manual_seed(1)
    module = experts(12, 4, shared_projection, temperature=0.5)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape)
    with CONTEXT.task_scope("task"):
        torch.testing.assert_close(module(x), reference(module, x))


def test_both_shared_is_a_plain_adapter():
    module = experts(12, 4, "both")
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 12)
    with CONTEXT.task_scope("task"):
        plain = torch.relu(x @ module.down.weight.T + module.down.bias) @ module.up.weight.T + module.up_bias
        torch.testing.assert_close(module(x), plain)


class TestInit:
    """Initial values."""

    def test_init_of_the_code(self):
        down = experts(768, 16, "up").down
        assert 0.99 < float(down.weight.detach().abs().max()) * math.sqrt(768) <= 1
        assert not down.bias.any()

    def test_init_of_the_paper(self):
        down = experts(768, 16, "up", init="kaiming_normal").down
        assert float(down.weight.detach().std()) == pytest.approx(math.sqrt(2 / 768), rel=0.02)

    @pytest.mark.parametrize("shared_projection", ["down", "up", "none", "both"])
    def test_up_projections_are_zero(self, shared_projection):
        module = experts(768, 16, shared_projection)
        assert not module.up.weight.any()
        assert not module.up_bias.any()

    def test_router_weights_are_close_to_a_third(self):
        """At a temperature of 10, hidden states of unit variance change the initial weights by a few percent only."""
        torch.manual_seed(0)
        weights = experts(768, 16, "down").router_weights(torch.randn(64, 768)).detach()
        torch.testing.assert_close(weights.sum(-1), torch.ones(64))
        assert 0 < float((weights - 1 / 3).abs().max()) < 0.07


def test_placement_of_mec_and_ms():
    """MEC where image and text are both visible, MS in the decoder's self-attention."""
    found = _shared_projections(tiny_model("modex"))
    assert len(found) == 2 * 2 + 2 * 3
    assert {name for name, shared in found.items() if shared == "both"} == {
        f"model.decoder.layers.{layer}.self_attn.out_proj" for layer in range(2)
    }
    other = _shared_projections(
        tiny_model("modex", encoder="ms", decoder_self_attn="none", decoder_cross_attn="none", shared_projection="up")
    )
    assert {shared for name, shared in other.items() if "encoder." in name} == {"both"}
    assert {name: shared for name, shared in other.items() if "decoder." in name} == {
        f"model.decoder.layers.{layer}.fc2": "up" for layer in range(2)
    }


def _shared_projections(model: nn.Module) -> dict[str, str]:
    sites = {name: module for name, module in model.lm.named_modules() if isinstance(module, ModexSite)}
    return {name: site.experts.shared_projection for name, site in sites.items()}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_modality_bias_selects_experts(family):
    model, batch = tiny_model("modex", family=family, modality_bias=50.0), tiny_batch()
    model = perturb(model)
    seen = []
    for module in model.modules():
        if isinstance(module, Experts) and module.router is not None:
            route = module.router_weights
            module.router_weights = lambda *args, route=route, stack=module.stack: (
                seen.append((stack, route(*args))) or seen[-1][1]
            )
    with torch.no_grad():
        model(batch)
    encoder = [weights for stack, weights in seen if stack == "encoder"]
    assert len(encoder) == 4
    text, visual = batch.attention_mask.bool(), slice(batch.input_ids.shape[1], None)
    for weights in encoder:
        assert float(weights[:, :7][text][:, EXPERTS.index("text")].min()) > 0.99
        assert float(weights[:, visual, EXPERTS.index("visual")].min()) > 0.99
    decoder = torch.cat([weights.flatten(0, 1) for stack, weights in seen if stack == "decoder"])
    assert float(decoder.max()) < 0.9


def test_visual_x_r_is_mixed_with_its_own_weights():
    """With a shared up-projection x_R passes the mixed down-projections too; it has no modality bias."""
    settings = {"shared_projection": "up", "modality_bias": 3.0, "temperature": 1.0}
    model = perturb(tiny_model("modex", {"function": "mul", "source": "visual"}, **settings))
    module = next(one for one in model.modules() if isinstance(one, Experts))
    x, x_r = torch.randn(3, 43, 16), torch.randn(3, 1, 16)
    kinds = torch.tensor([1] * 7 + [2] * 36).expand(3, -1)
    with model.context.task_scope("vqa"):
        model.context.set_token_types(kinds)
        model.context.set_x_r("encoder", x_r)
        found = module(x)
    inner = []
    for states, bias in ((x, torch.tensor([[3.0, 0, 0]] * 7 + [[0, 3.0, 0]] * 36)), (x_r, 0.0)):
        weights = torch.softmax(module.router(states) + bias, -1)
        downs = module.down(states).unflatten(-1, (3, -1))
        inner.append(torch.einsum("bte,bter->btr", weights, downs))
    torch.testing.assert_close(found, module.up(torch.relu(inner[0] * inner[1])) + module.up_bias)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.shared_projection=sideways"], "method.shared_projection: got 'sideways'"),
        (["method.temperature=0"], "method.temperature: got 0"),
        (["method.encoder=mce"], "did you mean 'mec'"),
        (["method.rank=0"], "method.rank: got 0"),
        (["method.modality_bias=true"], "method.modality_bias: got true"),
    ],
)
def test_invalid_settings_are_reported(overrides, message):
    with pytest.raises(InputError) as caught:
        load_config(CONFIG, overrides)
    assert message in str(caught.value)
