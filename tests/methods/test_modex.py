"""Are ModeX's adapters what its paper and code say, beside what all methods must keep?"""

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
from multitask_vl.models.build import build_model
from multitask_vl.routing.context import Context
from tests.tiny_models import shaken, tiny_batch, tiny_model

PARAMETERS = Path(__file__).parents[2] / "configs" / "parameters"
SITE = Site("layer", "decoder", 0, "ffn", "ffn_out", 768, 768)
CONTEXT = Context(("task",), RoutingConfig())


def experts(width: int, rank: int, share: str, **settings) -> Experts:
    """One adapter by itself."""
    config = ModexConfig(name="modex", rank=rank, **settings)
    return Experts(width, SITE, config, share, CONTEXT)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestSizes:
    """Numbers of parameters at d = 768."""

    @pytest.mark.parametrize("rank", [4, 16, 32, 96])
    def test_formulas(self, rank):
        d, r, router = 768, rank, 3 * 768 + 3
        assert size(experts(d, r, "both")) == 2 * d * r + r + d
        assert size(experts(d, r, "down")) == (d * r + r) + 3 * (r * d + d) + router
        assert size(experts(d, r, "up")) == 3 * (d * r + r) + (r * d + d) + router
        assert size(experts(d, r, "none")) == 3 * (2 * d * r + r + d) + router

    def test_values(self):
        found = {(share, r): size(experts(768, r, share)) for share in ("both", "down", "up") for r in (16, 32)}
        assert (found["both", 16], found["both", 32]) == (25_360, 49_952)
        assert (found["down", 16], found["down", 32], found["up", 16]) == (53_779, 102_947, 52_275)

    @pytest.mark.parametrize(
        ("share", "rank", "caption", "nlvr2"),
        [
            ("down", 16, 2_298_888, 9_973_514),
            ("down", 32, 4_364_232, 12_038_858),
            ("up", 16, None, 9_937_418),
            ("none", 16, None, 10_564_106),
            ("both", 16, None, 9_291_458),
        ],
    )
    def test_the_published_totals_on_blip(self, share, rank, caption, nlvr2):
        """Twelve layers of image and of text, their layer norms; NLVR2 with its merging layers and head."""
        ms, mec = size(experts(768, rank, "both")), size(experts(768, rank, share))
        whole = 12 * (2 * ms + ms + 2 * mec) + 38_400 + 56_832
        assert caption in (None, whole)
        assert whole + 7_082_496 + 592_130 == nlvr2


def by_hand(module: Experts, x: torch.Tensor) -> torch.Tensor:
    """The formulas with three experts apart, as the paper writes them."""
    rank = module.rank
    rho = torch.softmax((x @ module.router.weight.T + module.router.bias) / module.temperature, -1)
    downs = [
        lambda s, w=w, b=b: s @ w.T + b
        for w, b in zip(module.down.weight.split(rank), module.down.bias.split(rank), strict=True)
    ]
    ups = [
        lambda u, w=w, b=b: u @ w.T + b
        for w, b in zip(module.up.weight.split(rank, 1), module.up_bias.split(x.shape[-1]), strict=True)
    ]
    if module.share == "down":
        inner = torch.relu(downs[0](x))
        return sum(rho[..., i, None] * ups[i](inner) for i in range(3))
    if module.share == "up":
        return ups[0](torch.relu(sum(rho[..., i, None] * downs[i](x) for i in range(3))))
    return sum(rho[..., i, None] * ups[i](torch.relu(downs[i](x))) for i in range(3))


@pytest.mark.parametrize("share", ["down", "up", "none"])
@pytest.mark.parametrize("shape", [(2, 5, 12), (5, 12)])
def test_experts_in_one_map_are_experts_apart(share, shape):
    torch.manual_seed(1)
    module = experts(12, 4, share, temperature=0.5)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape)
    with CONTEXT.of("task"):
        torch.testing.assert_close(module(x), by_hand(module, x))


def test_with_both_halves_shared_it_is_a_plain_adapter():
    module = experts(12, 4, "both")
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 12)
    with CONTEXT.of("task"):
        plain = torch.relu(x @ module.down.weight.T + module.down.bias) @ module.up.weight.T + module.up_bias
        torch.testing.assert_close(module(x), plain)


class TestStart:
    """Initial values."""

    def test_the_code_s(self):
        down = experts(768, 16, "up").down
        assert 0.99 < float(down.weight.detach().abs().max()) * math.sqrt(768) <= 1
        assert not down.bias.any()

    def test_the_paper_s(self):
        down = experts(768, 16, "up", init="kaiming_normal").down
        assert float(down.weight.detach().std()) == pytest.approx(math.sqrt(2 / 768), rel=0.02)

    @pytest.mark.parametrize("share", ["down", "up", "none", "both"])
    def test_ups_are_zero(self, share):
        module = experts(768, 16, share)
        assert not module.up.weight.any()
        assert not module.up_bias.any()

    def test_the_router_says_a_third_each(self):
        """At a temperature of 10 and an initial router even unit states move the weights by a few percent only."""
        torch.manual_seed(0)
        rho = experts(768, 16, "down").rho(torch.randn(64, 768)).detach()
        torch.testing.assert_close(rho.sum(-1), torch.ones(64))
        assert 0 < float((rho - 1 / 3).abs().max()) < 0.07


def test_places():
    """MEC where image and text are both seen, MS in the decoder's self-attention."""
    found = _shares(tiny_model("modex"))
    assert len(found) == 2 * 2 + 2 * 3
    assert {name for name, share in found.items() if share == "both"} == {
        f"model.decoder.layers.{layer}.self_attn.out_proj" for layer in range(2)
    }
    other = _shares(tiny_model("modex", encoder="ms", decoder_self_attn="none", decoder_cross_attn="none", share="up"))
    assert {share for name, share in other.items() if "encoder." in name} == {"both"}
    assert {name: share for name, share in other.items() if "decoder." in name} == {
        f"model.decoder.layers.{layer}.fc2": "up" for layer in range(2)
    }


def _shares(model: nn.Module) -> dict[str, str]:
    sites = {name: module for name, module in model.lm.named_modules() if isinstance(module, ModexSite)}
    return {name: site.experts.share for name, site in sites.items()}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_modality_bias_gives_each_modality_its_expert(family):
    model, batch = tiny_model("modex", family=family, modality_bias=50.0), tiny_batch()
    model = shaken(model)
    seen = []
    for module in model.modules():
        if isinstance(module, Experts) and module.router is not None:
            rho = module.rho
            module.rho = lambda *given, rho=rho, stack=module.stack: seen.append((stack, rho(*given))) or seen[-1][1]
    with torch.no_grad():
        model(batch)
    encoder = [rho for stack, rho in seen if stack == "encoder"]
    assert len(encoder) == 4
    words, cells = batch.attention_mask.bool(), slice(batch.input_ids.shape[1], None)
    for rho in encoder:
        assert float(rho[:, :7][words][:, EXPERTS.index("text")].min()) > 0.99
        assert float(rho[:, cells, EXPERTS.index("visual")].min()) > 0.99
    decoder = torch.cat([rho.flatten(0, 1) for stack, rho in seen if stack == "decoder"])
    assert float(decoder.max()) < 0.9


def test_an_early_x_r_is_mixed_by_its_own_weights():
    """In the share-up form the mixing is part of the way down, which x_R takes as well; it has no modality."""
    settings = {"share": "up", "modality_bias": 3.0, "temperature": 1.0}
    model = shaken(tiny_model("modex", {"function": "mul", "source": "visual_pooled"}, **settings))
    module = next(one for one in model.modules() if isinstance(one, Experts))
    x, x_r = torch.randn(3, 43, 16), torch.randn(3, 1, 16)
    kinds = torch.tensor([1] * 7 + [2] * 36).expand(3, -1)
    with model.context.of("vqa"):
        model.context.positions(kinds)
        model.context.put("encoder", x_r)
        found = module(x)
    inner = []
    for states, bias in ((x, torch.tensor([[3.0, 0, 0]] * 7 + [[0, 3.0, 0]] * 36)), (x_r, 0.0)):
        rho = torch.softmax(module.router(states) + bias, -1)
        parts = module.down(states).unflatten(-1, (3, -1))
        inner.append(torch.einsum("bte,bter->btr", rho, parts))
    torch.testing.assert_close(found, module.up(torch.relu(inner[0] * inner[1])) + module.up_bias)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method.share=sideways"], "method.share: got 'sideways'"),
        (["method.temperature=0"], "method.temperature: got 0"),
        (["method.encoder=mce"], "did you mean 'mec'"),
        (["method.rank=0"], "method.rank: got 0"),
        (["method.modality_bias=true"], "method.modality_bias: got true"),
    ],
)
def test_bad_settings_are_told(overrides, told):
    with pytest.raises(InputError) as caught:
        build_model(load_config(PARAMETERS / "modex.yaml", overrides), device="meta")
    assert told in str(caught.value)
