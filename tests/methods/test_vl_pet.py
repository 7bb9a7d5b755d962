"""VL-PET: gates, heads, decoder sites and parameter counts, as in its paper and code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.methods.compacter import PHMLinear
from multitask_vl.methods.vl_pet import DecoderSite, EncoderSite
from multitask_vl.models.build import build_model
from tests.tiny_models import padded, perturb, tiny_batch, tiny_config, tiny_model

EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiments" / "vl_pet"
GRANULARITIES = ("large", "middleX", "middleY", "small", "none")


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
        ((), set(), None),
    ],
)
def test_decoder_sites(sites, leaves, parallel):
    found = decoder_sites(tiny_model("vl_pet", decoder_sites=sites))
    assert set(found) == {f"model.decoder.layers.{layer}.{leaf}" for layer in range(2) for leaf in leaves}
    assert {site.parallel for site in found.values()} <= {parallel}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_value_bottleneck_reads_encoder_output(family):
    """V = W_v E + b_v + up(gelu(down(E))); the bottleneck of a decoder sublayer reads its output."""
    model, batch = perturb(tiny_model("vl_pet", family=family, decoder_sites=("value", "ffn"))), tiny_batch()
    for site in decoder_sites(model).values():
        x = torch.randn(2, 5, site.base.in_features)
        with model.context.task_scope("vqa"):
            inner = x if site.parallel else site.base(x)
            expected = nn.functional.gelu(site.bottleneck.down(inner), approximate="tanh")
            torch.testing.assert_close(site(x), site.base(x) + site.bottleneck.up(expected))
    value = next(site for site in decoder_sites(model).values() if site.parallel)
    (((encoder_output,), _),) = record([value], model, batch)
    torch.testing.assert_close(encoder_output, model.encode(batch).hidden_states)


def test_heads_are_one_linear_layer():
    """Concatenated heads d -> r / N before an element-wise activation; only the initial values could differ."""
    site = encoder_sites(perturb(tiny_model("vl_pet")))[0]
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
def record(modules: list[nn.Module], model: nn.Module, batch) -> list[tuple[tuple, torch.Tensor]]:
    """Arguments and outputs of modules on a batch, in the order of their calls."""
    found = []
    handles = [module.register_forward_hook(lambda _, args, out: found.append((args, out))) for module in modules]
    model(batch)
    for handle in handles:
        handle.remove()
    return found


def record_gates(model: nn.Module, batch) -> list[torch.Tensor]:
    """Outputs of all gates."""
    return [gate for _, gate in record([site.gate for site in encoder_sites(model)], model, batch)]


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("large", (3, 43, 16)), ("middleX", (3, 43, 1)), ("middleY", (16,)), ("small", (3, 1, 1))],
)
def test_gate_shape(granularity, shape):
    gates = record_gates(perturb(tiny_model("vl_pet", granularity=granularity)), tiny_batch())
    assert [tuple(gate.shape) for gate in gates] == [shape] * 4


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_initial_gates(family):
    """Close to a half, or to 1 for middleY; exactly so with zero_init, for any initial values of the family."""
    for granularity in GRANULARITIES[:-1]:
        settings = {"family": family, "granularity": granularity}
        for gate in record_gates(tiny_model("vl_pet", zero_init=True, **settings), tiny_batch()):
            assert bool((gate == (1.0 if granularity == "middleY" else 0.5)).all())
        if family == "bart" or granularity == "middleY":
            for gate in record_gates(tiny_model("vl_pet", **settings), tiny_batch()):
                assert 0 < float((gate - (1.0 if granularity == "middleY" else 0.5)).abs().max()) < 0.15


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_zero_init_scales_sublayer_outputs(family):
    """Published for T5: initially, a sublayer's output is 0.15 of the backbone's, 0.3 for middleY."""
    for granularity, factor in {"large": 0.15, "middleX": 0.15, "middleY": 0.3, "small": 0.15, "none": 0.3}.items():
        settings = {"granularity": granularity, "gate_scale": 0.3, "zero_init": True}
        model = tiny_model("vl_pet", family=family, **settings)
        pairs = record(encoder_sites(model), model, tiny_batch())
        assert len(pairs) == 4
        for site, (args, out) in zip(encoder_sites(model), pairs, strict=True):
            torch.testing.assert_close(out, factor * site.base(*args))
        for site in decoder_sites(model).values():
            assert not site.bottleneck.up.weight.any()
            assert site.bottleneck.down.weight.any()


def test_small_gate_is_mean_over_valid_positions():
    model, batch = perturb(tiny_model("vl_pet", granularity="small")), tiny_batch()
    site = encoder_sites(model)[0]
    (((x, hidden), gate),) = record([site.gate], model, batch)
    values = torch.sigmoid(site.gate.gate_proj(torch.cat([x, hidden], -1)))
    valid = torch.cat([batch.attention_mask.bool(), torch.ones(3, 36, dtype=torch.bool)], 1)
    for row in range(3):
        torch.testing.assert_close(gate[row, 0], values[row, valid[row]].mean(0))


def test_mean_over_padding_depends_on_padding():
    batch = tiny_batch()
    models = (perturb(tiny_model("vl_pet", granularity="small", mean_over_padding=over)) for over in (False, True))
    differences = [
        max(float((one - other).abs().max()) for one, other in zip(*gates, strict=True))
        for gates in ([record_gates(model, rows) for rows in (batch, padded(batch, 5))] for model in models)
    ]
    assert differences[0] < 1e-5
    assert differences[1] > 1e-3


@pytest.mark.parametrize("granularity", ["middleX", "middleY", "small"])
def test_gate_formula_of_the_paper(granularity):
    model = perturb(tiny_model("vl_pet", granularity=granularity, gate_formula="paper"))
    code = perturb(tiny_model("vl_pet", granularity=granularity))
    assert list(model.trainable_parameters()) == list(code.trainable_parameters())
    assert not torch.allclose(model(tiny_batch()), code(tiny_batch()), atol=1e-4)
    site = encoder_sites(model)[0]
    if granularity == "middleY":
        torch.testing.assert_close(site.gate(None, torch.zeros(1)), 1 + torch.sigmoid(site.gate.z))
        return
    (_, output), ((_, gate_input), _) = record([site.base, site.gate], model, tiny_batch())
    assert torch.equal(gate_input, output)


def test_visual_x_r_routes_encoder_bottlenecks():
    batch = tiny_batch()
    plain, late, early = (
        perturb(tiny_model("vl_pet", routing))
        for routing in (None, {"function": "mul"}, {"function": "mul", "source": "visual"})
    )
    states = plain.encode(batch).hidden_states
    assert torch.equal(late.encode(batch).hidden_states, states)
    assert not torch.allclose(early.encode(batch).hidden_states[:, :-1], states)
    assert not torch.allclose(late(batch), plain(batch))


@pytest.mark.parametrize("order", [("vl_pet", "lora"), ("lora", "vl_pet")])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_gates_combine_with_lora_on_captured_layers(order, family):
    configs = {name: tiny_config(name, family=family) for name in order}
    lora = configs["lora"].method[0].model_copy(update={"biases": "none", "targets": ("query", "ffn_in")})
    methods = {"lora": lora, "vl_pet": configs["vl_pet"].method[0]}
    model = build_model(configs["vl_pet"].model_copy(update={"method": [methods[name] for name in order]})).eval()
    # an untrained LoRA changes nothing
    alone = tiny_model("vl_pet", family=family)
    state = model.state_dict()
    alone.load_state_dict({name: state[_name_with_lora(name, state)] for name in alone.state_dict()})
    torch.testing.assert_close(model(tiny_batch()), alone(tiny_batch()))


def _name_with_lora(name: str, state: dict) -> str:
    """The name of a tensor in a model in which LoRA wraps the site."""
    parent, _, leaf = name.rpartition(".")
    return name if name in state else f"{parent}.base.{leaf}"


def test_pickled_copy_has_its_own_input_captures():
    model = perturb(tiny_model("vl_pet"))
    expected = model(tiny_batch())
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(tiny_batch()), expected)
    for one, other in zip(encoder_sites(model), encoder_sites(copy), strict=True):
        assert one.captured is not other.captured
        with pytest.raises(RuntimeError, match="no sublayer input was captured"):
            one.captured.pop()


def test_half_precision_is_close_to_full():
    model = perturb(tiny_model("vl_pet"), 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(tiny_batch())
    torch.testing.assert_close(losses, model(tiny_batch()), atol=0.2, rtol=0.05)


def test_compacter_type_keeps_linear_gates():
    model = tiny_model("vl_pet", adapter_type="compacter", decoder_sites=("cross_attn",), rank=8)
    for site in (*encoder_sites(model), *decoder_sites(model).values()):
        assert isinstance(site.bottleneck.down, PHMLinear)
        assert isinstance(site.bottleneck.up, PHMLinear)
    assert {type(site.gate.up) for site in encoder_sites(model)} == {nn.Linear}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.rank=90"], "method.num_heads: got 4; must divide rank, and 90 is not a multiple of 4"),
        (["method.num_heads=5"], "method.num_heads: got 5; must divide rank, and 96 is not a multiple of 5"),
        (["method.granularity=middlex"], "method.granularity: got 'middlex'; did you mean 'middleX'"),
        (["method.decoder_sites=[values]"], "did you mean 'value'"),
        (["method.train_layer_norms=both"], "method.train_layer_norms: got 'both'"),
        (["method.gate_rank=0"], "method.gate_rank: got 0"),
    ],
)
def test_invalid_settings_are_reported(overrides, message):
    with pytest.raises(InputError) as caught:
        load_config(EXPERIMENTS / "large.yaml", overrides)
    assert message in str(caught.value)


def test_phm_dim_that_does_not_fit_is_reported():
    with pytest.raises(InputError, match=r"method\.phm_dim: 5 does not divide 16"):
        tiny_model("vl_pet", adapter_type="compacter", phm_dim=5)


@pytest.mark.parametrize("name", ["large", "middleX", "middleY", "small", "none"])
def test_experiments_have_published_settings(name):
    bart = load_config(EXPERIMENTS / f"{name}.yaml")
    assert (bart.training.lr, bart.training.batch_size, bart.training.epochs) == (1e-3, 500, 20)
    assert bart.tasks["coco_caption"].decoding.max_length == 20
    method = bart.method[0]
    assert (method.granularity, method.rank, method.gate_rank, method.num_heads) == (name, 96, 96, 4)
    assert (method.gate_scale, method.zero_init, method.mean_over_padding) == (1.0, False, name == "small")
    if name == "none":
        return
    t5 = load_config(EXPERIMENTS / f"t5_{name}.yaml")
    assert (t5.training.lr, t5.training.batch_size, t5.backbone.family) == (3e-4, 300, "t5")
    method = t5.method[0]
    assert (method.granularity, method.rank, method.decoder_rank, method.num_heads) == (name, 192, 96, 4)
    assert (method.gate_scale, method.zero_init, method.mean_over_padding) == (0.3, True, name == "small")
