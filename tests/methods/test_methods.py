"""Does every method, with every sharing and every routing function, keep what all of them must keep on each backbone?

The cases come from the registries, so a new method or routing function is tried without a line here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.models.build import build_model
from multitask_vl.models.decoding.generation import generate
from multitask_vl.registry import METHODS
from tests.method_cases import CASES, Case
from tests.tiny_models import TASKS, loss_of, padded, shaken, tiny_batch, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]
NEVER_MOVES = {"visual.box.weight": "the published block gives zero boxes to this map, so its gradient is zero"}


ROUTED = [case for case in CASES if dict(case.routing)["function"] != "none"]
SHARED = [case for case in ROUTED if dict(case.settings).get("mapping") != "split"]
"""Routed by the map that x has anyway."""
ALL = pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
STARTING_AT_THE_BACKBONE = [case for case in CASES if METHODS.get(case.method).identity is not None]


@functools.cache
def _trained(case: Case):
    """A model away from its initial values; shared by tests, which must not change it."""
    return shaken(case.model())


@functools.cache
@torch.no_grad()
def _bare_loss(family: str, task: str) -> torch.Tensor:
    return tiny_model("frozen", family=family)(tiny_batch(task))


@pytest.mark.parametrize("case", STARTING_AT_THE_BACKBONE, ids=[case.label for case in STARTING_AT_THE_BACKBONE])
@torch.no_grad()  # attention takes another kernel, which rounds otherwise, where T5's position tables are trained
def test_at_its_identity_setting_a_method_is_the_backbone(case):
    model = case.model(**METHODS.get(case.method).identity)
    for task in TASKS:
        assert torch.equal(model(tiny_batch(task)), _bare_loss(case.family, task))


@ALL
def test_only_and_all_trainable_tensors_move(case):
    wanted, moved = set(_trained(case).trainable()) - set(NEVER_MOVES), set()
    for seed in (11, 12, 13, 14):
        # routed values of one sign for all tokens can switch a ReLU off altogether; not so with all weights
        model = shaken(case.model(), seed=seed)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=0.01, weight_decay=0.0)
        loss_of(model, tiny_batch(TASKS[0])).backward()
        others = {name for name in before if f".{TASKS[1]}." in name}
        assert all(model.trainable()[name].grad is None for name in others), "a step touches the other task's tensors"
        loss_of(model, tiny_batch(TASKS[1], images=2)).backward()
        optimizer.step()
        moved |= {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        if moved >= wanted:
            break
    assert moved == wanted
    if "sharing" in dict(case.settings):
        assert bool(others) == (dict(case.settings)["sharing"] != "single")


@pytest.mark.parametrize("case", SHARED, ids=[case.label for case in SHARED])
def test_routing_adds_no_parameters(case):
    bare = tiny_model(**case.arguments() | {"routing": None})
    assert list(bare.trainable()) == list(_trained(case).trainable())
    assert bare.parameter_counts() == _trained(case).parameter_counts()


@ALL
def test_padding_changes_nothing(case):
    model, batch = _trained(case), tiny_batch()
    seen = []
    spied = copy.deepcopy(model)
    put = spied.context.put

    def noting(stack: str, x_r: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        seen.append((x_r if valid is None else x_r[valid]).detach())
        put(stack, x_r, valid)

    spied.context.put = noting
    losses = spied(batch), spied(padded(batch, 5))
    torch.testing.assert_close(*losses, atol=2e-5, rtol=1e-5)
    half = len(seen) // 2
    for short, long in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    with model.context.of(batch.task):
        assert bool(seen) == model.context.wanted


@ALL
def test_checkpointing_changes_nothing(case):
    model, batch = copy.deepcopy(_trained(case)).train(), tiny_batch(images=2)
    calls = []
    for site in model.methods[0].layout.sites:
        if (site.layer, site.sublayer, site.role) == (0, "self_attn", "query"):
            attention = model.lm.get_submodule(site.name.rpartition(".")[0])
            attention.register_forward_hook(lambda module, given, result: calls.append(module))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        # two forward passes before one backward pass: each must find its own task and x_R again
        (loss_of(model, batch) + loss_of(model, tiny_batch(TASKS[1]))).backward()
        return {name: p.grad for name, p in model.trainable().items() if p.grad is not None}

    plain, once = gradients(), len(calls)
    model.enable_gradient_checkpointing()
    recomputed = gradients()
    assert len(calls) == once + 2 * once, "no layer was recomputed"
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@ALL
def test_a_batch_with_beams_is_its_rows(case):
    """In float64: tiny models have captions whose permutations score the same to float32's last digit."""
    model, batch = _trained(case).double(), tiny_batch(images=2)
    batch = dataclasses.replace(batch, features=batch.features.double())
    decoding = DecodingConfig(kind="beam", num_beams=4, max_length=9)
    together = model.generate(batch, decoding).tolist()
    for i, row in enumerate(together):
        alone = model.generate(batch.rows_slice(i, i + 1), decoding)[0].tolist()
        assert row[: len(alone)] == alone
        # the library fills a row that ended long before the others with ends as well as with padding
        assert set(row[len(alone) :]) <= {model.lm.config.pad_token_id, model.lm.config.eos_token_id}


@ALL
@torch.no_grad()
def test_beams_that_share_find_what_the_library_finds(case):
    model, batch = _trained(case), tiny_batch(images=2)
    settings = model._generation(DecodingConfig(kind="beam", num_beams=4, max_length=7))
    settings.return_dict_in_generate = settings.output_scores = True
    with model.context.of(batch.task):
        encoded = model.encode(batch)
        shared, plain = (
            generate(
                model.lm, model.family.decoder(model.lm), model.family.head(model.lm), model.context, encoded.states,
                encoded.kinds, settings, share=share,
            )
            for share in (True, False)
        )  # fmt: skip
    differ = (shared.sequences != plain.sequences).any(1)
    scores = shared.sequences_scores, plain.sequences_scores
    torch.testing.assert_close(*(one[~differ] for one in scores), atol=1e-5, rtol=1e-5)
    # tiny models have captions whose permutations score the same to the last digit; rounding decides which go on
    assert differ.sum() <= 1
    torch.testing.assert_close(*(one[differ] for one in scores), atol=1e-3, rtol=0)


@ALL
def test_one_beam_through_the_beam_code_is_greedy(case, monkeypatch):
    model, batch = _trained(case), tiny_batch()
    greedy = model.generate(batch, DecodingConfig(kind="greedy", max_length=9))
    monkeypatch.setattr(GenerationConfig, "get_generation_mode", lambda *given: GenerationMode.BEAM_SEARCH)
    beam = model.generate(batch, DecodingConfig(kind="beam", num_beams=1, max_length=9))
    eos = model.lm.config.eos_token_id
    for one, other in zip(greedy.tolist(), beam.tolist(), strict=True):
        # the beam code forces an end where the length runs out
        length = one.index(eos, 1) + 1 if eos in one[1:] else len(one) - 1
        assert one[:length] == other[:length]


def test_saved_is_loaded_in_a_fresh_process(tmp_path):
    """One process for all; one routing of each method and its settings, since routing adds nothing to save."""
    expected, jobs = {}, []
    for i, case in enumerate({(case.family, case.method, case.settings): case for case in CASES}.values()):
        config = tiny_config(**case.arguments())
        model = _trained(case)
        save_adapter(model, tmp_path / str(i), config)
        expected[str(i)] = model(tiny_batch()).tolist()
        jobs.append(case.arguments())
    program = (
        "import json, sys, torch\n"
        "from multitask_vl.methods.artifact.adapter_io import load_adapter\n"
        "from tests.tiny_models import tiny_batch, tiny_model\n"
        "found = {}\n"
        "for i, job in enumerate(json.loads(sys.argv[1])):\n"
        "    torch.manual_seed(i)\n"
        "    model = tiny_model(**job)\n"
        "    load_adapter(model, f'{sys.argv[2]}/{i}')\n"
        "    found[str(i)] = model(tiny_batch()).tolist()\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(jobs), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == expected.keys()
    for i, losses in expected.items():
        torch.testing.assert_close(torch.tensor(found[i]), torch.tensor(losses), atol=1e-6, rtol=1e-6)


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(InputError, match="reentrant gradient checkpointing is refused"):
        tiny_model("adapter").enable_gradient_checkpointing(use_reentrant=True)


def test_dropout_of_routed_lora_is_drawn_for_x_and_for_x_r():
    model = shaken(tiny_model("lora", {"function": "mul"}, dropout=0.5))
    site = model.lm.model.decoder.layers[0].self_attn.q_proj
    drawn = []
    site.dropout.register_forward_hook(lambda module, given, dropped: drawn.append((dropped == 0).float().mean()))
    model.train()
    loss_of(model, tiny_batch())
    assert len(drawn) == 2
    assert all(0.2 < share < 0.8 for share in drawn)


@pytest.mark.parametrize("targets", [("query", "value"), ("key", "output", "ffn_in", "ffn_out")])
def test_merged_lora_is_the_same_function(targets):
    model = shaken(tiny_model("lora", targets=targets))
    before = model(tiny_batch())
    model.merge()
    torch.testing.assert_close(model(tiny_batch()), before, atol=1e-5, rtol=1e-5)
    assert model.parameter_counts()[1] == tiny_model("frozen").parameter_counts()[1]


@pytest.mark.parametrize(
    ("method", "routing", "settings", "why"),
    [
        ("lora", {"function": "mul"}, {}, "routed LoRA cannot be merged"),
        ("lora", {"function": {"vqa": "none", "nlvr2": "mm1"}}, {}, "depends on the sample"),
        ("lora", {}, {"sharing": "per_task"}, "every task has its own update"),
        ("adapter", {}, {}, '"adapter" cannot be merged'),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(method, routing, settings, why):
    with pytest.raises(InputError, match=why):
        tiny_model(method, routing, **settings).merge()


@pytest.mark.parametrize("method", ["full", "bitfit", "frozen"])
def test_methods_that_add_nothing_have_nothing_to_merge(method):
    model = tiny_model(method)
    before = model(tiny_batch())
    model.merge()
    assert torch.equal(model(tiny_batch()), before)


def test_adapters_own_norms_are_one_for_all_tasks():
    model = tiny_model("adapter", sharing="per_task", pre_norm=True, post_norm=True, train_layer_norms="none")
    names = [name for name in model.trainable() if name.startswith("lm.")]
    assert sum("pre_norm" in name for name in names) == sum("post_norm" in name for name in names) == 2 * 10
    assert not any("layer_norm" in name for name in names)


def test_two_methods_on_one_backbone(tmp_path):
    one, two = tiny_config("adapter"), tiny_config("lora", biases="none")
    config = one.model_copy(update={"method": [*one.method, *two.method]})
    model = shaken(build_model(config).eval())
    assert set(model.components()) == {"language_model", "visual_embedding", "adapter", "lora"}
    save_adapter(model, tmp_path, config)
    other = build_model(config).eval()
    load_adapter(other, tmp_path)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))
