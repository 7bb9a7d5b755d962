"""Prompt tuning: position before the text, token types, reparameterization and initialization."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.routing.pooling import TokenType
from tests.tiny_models import FAMILIES, padded, perturb, tiny_batch, tiny_config, tiny_model

TOKENS = [9, 30, 12]


def prompt_of_tokens(family: str):
    """A model whose prompt is the embeddings of three tokens."""
    model = tiny_model("prompt", family=family, num_tokens=len(TOKENS), reparameterize=False)
    with torch.no_grad():
        model.shared_modules["prompt"]["every_task"][0].weight.copy_(model.lm.get_input_embeddings().weight[TOKENS])
    return model


def prepend_tokens(batch):
    """The same rows with three tokens before their texts."""
    tokens = torch.tensor(TOKENS).expand(len(batch), -1)
    return dataclasses.replace(
        batch,
        input_ids=torch.cat([tokens, batch.input_ids], 1),
        attention_mask=torch.cat([torch.ones_like(tokens), batch.attention_mask], 1),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_of_token_embeddings_acts_as_tokens(family):
    """On T5 exactly so. On BART a prompt has no positions and the text keeps its own: the bare model computes the same
    once its position table is shifted by three rows of zeros.
    """
    model, bare, batch = prompt_of_tokens(family), tiny_model("frozen", family=family), tiny_batch(images=2)
    if family == "bart":
        table = bare.lm.model.encoder.embed_positions.weight.data
        # the first two rows are the offset of transformers
        table[2:] = torch.cat([torch.zeros(len(TOKENS), table.shape[1]), table[2 : -len(TOKENS)]])
    torch.testing.assert_close(model(batch), bare(prepend_tokens(batch)), atol=1e-5, rtol=1e-5)
    losses = model(padded(batch, 4)), model(batch)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    with model.context.task_scope("vqa"):
        states = model.encode(batch).hidden_states
    with bare.context.task_scope("vqa"):
        torch.testing.assert_close(states, bare.encode(prepend_tokens(batch)).hidden_states, atol=1e-5, rtol=1e-5)


def test_bart_embedding_norm_covers_prompt_and_text():
    model, seen = perturb(tiny_model("prompt")), []
    model.lm.model.encoder.layernorm_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = tiny_batch()
    model(batch)
    (normed,) = seen
    assert normed.shape[1] == 5 + batch.input_ids.shape[1]
    assert torch.equal(normed[:, :5], model.methods[0].prompt("vqa").expand(3, -1, -1))
    encoder = model.lm.model.encoder
    text = encoder.embed_tokens(batch.input_ids) + encoder.embed_positions(batch.input_ids)
    assert torch.equal(normed[:, 5:], text)


def test_token_types_of_prompt():
    model, batch = tiny_model("prompt"), tiny_batch(images=2)
    with model.context.task_scope("vqa"):
        types = model.encode(batch).token_types
    text = torch.where(batch.attention_mask != 0, TokenType.TEXT, TokenType.PADDING)
    assert torch.equal(types[:, :5], torch.full((3, 5), TokenType.PROMPT))
    assert torch.equal(types[:, 5:12], text)
    assert torch.equal(types[:, 12:], torch.full((3, 72), TokenType.VISUAL))


@pytest.mark.parametrize(
    ("tokens", "types"),
    [
        ("all", [TokenType.PROMPT, TokenType.TEXT, TokenType.VISUAL]),
        ("text", [TokenType.TEXT]),
        ("visual", [TokenType.VISUAL]),
    ],
)
def test_pooling_distinguishes_prompt_from_text(tokens, types):
    one, two = tiny_config("prompt"), tiny_config("adapter", {"function": "mul", "tokens": tokens})
    config = two.model_copy(update={"method": [*one.method, *two.method]})
    model, batch, seen = perturb(build_model(config).eval()), tiny_batch(), []
    set_x_r = model.context.set_x_r
    model.context.set_x_r = lambda stack, x_r, *valid: (seen.append(x_r), set_x_r(stack, x_r, *valid))
    model(batch)
    with model.context.task_scope("vqa"):
        encoded = model.encode(batch)
    for row, states in enumerate(encoded.hidden_states):
        chosen = torch.stack([encoded.token_types[row] == one for one in types]).any(0)
        torch.testing.assert_close(seen[0][row, 0], states[chosen].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharing", ["single", "per_task"])
def test_prompt_is_mlp_of_table(sharing):
    model = perturb(tiny_model("prompt", sharing=sharing, num_tokens=7, hidden_dim=9))
    prompts = {task: model.methods[0].prompt(task) for task in model.context.tasks}
    assert torch.equal(prompts["vqa"], prompts["nlvr2"]) == (sharing == "single")
    for task, prompt in prompts.items():
        table, first, _, second = model.shared_modules["prompt"]["every_task" if sharing == "single" else task]
        assert first.weight.shape == (9, 16)
        hidden = torch.tanh(table.weight @ first.weight.T + first.bias)
        torch.testing.assert_close(prompt, hidden @ second.weight.T + second.bias)
        assert prompt.shape == (7, 16)


@pytest.mark.parametrize(("family", "std"), [("bart", 0.02), ("t5", 1.0)])
def test_init_is_that_of_the_family(family, std):
    table, first, *_ = tiny_model("prompt", family=family, num_tokens=200).shared_modules["prompt"]["every_task"]
    assert table.weight.std().item() == pytest.approx(std, rel=0.05)
    # torch's default is uniform within 1 / sqrt(16)
    assert first.weight.std().item() == pytest.approx(0.02 if family == "bart" else 0.25 / 3**0.5, rel=0.2)
    assert bool(first.bias.any()) == (family == "t5")


def test_language_model_is_frozen():
    names = tiny_model("prompt", sharing="per_task").trainable_parameters()
    assert {name.split(".")[0] for name in names} == {"visual", "shared_modules"}


def test_routing_is_rejected():
    with pytest.raises(InputError, match="method prompt has no bottleneck to route"):
        tiny_model("prompt", {"function": "mul"})
