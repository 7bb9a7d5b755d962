"""Properties of every method, with every sharing and routing function, on every backbone family.

The cases come from the registries (`tests.method_cases`): a new method or routing function is tested without a change
here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.errors import InputError
from multitask_vl.models.decoding.generation import generate
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.registry import METHODS
from tests.method_cases import ALL_SETTINGS, CASES, METHOD_CASES, Case
from tests.tiny_models import TASKS, loss_of, padded, perturb, tiny_batch, tiny_model

NEVER_MOVES = {"visual.box.weight": "the published block passes zero boxes to this layer, so its gradient is zero"}


def parametrize(cases: list[Case]):
    """Run a test for each case."""
    return pytest.mark.parametrize("case", cases, ids=[case.label for case in cases])


ALL = parametrize(CASES)
ANY_ROUTING = parametrize(METHOD_CASES)
"""For properties that do not depend on which routing function is used."""
SHARED_DOWN = [case for case in ALL_SETTINGS if case.is_routed and dict(case.settings).get("mapping") != "split"]
"""Cases in which x_R uses the down-projection of x."""


@functools.cache
def perturbed(case: Case) -> VLSeq2Seq:
    """A model away from its initial values; shared by the tests, which must not change it."""
    return perturb(case.model())


@functools.cache
@torch.no_grad()
def frozen_loss(family: str, task: str) -> torch.Tensor:
    """Losses of the bare backbone."""
    return tiny_model("frozen", family=family)(tiny_batch(task))


@parametrize([case for case in METHOD_CASES if METHODS.get(case.method).identity is not None])
@torch.no_grad()  # with gradients, T5's attention takes another kernel where its position tables are trained
def test_identity_setting_equals_backbone(case):
    model = case.model(**METHODS.get(case.method).identity)
    for task in TASKS:
        assert torch.equal(model(tiny_batch(task)), frozen_loss(case.family, task))


@ALL
def test_exactly_the_trainable_parameters_change(case):
    expected, changed = set(perturbed(case).trainable_parameters()) - set(NEVER_MOVES), set()
    for seed in (None, 12, 13, 14):
        # routed values of one sign for all tokens can switch off a ReLU, but not with every choice of weights
        model = copy.deepcopy(perturbed(case)) if seed is None else perturb(case.model(), seed=seed)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainable = model.trainable_parameters()
        optimizer = torch.optim.AdamW(trainable.values(), lr=0.01, weight_decay=0.0)
        loss_of(model, tiny_batch(TASKS[0])).backward()
        other_task = {name for name in before if f".{TASKS[1]}." in name}
        assert all(trainable[name].grad is None for name in other_task), "a step reaches the other task's tensors"
        loss_of(model, tiny_batch(TASKS[1], images=2)).backward()
        optimizer.step()
        changed |= {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        if changed >= expected:
            break
    assert changed == expected
    if "sharing" in dict(case.settings):
        assert bool(other_task) == (dict(case.settings)["sharing"] != "single")


@parametrize(SHARED_DOWN)
def test_routing_adds_no_parameters(case):
    bare = tiny_model(**case.arguments() | {"routing": None})
    assert list(bare.trainable_parameters()) == list(perturbed(case).trainable_parameters())
    assert bare.parameter_counts() == perturbed(case).parameter_counts()


@ALL
@torch.no_grad()
def test_padding_changes_nothing(case, monkeypatch):
    model, batch = perturbed(case), tiny_batch()
    valid_rows = []
    set_x_r = model.context.set_x_r

    def record(stack: str, x_r: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        valid_rows.append(x_r if valid is None else x_r[valid])
        set_x_r(stack, x_r, valid)

    monkeypatch.setattr(model.context, "set_x_r", record)
    losses = model(batch), model(padded(batch, 5))
    torch.testing.assert_close(*losses, atol=2e-5, rtol=1e-5)
    half = len(valid_rows) // 2
    for short, long in zip(valid_rows[:half], valid_rows[half:], strict=True):
        torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    with model.context.task_scope(batch.task):
        assert bool(valid_rows) == model.context.needs_x_r


@ANY_ROUTING
def test_gradient_checkpointing_changes_nothing(case):
    model, batch = copy.deepcopy(perturbed(case)).train(), tiny_batch(images=2)
    calls = []
    for site in model.methods[0].site_index.sites:
        if (site.layer, site.sublayer, site.role) == (0, "self_attn", "query"):
            attention = model.lm.get_submodule(site.name.rpartition(".")[0])
            attention.register_forward_hook(lambda module, args, output: calls.append(module))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        # two forward passes before one backward pass: each recomputation must find its own task and x_R
        (loss_of(model, batch) + loss_of(model, tiny_batch(TASKS[1]))).backward()
        return {name: p.grad for name, p in model.trainable_parameters().items() if p.grad is not None}

    plain, num_calls = gradients(), len(calls)
    model.enable_gradient_checkpointing()
    recomputed = gradients()
    assert len(calls) == num_calls + 2 * num_calls, "no layer was recomputed"
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@ALL
@torch.no_grad()
def test_beams_of_batch_equal_rows_and_unshared(case):
    """Beam search of a batch gives what its rows give alone, and what transformers gives without shared encoder rows.

    In float64, because tiny models have captions whose permutations score the same to float32's last digit.
    """
    model, batch = copy.deepcopy(perturbed(case)).double(), tiny_batch(images=2, rows=2)
    batch = dataclasses.replace(batch, features=batch.features.double())
    decoding = DecodingConfig(mode="beam", num_beams=3, max_length=7)
    settings = model._generation_config(decoding)
    settings.return_dict_in_generate = settings.output_scores = True
    decoder, lm_head = model.backbone.decoder(model.lm), model.backbone.lm_head(model.lm)
    with model.context.task_scope(batch.task):
        inputs = dataclasses.astuple(model.encode(batch))
        shared, plain = (
            generate(model.lm, decoder, lm_head, model.context, *inputs, settings, share=share)
            for share in (True, False)
        )
    assert torch.equal(shared.sequences, plain.sequences)
    torch.testing.assert_close(shared.sequences_scores, plain.sequences_scores, atol=1e-5, rtol=1e-5)
    for i, row in enumerate(shared.sequences.tolist()):
        alone = model.generate(batch.select(torch.tensor([i])), decoding)[0].tolist()
        assert row[: len(alone)] == alone
        # transformers fills a row that ended long before the others with eos as well as padding
        assert set(row[len(alone) :]) <= {model.lm.config.pad_token_id, model.lm.config.eos_token_id}


@ANY_ROUTING
def test_beam_search_with_one_beam_is_greedy(case, monkeypatch):
    model, batch = perturbed(case), tiny_batch(rows=2)
    greedy = model.generate(batch, DecodingConfig(mode="greedy", max_length=7))
    monkeypatch.setattr(GenerationConfig, "get_generation_mode", lambda *args: GenerationMode.BEAM_SEARCH)
    beam = model.generate(batch, DecodingConfig(mode="beam", num_beams=1, max_length=7))
    eos = model.lm.config.eos_token_id
    for expected, found in zip(greedy.tolist(), beam.tolist(), strict=True):
        # beam search forces an eos at the maximum length
        length = expected.index(eos, 1) + 1 if eos in expected[1:] else len(expected) - 1
        assert expected[:length] == found[:length]


def test_reentrant_checkpointing_is_rejected():
    with pytest.raises(InputError, match="reentrant gradient checkpointing is not supported"):
        tiny_model("adapter").enable_gradient_checkpointing(use_reentrant=True)


def test_lora_dropout_masks_of_x_and_x_r_differ():
    model = perturb(tiny_model("lora", {"function": "mul"}, dropout=0.5))
    site = model.lm.model.decoder.layers[0].self_attn.q_proj
    dropped = []
    site.dropout.register_forward_hook(lambda module, args, output: dropped.append((output == 0).float().mean()))
    model.train()
    loss_of(model, tiny_batch())
    assert len(dropped) == 2
    assert all(0.2 < fraction < 0.8 for fraction in dropped)


@pytest.mark.parametrize("targets", [("query", "value"), ("key", "output", "ffn_in", "ffn_out")])
def test_merged_lora_is_the_same_function(targets):
    model = perturb(tiny_model("lora", targets=targets))
    before = model(tiny_batch())
    model.merge()
    torch.testing.assert_close(model(tiny_batch()), before, atol=1e-5, rtol=1e-5)
    assert model.parameter_counts()[1] == tiny_model("frozen").parameter_counts()[1]


@pytest.mark.parametrize(
    ("method", "routing", "settings", "reason"),
    [
        ("lora", {"function": "mul"}, {}, "routed LoRA cannot be merged"),
        ("lora", {"function": {"vqa": "none", "nlvr2": "mm1"}}, {}, "depends on the sample"),
        ("lora", {}, {"sharing": "per_task"}, "each task has its own update"),
        ("adapter", {}, {}, '"adapter" cannot be merged'),
    ],
)
def test_merge_is_rejected_with_reason(method, routing, settings, reason):
    with pytest.raises(InputError, match=reason):
        tiny_model(method, routing, **settings).merge()


@pytest.mark.parametrize("method", ["full", "bitfit", "frozen"])
def test_merge_without_new_parameters_changes_nothing(method):
    model = tiny_model(method)
    before = model(tiny_batch())
    model.merge()
    assert torch.equal(model(tiny_batch()), before)


def test_adapter_norms_are_shared_by_tasks():
    model = tiny_model("adapter", sharing="per_task", pre_norm=True, post_norm=True, train_layer_norms="none")
    names = [name for name in model.trainable_parameters() if name.startswith("lm.")]
    assert sum("pre_norm" in name for name in names) == sum("post_norm" in name for name in names) == 2 * 10
    assert not any("layer_norm" in name for name in names)
