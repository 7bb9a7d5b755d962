"""Do prompts stand before the text, without moving it, and count as what they are?"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.routing.context import PADDING, PROMPT, TEXT, VISUAL
from tests.tiny_models import FAMILIES, padded, shaken, tiny_batch, tiny_config, tiny_model

WORDS = [9, 30, 12]


def as_words(family: str):
    """A model whose prompts are the embeddings of three words."""
    model = tiny_model("prompt", family=family, length=len(WORDS), reparametrize=False)
    with torch.no_grad():
        model.beside["prompt"]["every_task"][0].weight.copy_(model.lm.get_input_embeddings().weight[WORDS])
    return model


def with_words(batch):
    """The same rows with three words before their texts."""
    words = torch.tensor(WORDS).expand(len(batch), -1)
    return dataclasses.replace(
        batch,
        input_ids=torch.cat([words, batch.input_ids], 1),
        attention_mask=torch.cat([torch.ones_like(words), batch.attention_mask], 1),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_are_words_act_as_words(family):
    """On T5 they are words in every respect. On BART they have no positions, and the text keeps its own: what the bare
    model computes once its position table is moved by three rows and these are zero.
    """
    model, bare, batch = as_words(family), tiny_model("frozen", family=family), tiny_batch(images=2)
    if family == "bart":
        table = bare.lm.model.encoder.embed_positions.weight.data
        # the first two rows are the library's offset
        table[2:] = torch.cat([torch.zeros(len(WORDS), table.shape[1]), table[2 : -len(WORDS)]])
    torch.testing.assert_close(model(batch), bare(with_words(batch)), atol=1e-5, rtol=1e-5)
    losses = model(padded(batch, 4)), model(batch)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    with model.context.of("vqa"):
        states = model.encode(batch).states
    with bare.context.of("vqa"):
        torch.testing.assert_close(states, bare.encode(with_words(batch)).states, atol=1e-5, rtol=1e-5)


def test_bart_norms_prompts_and_text_but_not_cells():
    model, seen = shaken(tiny_model("prompt")), []
    model.lm.model.encoder.layernorm_embedding.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = tiny_batch()
    model(batch)
    (normed,) = seen
    assert normed.shape[1] == 5 + batch.input_ids.shape[1]
    assert torch.equal(normed[:, :5], model.methods[0].prompt("vqa").expand(3, -1, -1))
    encoder = model.lm.model.encoder
    words = encoder.embed_tokens(batch.input_ids) + encoder.embed_positions(batch.input_ids)
    assert torch.equal(normed[:, 5:], words)


def test_positions_know_what_a_prompt_is():
    model, batch = tiny_model("prompt"), tiny_batch(images=2)
    with model.context.of("vqa"):
        kinds = model.encode(batch).kinds
    text = torch.where(batch.attention_mask != 0, TEXT, PADDING)
    assert torch.equal(kinds[:, :5], torch.full((3, 5), PROMPT))
    assert torch.equal(kinds[:, 5:12], text)
    assert torch.equal(kinds[:, 12:], torch.full((3, 72), VISUAL))


@pytest.mark.parametrize(("pool", "wanted"), [("all", [PROMPT, TEXT, VISUAL]), ("text", [TEXT]), ("visual", [VISUAL])])
def test_pooling_for_another_method_tells_prompts_from_words(pool, wanted):
    one, two = tiny_config("prompt"), tiny_config("adapter", {"function": "mul", "pool": pool})
    config = two.model_copy(update={"method": [*one.method, *two.method]})
    model, batch, seen = shaken(build_model(config).eval()), tiny_batch(), []
    put = model.context.put
    model.context.put = lambda stack, x_r, *valid: (seen.append(x_r), put(stack, x_r, *valid))
    model(batch)
    with model.context.of("vqa"):
        encoded = model.encode(batch)
    for row, states in enumerate(encoded.states):
        chosen = torch.stack([encoded.kinds[row] == kind for kind in wanted]).any(0)
        torch.testing.assert_close(seen[0][row, 0], states[chosen].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharing", ["single", "per_task"])
def test_prompts_are_the_mlp_of_their_table(sharing):
    model = shaken(tiny_model("prompt", sharing=sharing, length=7, mid=9))
    prompts = {task: model.methods[0].prompt(task) for task in model.context.tasks}
    assert torch.equal(prompts["vqa"], prompts["nlvr2"]) == (sharing == "single")
    for task, made in prompts.items():
        table, first, _, second = model.beside["prompt"]["every_task" if sharing == "single" else task]
        assert first.weight.shape == (9, 16)
        hidden = torch.tanh(table.weight @ first.weight.T + first.bias)
        torch.testing.assert_close(made, hidden @ second.weight.T + second.bias)
        assert made.shape == (7, 16)


@pytest.mark.parametrize(("family", "spread"), [("bart", 0.02), ("t5", 1.0)])
def test_values_at_the_start_are_the_familys(family, spread):
    table, first, *_ = tiny_model("prompt", family=family, length=200).beside["prompt"]["every_task"]
    assert table.weight.std().item() == pytest.approx(spread, rel=0.05)
    # torch's default is uniform within 1 / sqrt(16)
    assert first.weight.std().item() == pytest.approx(0.02 if family == "bart" else 0.25 / 3**0.5, rel=0.2)
    assert bool(first.bias.any()) == (family == "t5")


def test_nothing_of_the_language_model_is_trained():
    names = tiny_model("prompt", sharing="per_task").trainable()
    assert {name.split(".")[0] for name in names} == {"visual", "beside"}


def test_routing_is_refused():
    with pytest.raises(InputError, match="method prompt has no bottleneck in which to route"):
        tiny_model("prompt", {"function": "mul"})
