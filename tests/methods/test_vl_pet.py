"""Are VL-PET's gates, heads and decoder modules what its paper and code say, beside what all methods must keep?"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from multitask_vl.config import load_config
from multitask_vl.doctor import parameter_report
from multitask_vl.errors import InputError
from multitask_vl.methods.compacter import PHMLinear
from multitask_vl.methods.vl_pet import DecoderSite, EncoderSite
from multitask_vl.models.build import build_model
from tests.tiny_models import padded, shaken, tiny_batch, tiny_config, tiny_model

CONFIGS = Path(__file__).parents[2] / "configs"
GRANULARITIES = ("large", "middleX", "middleY", "small", "none")


def count(name: str, *overrides: str) -> tuple[int, int]:
    report = parameter_report(load_config(CONFIGS / "parameters" / f"{name}.yaml", overrides))
    return report["trainable"], report["total"]


@pytest.mark.parametrize(
    ("norms", "trainable"), [("none", 6_032_448), ("decoder", 6_061_632), ("encoder", 6_052_416), ("all", 6_081_600)]
)
def test_counts_by_trained_norms(norms, trainable):
    """Table 7."""
    assert count("vl_pet_large", f"method.train_layer_norms={norms}") == (trainable, 145_606_464)


@pytest.mark.parametrize(
    ("sites", "trainable", "total"),
    [
        ("[key]", 6_052_416, 145_606_464),
        ("[self_attn]", 6_052_416, 145_606_464),
        ("[ffn]", 6_052_416, 145_606_464),
        ("[self_attn, cross_attn]", 6_942_336, 146_496_384),
        ("[cross_attn, ffn]", 6_942_336, 146_496_384),
        ("[self_attn, cross_attn, ffn]", 7_832_256, 147_386_304),
        ("[]", 5_162_496, 144_716_544),
    ],
)
def test_counts_by_decoder_modules(sites, trainable, total):
    """Tables 5 and 6."""
    assert count("vl_pet_large", f"method.decoder_sites={sites}") == (trainable, total)


def encoder_sites(model: nn.Module) -> list[EncoderSite]:
    return [module for module in model.modules() if isinstance(module, EncoderSite)]


def decoder_sites(model: nn.Module) -> dict[str, DecoderSite]:
    return {name: module for name, module in model.lm.named_modules() if isinstance(module, DecoderSite)}


@pytest.mark.parametrize(
    ("sites", "leaves", "parallel"),
    [
        (("value",), {"encoder_attn.v_proj"}, True),
        (("key",), {"encoder_attn.k_proj"}, True),
        (("self_attn", "cross_attn", "ffn"), {"self_attn.out_proj", "encoder_attn.out_proj", "fc2"}, False),
    ],
)
def test_places_in_the_decoder(sites, leaves, parallel):
    found = decoder_sites(tiny_model("vl_pet", decoder_sites=sites))
    assert set(found) == {f"model.decoder.layers.{layer}.{leaf}" for layer in range(2) for leaf in leaves}
    assert {site.parallel for site in found.values()} == {parallel}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_value_module_reads_the_encoder(family):
    """V = W_v E + b_v + up(gelu(down(E))), and the modification of a decoder's sublayer reads its output."""
    model, batch = shaken(tiny_model("vl_pet", family=family, decoder_sites=("value", "ffn"))), tiny_batch()
    for site in decoder_sites(model).values():
        x = torch.randn(2, 5, site.base.in_features)
        with model.context.of("vqa"):
            inner = x if site.parallel else site.base(x)
            expected = nn.functional.gelu(site.bottleneck.down(inner), approximate="tanh")
            torch.testing.assert_close(site(x), site.base(x) + site.bottleneck.up(expected))
    value = next(site for site in decoder_sites(model).values() if site.parallel)
    (((read,), _),) = seen([value], model, batch)
    torch.testing.assert_close(read, model.encode(batch).states)


def test_heads_are_one_map():
    """Concatenated heads d -> r / N under an element-wise non-linearity; only the random draw could differ."""
    site = encoder_sites(shaken(tiny_model("vl_pet")))[0]
    down, hidden = site.bottleneck.down, torch.randn(3, 7, 16)
    heads = []
    for weight, bias in zip(down.weight.chunk(4), down.bias.chunk(4), strict=True):
        head = nn.Linear(16, 4)
        head.weight.data, head.bias.data = weight.data, bias.data
        heads.append(site.bottleneck.activation(head(hidden)))
    torch.testing.assert_close(torch.cat(heads, -1), site.bottleneck.activation(down(hidden)))
    one, four = (tiny_model("vl_pet", num_heads=heads) for heads in (1, 4))
    assert torch.equal(one(tiny_batch()), four(tiny_batch()))


@torch.no_grad()
def seen(modules: list[nn.Module], model: nn.Module, batch) -> list[tuple[tuple, torch.Tensor]]:
    """Arguments and results of modules, in the order in which they run on a batch."""
    found = []
    handles = [module.register_forward_hook(lambda _, args, out: found.append((args, out))) for module in modules]
    model(batch)
    for handle in handles:
        handle.remove()
    return found


def seen_gates(model: nn.Module, batch) -> list[torch.Tensor]:
    """What every gate gives."""
    return [gate for _, gate in seen([site.gate for site in encoder_sites(model)], model, batch)]


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("large", (3, 43, 16)), ("middleX", (3, 43, 1)), ("middleY", (16,)), ("small", (3, 1, 1))],
)
def test_what_a_gate_tells_apart(granularity, shape):
    gates = seen_gates(shaken(tiny_model("vl_pet", granularity=granularity)), tiny_batch())
    assert [tuple(gate.shape) for gate in gates] == [shape] * 4


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_gates_at_the_start(family):
    """Near a half, or near 1 for middleY; with zero_init exactly so, whatever the family's initial values."""
    for granularity in GRANULARITIES[:-1]:
        settings = {"family": family, "granularity": granularity}
        for gate in seen_gates(tiny_model("vl_pet", zero_init=True, **settings), tiny_batch()):
            assert bool((gate == (1.0 if granularity == "middleY" else 0.5)).all())
        if family == "bart" or granularity == "middleY":
            for gate in seen_gates(tiny_model("vl_pet", **settings), tiny_batch()):
                assert 0 < float((gate - (1.0 if granularity == "middleY" else 0.5)).abs().max()) < 0.15


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_zero_init_leaves_nothing_but_the_scaled_gate(family):
    """T5's published start: what a sublayer adds is 0.15 of the backbone's, 0.3 for middleY."""
    for granularity, factor in {"large": 0.15, "middleX": 0.15, "middleY": 0.3, "small": 0.15, "none": 0.3}.items():
        settings = {"granularity": granularity, "gate_scale": 0.3, "zero_init": True}
        model = tiny_model("vl_pet", family=family, **settings)
        pairs = seen(encoder_sites(model), model, tiny_batch())
        assert len(pairs) == 4
        for site, (args, out) in zip(encoder_sites(model), pairs, strict=True):
            torch.testing.assert_close(out, factor * site.base(*args))
        for site in decoder_sites(model).values():
            assert not site.bottleneck.up.weight.any()
            assert site.bottleneck.down.weight.any()


def test_a_small_gate_is_the_mean_of_valid_positions():
    model, batch = shaken(tiny_model("vl_pet", granularity="small")), tiny_batch()
    site = encoder_sites(model)[0]
    (((x, hidden), gate),) = seen([site.gate], model, batch)
    each = torch.sigmoid(site.gate.weigh(torch.cat([x, hidden], -1)))
    valid = torch.cat([batch.attention_mask.bool(), torch.ones(3, 36, dtype=torch.bool)], 1)
    for row in range(3):
        torch.testing.assert_close(gate[row, 0], each[row, valid[row]].mean(0))


def test_the_published_mean_depends_on_padding():
    batch = tiny_batch()
    own, legacy = (shaken(tiny_model("vl_pet", granularity="small", legacy_pad_mean=old)) for old in (False, True))
    apart = [
        max(float((one - other).abs().max()) for one, other in zip(*gates, strict=True))
        for gates in ([seen_gates(model, some) for some in (batch, padded(batch, 5))] for model in (own, legacy))
    ]
    assert apart[0] < 1e-5
    assert apart[1] > 1e-3


@pytest.mark.parametrize("granularity", ["middleX", "middleY", "small"])
def test_the_paper_s_forms(granularity):
    model = shaken(tiny_model("vl_pet", granularity=granularity, gate_formula="paper"))
    code = shaken(tiny_model("vl_pet", granularity=granularity))
    assert list(model.trainable()) == list(code.trainable())
    assert not torch.allclose(model(tiny_batch()), code(tiny_batch()), atol=1e-4)
    site = encoder_sites(model)[0]
    if granularity == "middleY":
        torch.testing.assert_close(site.gate(None, torch.zeros(1)), 1 + torch.sigmoid(site.gate.z))
        return
    (_, output), ((_, looked_at), _) = seen([site.base, site.gate], model, tiny_batch())
    assert torch.equal(looked_at, output)


def test_encoder_bottlenecks_are_routed_where_x_r_is_early():
    batch = tiny_batch()
    plain, late, early = (
        shaken(tiny_model("vl_pet", routing))
        for routing in (None, {"function": "mul"}, {"function": "mul", "source": "visual_pooled"})
    )
    states = plain.encode(batch).states
    assert torch.equal(late.encode(batch).states, states)
    assert not torch.allclose(early.encode(batch).states[:, :-1], states)
    assert not torch.allclose(late(batch), plain(batch))


@pytest.mark.parametrize("order", [("vl_pet", "lora"), ("lora", "vl_pet")])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_gates_see_their_input_beside_a_method_that_wraps_where_it_is_read(order, family):
    parts = {name: tiny_config(name, family=family) for name in order}
    lora = parts["lora"].method[0].model_copy(update={"biases": "none", "targets": ("query", "ffn_in")})
    methods = {"lora": lora, "vl_pet": parts["vl_pet"].method[0]}
    model = build_model(parts["vl_pet"].model_copy(update={"method": [methods[name] for name in order]})).eval()
    # an untrained LoRA changes nothing
    alone = tiny_model("vl_pet", family=family)
    state = model.state_dict()
    alone.load_state_dict({name: state[_beside(name, state)] for name in alone.state_dict()})
    torch.testing.assert_close(model(tiny_batch()), alone(tiny_batch()))


def _beside(name: str, state: dict) -> str:
    """The name of a tensor where LoRA stands between it and the site."""
    parent, _, leaf = name.rpartition(".")
    return name if name in state else f"{parent}.base.{leaf}"


def test_a_pickled_copy_has_its_own_taps():
    model = shaken(tiny_model("vl_pet"))
    expected = model(tiny_batch())
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(tiny_batch()), expected)
    for one, other in zip(encoder_sites(model), encoder_sites(copy), strict=True):
        assert one.tap is not other.tap
        with pytest.raises(RuntimeError, match="input was not seen"):
            one.tap.take()


def test_half_precision_arithmetic():
    model = shaken(tiny_model("vl_pet"), 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(tiny_batch())
    torch.testing.assert_close(losses, model(tiny_batch()), atol=0.2, rtol=0.05)


def test_compacters_in_the_modifications_and_plain_gates():
    model = tiny_model("vl_pet", module="compacter", decoder_sites=("cross_attn",), rank=8)
    for site in (*encoder_sites(model), *decoder_sites(model).values()):
        assert isinstance(site.bottleneck.down, PHMLinear)
        assert isinstance(site.bottleneck.up, PHMLinear)
    assert {type(site.gate.up) for site in encoder_sites(model)} == {nn.Linear}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method.rank=90"], "method.num_heads: got 4; must divide rank, and 90 is not a multiple of 4"),
        (["method.num_heads=5"], "method.num_heads: got 5; must divide rank, and 96 is not a multiple of 5"),
        (["method.granularity=middlex"], "method.granularity: got 'middlex'; did you mean 'middleX'"),
        (["method.decoder_sites=[values]"], "did you mean 'value'"),
        (["method.train_layer_norms=both"], "method.train_layer_norms: got 'both'"),
        (["method.gate_rank=0"], "method.gate_rank: got 0"),
        (["method.module=compacter", "method.n=5"], "method.n: 5 does not divide 768"),
    ],
)
def test_bad_settings_are_told(overrides, told):
    with pytest.raises(InputError) as caught:
        build_model(load_config(CONFIGS / "parameters" / "vl_pet_large.yaml", overrides), device="meta")
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["large", "middleX", "middleY", "small", "none"])
def test_recipes_hold_the_published_settings(name):
    bart = load_config(CONFIGS / "experiments" / "vl_pet" / f"{name}.yaml")
    assert (bart.training.lr, bart.training.batch_size, bart.training.epochs) == (1e-3, 500, 20)
    assert bart.tasks["coco_caption"].decoding.max_length == 20
    method = bart.method[0]
    assert (method.granularity, method.rank, method.gate_rank, method.num_heads) == (name, 96, 96, 4)
    assert (method.gate_scale, method.zero_init, method.legacy_pad_mean) == (1.0, False, name == "small")
    if name == "none":
        return
    t5 = load_config(CONFIGS / "experiments" / "vl_pet" / f"t5_{name}.yaml")
    assert (t5.training.lr, t5.training.batch_size, t5.backbone.family) == (3e-4, 300, "t5")
    method = t5.method[0]
    assert (method.granularity, method.rank, method.decoder_rank, method.num_heads) == (name, 192, 96, 4)
    assert (method.gate_scale, method.zero_init, method.legacy_pad_mean) == (0.3, True, name == "small")
