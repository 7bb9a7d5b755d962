"""Tests of the analysis numbers against the model: norms, cross-attention, gates, cosines of x_R."""

import math

import pytest
import torch

from multitask_vl.analysis.attention import attention_maps
from multitask_vl.analysis.gates import gate_map, gate_means
from multitask_vl.analysis.norms import initial_values, norm_changes
from multitask_vl.analysis.x_r_similarity import cosines, pooled_x_r
from multitask_vl.methods.vl_pet import SmallGate
from multitask_vl.models.attention_maps import cross_attention_modules, eager_attention, record_attention
from multitask_vl.models.build import load_tokenizer
from multitask_vl.registry import METHODS
from multitask_vl.routing.pooling import TokenType
from tests.tiny_artifacts import artifact_config, artifact_model, build_from_config, write_tokenizer
from tests.tiny_models import perturb, tiny_batch, tiny_model

# ---- norms


@pytest.mark.parametrize("name", [name for name in METHODS.names() if METHODS.get(name).__module__.startswith("multi")])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_norm_changes_cover_trained_parameters(name, family):
    model = tiny_model(name, family=family)
    initial = initial_values(model)
    assert all(row["change"] == 0 for row in norm_changes(model, initial))
    rows = norm_changes(perturb(model), initial)
    assert {row["stack"] for row in rows} <= {"encoder", "decoder"}
    if name == "adapter":
        assert {row["part"] for row in rows} == {"W_down", "W_up"}
        change = math.sqrt(sum(row["change"] ** 2 for row in rows if row["part"] == "W_down"))
        downs = [n for n in initial if ".down." in n and n.endswith("weight")]
        total = torch.cat([(model.trainable_parameters()[n] - initial[n]).flatten() for n in downs]).norm()
        assert change == pytest.approx(total.item(), rel=1e-5)
    if name == "vl_pet":
        assert {row["part"] for row in rows} == {"W_down", "W_up", "gate"}
    if name == "bitfit" and family == "bart":
        assert {row["part"] for row in rows} == {"bias"}


def test_norm_changes_separate_tasks():
    model = tiny_model("adapter", sharing="per_task")
    initial = initial_values(model)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if ".nlvr2." in name:
                parameter += 1
    rows = norm_changes(model, initial)
    assert {row["task"] for row in rows} == {"vqa", "nlvr2"}
    assert all((row["change"] > 0) == (row["task"] == "nlvr2") for row in rows)


# ---- attention


@pytest.mark.parametrize("routing", [{}, {"function": "mul", "source": "visual"}])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_recorded_attention_weights_mix_values(tmp_path, family, routing):
    tokenizer_dir = write_tokenizer(tmp_path / "tokenizer")
    model = perturb(build_from_config(artifact_config(tokenizer_dir, "adapter", routing, family)), std=0.02)
    (module, *_) = cross_attention_modules(model)
    value = module.v_proj if family == "bart" else module.v
    output = module.out_proj if family == "bart" else module.o
    captured = {}
    value.register_forward_hook(lambda _, __, out: captured.update(values=out))
    output.register_forward_pre_hook(lambda _, args: captured.update(mixed=args[0]))
    batch, ids = tiny_batch(images=2), torch.tensor([[5, 6, 7], [5, 6, 1], [5, 1, 1]])
    with torch.no_grad(), model.context.task_scope("vqa"):
        before = model.decode(model.encode(batch), ids)
        with eager_attention(model.lm), record_attention([module]) as recorded:
            encoded = model.encode(batch)
            after = model.decode(encoded, ids)
        assert model.lm.config._attn_implementation != "eager"
    assert torch.allclose(before, after, atol=1e-5)
    (weights,) = recorded
    values = captured["values"].unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    assert torch.allclose((weights @ values).transpose(1, 2).flatten(2), captured["mixed"], atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    padding = encoded.token_types[:, : weights.shape[-1]] == TokenType.PADDING
    assert weights.transpose(1, 3)[padding].abs().max() < 1e-6


def test_attention_maps_per_word_and_image(tmp_path):
    model = artifact_model(write_tokenizer(tmp_path / "tokenizer"), "adapter")
    tokenizer = load_tokenizer(model.config.backbone)
    texts = ["red blue red", "blue", ""]
    rows = attention_maps(model, tokenizer, tiny_batch(images=2), texts)
    assert [row["words"] for row in rows] == [["red", "blue", "red"], ["blue"], []]
    for row in rows:
        assert row["grid"] == [6, 6]
        for maps, share in zip(row["maps"], row["image_share"], strict=True):
            assert [len(of_image) for of_image in maps] == [36, 36]
            assert sum(map(sum, maps)) == pytest.approx(share, abs=0.005)
            assert 0 < share < 1
    single = attention_maps(model, tokenizer, tiny_batch(images=2).select(torch.tensor([1])), ["blue"])
    assert single[0]["image_share"] == pytest.approx(rows[1]["image_share"], abs=1e-3)


# ---- gates


@pytest.mark.parametrize("granularity", ["large", "middleX", "middleY", "small"])
def test_gate_means_match_formulas(granularity):
    initial = tiny_model("vl_pet", granularity=granularity, zero_init=True)
    value = 1.0 if granularity == "middleY" else 0.5
    for row in gate_means(initial, tiny_batch()):
        assert (row["text"], row["visual"]) == pytest.approx((value, value))
    model = perturb(initial)
    rows = gate_means(model, tiny_batch())
    assert [(row["layer"], row["sublayer"]) for row in rows] == [(i, s) for i in range(2) for s in ("self_attn", "ffn")]
    first = model.lm.model.encoder.layers[0].self_attn.out_proj.gate
    if granularity == "middleY":
        assert rows[0]["text"] == pytest.approx((1 + first.z).mean().item(), rel=1e-5)
    elif isinstance(first, SmallGate):
        assert rows[0]["text"] == pytest.approx(rows[0]["visual"], abs=0.2)
    else:
        assert rows[0]["text"] != pytest.approx(rows[0]["visual"], abs=1e-4)


def test_gate_map_names_positions_and_channels(tmp_path):
    model = artifact_model(write_tokenizer(tmp_path / "tokenizer"), "vl_pet", granularity="large")
    tokenizer = load_tokenizer(model.config.backbone)
    batch = tiny_batch()
    gates = gate_map(model, tokenizer, batch, row=1)
    length = int(batch.attention_mask[1].sum())
    assert len(gates["positions"]) == length + 36 == len(gates["values"])
    assert gates["positions"][length:] == [f"visual {i}" for i in range(36)]
    assert gates["channels"] == list(range(16))
    captured = {}
    gate = model.lm.model.encoder.layers[0].self_attn.out_proj.gate
    gate.register_forward_hook(lambda _, __, out: captured.update(out=out))
    with torch.no_grad(), model.context.task_scope("vqa"):
        token_types = model.encode(batch).token_types[1]
    kept = (token_types == TokenType.TEXT) | (token_types == TokenType.VISUAL)
    assert torch.allclose(torch.tensor(gates["values"]), captured["out"][1][kept], atol=1e-4)
    pair = gate_map(model, tokenizer, tiny_batch(images=2))
    assert pair["positions"][-36:] == [f"image 2, visual {i}" for i in range(36)]
    assert gate_map(tiny_model("adapter"), tokenizer, tiny_batch()) is None
    assert gate_means(tiny_model("adapter"), tiny_batch()) == []


# ---- x_R


@pytest.mark.parametrize(
    "routing",
    [
        {"function": "none"},
        {"function": "mul"},
        {"function": "mm1", "tokens": "visual"},
        {"function": "mul", "source": "visual"},
    ],
)
def test_pooled_x_r_is_input_of_decoder(routing):
    model = perturb(tiny_model("adapter", routing))
    batch = tiny_batch()
    x_r = pooled_x_r(model, batch)
    assert x_r.shape == (3, 16)
    with torch.no_grad(), model.context.task_scope("vqa"):
        encoded = model.encode(batch)
        _, projected = model.visual(batch.features, model.lm.get_input_embeddings().weight)
    for row in range(3):
        token_types = encoded.token_types[row]
        visual_only = routing.get("tokens") == "visual"
        where = token_types == TokenType.VISUAL if visual_only else token_types != TokenType.PADDING
        expected = encoded.hidden_states[row][where].mean(0)
        if routing.get("source") == "visual":
            expected = projected[row].mean(0)
        assert torch.allclose(x_r[row], expected, atol=1e-5)


def test_cosines_average_pairs_of_different_examples():
    torch.manual_seed(3)
    x_r = {"a": torch.randn(4, 6) + 1, "b": torch.randn(3, 6) - 1}
    table = cosines(x_r)
    assert (table["tasks"], table["examples"]) == (["a", "b"], [4, 3])
    center = (x_r["a"].mean(0) + x_r["b"].mean(0)) / 2
    for name, shift in (("raw", 0.0), ("centered", center)):
        for i, one in enumerate(x_r.values()):
            for j, other in enumerate(x_r.values()):
                pairs = [
                    torch.cosine_similarity(x - shift, y - shift, dim=0).item()
                    for m, x in enumerate(one)
                    for n, y in enumerate(other)
                    if i != j or m != n
                ]
                assert table[name][i][j] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
