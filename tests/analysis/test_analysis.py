"""Are the numbers of an analysis what the model computes: norms, attention, gates, cosines of x_R?"""

import math

import pytest
import torch

from multitask_vl.analysis.attention import attention_maps
from multitask_vl.analysis.gates import gate_map, gate_means
from multitask_vl.analysis.norms import initial_values, norm_changes
from multitask_vl.analysis.x_r_similarity import cosines, routing_states
from multitask_vl.methods.vl_pet import SmallGate
from multitask_vl.models.attention_maps import cross_attentions, eager, recorded
from multitask_vl.models.build import load_tokenizer
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import PADDING, TEXT, VISUAL
from tests.tiny_artifacts import built, whole_config, whole_model, write_words
from tests.tiny_models import shaken, tiny_batch, tiny_model

# ---- norms


@pytest.mark.parametrize("name", [name for name in METHODS.names() if METHODS.get(name).__module__.startswith("multi")])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_norms_are_those_of_all_that_a_site_trains(name, family):
    model = tiny_model(name, family=family)
    initial = initial_values(model)
    assert all(row["change"] == 0 for row in norm_changes(model, initial))
    rows = norm_changes(shaken(model), initial)
    assert {row["stack"] for row in rows} <= {"encoder", "decoder"}
    if name == "adapter":
        assert {row["part"] for row in rows} == {"W_down", "W_up"}
        change = math.sqrt(sum(row["change"] ** 2 for row in rows if row["part"] == "W_down"))
        downs = [n for n in initial if ".down." in n and n.endswith("weight")]
        whole = torch.cat([(model.trainable()[n] - initial[n]).flatten() for n in downs]).norm()
        assert change == pytest.approx(whole.item(), rel=1e-5)
    if name == "vl_pet":
        assert {row["part"] for row in rows} == {"W_down", "W_up", "gate"}
    if name == "bitfit" and family == "bart":
        assert {row["part"] for row in rows} == {"bias"}


def test_each_task_has_norms_of_its_own():
    model = tiny_model("adapter", sharing="per_task")
    initial = initial_values(model)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if ".nlvr2." in name:
                parameter += 1
    rows = norm_changes(model, initial)
    assert {row["task"] for row in rows} == {"vqa", "nlvr2"}
    assert all((row["change"] > 0) == (row["task"] == "nlvr2") for row in rows)


# ---- attention


@pytest.mark.parametrize("routing", [{}, {"function": "mul", "source": "visual_pooled"}])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_maps_are_the_weights_with_which_values_are_mixed(tmp_path, family, routing):
    words = write_words(tmp_path / "words")
    model = shaken(built(whole_config(words, "adapter", routing, family)), spread=0.02)
    (module, *_) = cross_attentions(model)
    value = module.v_proj if family == "bart" else module.v
    output = module.out_proj if family == "bart" else module.o
    seen = {}
    value.register_forward_hook(lambda _, __, out: seen.update(values=out))
    output.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    batch, ids = tiny_batch(images=2), torch.tensor([[5, 6, 7], [5, 6, 1], [5, 1, 1]])
    with torch.no_grad(), model.context.of("vqa"):
        before = model.decode(model.encode(batch), ids)
        with eager(model.lm), recorded([module]) as weights:
            encoded = model.encode(batch)
            after = model.decode(encoded, ids)
        assert model.lm.config._attn_implementation != "eager"
    assert torch.allclose(before, after, atol=1e-5)
    (found,) = weights
    values = seen["values"].unflatten(-1, (found.shape[1], -1)).transpose(1, 2)
    assert torch.allclose((found @ values).transpose(1, 2).flatten(2), seen["mixed"], atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5)
    padding = encoded.kinds[:, : found.shape[-1]] == PADDING
    assert found.transpose(1, 3)[padding].abs().max() < 1e-6


def test_every_word_has_a_map_a_picture(tmp_path):
    words = write_words(tmp_path / "words")
    model = whole_model(words, "adapter")
    tokenizer = load_tokenizer(model.config.backbone)
    texts = ["red blue red", "blue", ""]
    rows = attention_maps(model, tokenizer, tiny_batch(images=2), texts)
    assert [row["words"] for row in rows] == [["red", "blue", "red"], ["blue"], []]
    for row in rows:
        assert row["grid"] == [6, 6]
        for maps, share in zip(row["maps"], row["on_pictures"], strict=True):
            assert [len(one) for one in maps] == [36, 36]
            assert sum(map(sum, maps)) == pytest.approx(share, abs=0.005)
            assert 0 < share < 1
    alone = attention_maps(model, tokenizer, tiny_batch(images=2).select(torch.tensor([1])), ["blue"])
    assert alone[0]["on_pictures"] == pytest.approx(rows[1]["on_pictures"], abs=1e-3)


# ---- gates


@pytest.mark.parametrize("granularity", ["large", "middleX", "middleY", "small"])
def test_gates_are_what_the_formulas_give(granularity):
    still = tiny_model("vl_pet", granularity=granularity, zero_init=True)
    value = 1.0 if granularity == "middleY" else 0.5
    for row in gate_means(still, tiny_batch()):
        assert (row["words"], row["cells"]) == pytest.approx((value, value))
    model = shaken(still)
    rows = gate_means(model, tiny_batch())
    assert [(row["layer"], row["sublayer"]) for row in rows] == [(i, s) for i in range(2) for s in ("self_attn", "ffn")]
    first = model.lm.model.encoder.layers[0].self_attn.out_proj.gate
    if granularity == "middleY":
        assert rows[0]["words"] == pytest.approx((1 + first.z).mean().item(), rel=1e-5)
    elif isinstance(first, SmallGate):
        assert rows[0]["words"] == pytest.approx(rows[0]["cells"], abs=0.2)
    else:
        assert rows[0]["words"] != pytest.approx(rows[0]["cells"], abs=1e-4)


def test_a_map_names_each_position_and_channel(tmp_path):
    words = write_words(tmp_path / "words")
    model = whole_model(words, "vl_pet", granularity="large")
    tokenizer = load_tokenizer(model.config.backbone)
    batch = tiny_batch()
    found = gate_map(model, tokenizer, batch, row=1)
    length = int(batch.attention_mask[1].sum())
    assert len(found["positions"]) == length + 36 == len(found["values"])
    assert found["positions"][length:] == [f"cell {i}" for i in range(36)]
    assert found["channels"] == list(range(16))
    seen = {}
    gate = model.lm.model.encoder.layers[0].self_attn.out_proj.gate
    gate.register_forward_hook(lambda _, __, out: seen.update(out=out))
    with torch.no_grad(), model.context.of("vqa"):
        kinds = model.encode(batch).kinds[1]
    kept = (kinds == TEXT) | (kinds == VISUAL)
    assert torch.allclose(torch.tensor(found["values"]), seen["out"][1][kept], atol=1e-4)
    pair = gate_map(model, tokenizer, tiny_batch(images=2))
    assert pair["positions"][-36:] == [f"picture 2, cell {i}" for i in range(36)]
    assert gate_map(tiny_model("adapter"), tokenizer, tiny_batch()) is None
    assert gate_means(tiny_model("adapter"), tiny_batch()) == []


# ---- x_R


@pytest.mark.parametrize(
    "routing",
    [
        {"function": "none"},
        {"function": "mul"},
        {"function": "mm1", "pool": "visual"},
        {"function": "mul", "source": "visual_pooled"},
    ],
)
def test_x_r_is_what_reaches_the_decoder(routing):
    model = shaken(tiny_model("adapter", routing))
    batch = tiny_batch()
    states = routing_states(model, batch)
    assert states.shape == (3, 16)
    with torch.no_grad(), model.context.of("vqa"):
        encoded = model.encode(batch)
        _, projected = model.visual(batch.features, model.lm.get_input_embeddings().weight)
    for row in range(3):
        kinds = encoded.kinds[row]
        where = kinds == VISUAL if routing.get("pool") == "visual" else kinds != PADDING
        expected = encoded.states[row][where].mean(0)
        if routing.get("source") == "visual_pooled":
            expected = projected[row].mean(0)
        assert torch.allclose(states[row], expected, atol=1e-5)


def test_cosines_are_means_over_pairs_of_different_examples():
    torch.manual_seed(3)
    states = {"a": torch.randn(4, 6) + 1, "b": torch.randn(3, 6) - 1}
    found = cosines(states)
    assert (found["tasks"], found["examples"]) == (["a", "b"], [4, 3])
    middle = (states["a"].mean(0) + states["b"].mean(0)) / 2
    for name, shift in (("raw", 0.0), ("centred", middle)):
        for i, one in enumerate(states.values()):
            for j, other in enumerate(states.values()):
                pairs = [
                    torch.cosine_similarity(x - shift, y - shift, dim=0).item()
                    for m, x in enumerate(one)
                    for n, y in enumerate(other)
                    if i != j or m != n
                ]
                assert found[name][i][j] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
