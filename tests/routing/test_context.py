"""Routing context: x_R reaches every bottleneck, for every beam and step."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from multitask_vl.config.schema import DecodingConfig, RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.routing.context import Context
from multitask_vl.routing.controls import control_x_r
from multitask_vl.routing.pooling import TokenType, masked_mean
from tests.tiny_models import TASKS, loss_of, padded, perturb, tiny_batch, tiny_config, tiny_model

BEAM = DecodingConfig(mode="beam", num_beams=3, max_length=6)
MULTI_ROW = {"function": "mm1", "pooling": "none"}
"""Every valid position is a row of x_R."""


class Spy:
    """Copy of a model that records the inputs of every routed bottleneck."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        self.calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        context, bottleneck = self.model.context, self.model.context.bottleneck

        def record(stack, x, down):
            if context._function() is not None and context.receives_x_r(stack):
                self.calls.append((stack, x.detach(), context.x_r(stack)[0].detach()))
            return bottleneck(stack, x, down)

        context.bottleneck = record

    def count(self, stack: str) -> int:
        return sum(name == stack for name, _, _ in self.calls)


def spy_on(routing: dict, method: str = "adapter") -> Spy:
    return Spy(perturb(tiny_model(method, routing)))


def test_masked_mean_selects_token_types():
    token_types = torch.tensor([[1, 0, 2, 2], [1, 1, 2, 2]])
    values = torch.arange(8.0).reshape(2, 4, 1)
    assert masked_mean(values, token_types, "all").flatten().tolist() == pytest.approx([5 / 3, 5.5])
    assert masked_mean(values, token_types, "text").flatten().tolist() == [0, 4.5]
    assert masked_mean(values, token_types, "visual").flatten().tolist() == [2.5, 6.5]


@pytest.mark.parametrize("tokens", ["all", "visual", "text"])
def test_encoder_source_averages_output_for_decoder_only(tokens):
    spy, batch = spy_on({"function": "mul", "tokens": tokens}), tiny_batch()
    spy.model(batch)
    encoded = spy.model.encode(batch)
    selected = {
        "all": encoded.token_types > 0,
        "visual": encoded.token_types == TokenType.VISUAL,
        "text": encoded.token_types == TokenType.TEXT,
    }[tokens]
    mean = torch.stack([row[mask].mean(0) for row, mask in zip(encoded.hidden_states, selected, strict=True)])
    assert (spy.count("encoder"), spy.count("decoder")) == (0, 2 * 3)
    for _, _, x_r in spy.calls:
        torch.testing.assert_close(x_r[:, 0], mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("routing", [{"function": "mul"}, MULTI_ROW], ids=["mean", "rows"])
def test_visual_source_routes_both_stacks(routing):
    """x_R is the mean of the projected visual tokens, or with several rows the tokens themselves."""
    spy, batch = spy_on(routing | {"source": "visual"}), tiny_batch("nlvr2", images=2)
    spy.model(batch)
    _, projected = spy.model.visual(batch.features, spy.model.lm.get_input_embeddings().weight)
    assert projected.shape[1] == 2 * 36
    expected = projected if routing is MULTI_ROW else projected.mean(1, keepdim=True)
    assert (spy.count("encoder"), spy.count("decoder")) == (2 * 2, 2 * 3)
    for _, _, x_r in spy.calls:
        torch.testing.assert_close(x_r, expected)


@pytest.mark.parametrize("routing", [{"source": "visual"}, {"control": "noise"}, {}])
def test_beams_keep_their_rows_x_r_at_every_step(routing):
    spy = spy_on({"function": "mm1", **routing}, "lora")
    spy.model.generate(tiny_batch(), BEAM)
    decoder = [(x, x_r) for stack, x, x_r in spy.calls if stack == "decoder"]
    first = decoder[0][1]
    assert first.shape == (3, 1, 16), "the beams of a row are equal before the first token"
    beams = first.repeat_interleave(3, 0)
    # in the last step the end token is forced, so only the first row's beams are computed
    assert {len(x_r) for _, x_r in decoder} == {3, 9}
    assert all(torch.equal(x_r, first) or torch.equal(x_r, beams[: len(x_r)]) for _, x_r in decoder)
    assert all(len(x) == len(x_r) for x, x_r in decoder)
    lengths = {x.shape[1] for x, _ in decoder}
    assert lengths == {1, 7 + 36}, "single tokens, and the encoder output at the values of cross-attention"


@pytest.mark.parametrize("source", ["encoder", "visual"])
def test_beams_keep_their_several_rows(source):
    # with this seed the best captions are not permutations of each other, which would score the same
    model = perturb(tiny_model("adapter", MULTI_ROW | {"source": source}), seed=12)
    spy, batch = Spy(model), tiny_batch()
    together = spy.model.generate(batch, BEAM)
    decoder = [x_r for stack, _, x_r in spy.calls if stack == "decoder"]
    first = decoder[0]
    assert first.shape == (3, 36 if source == "visual" else 7 + 36, 16)
    beams = first.repeat_interleave(3, 0)
    assert {len(x_r) for x_r in decoder} == {3, 9}
    assert all(torch.equal(x_r, first) or torch.equal(x_r, beams[: len(x_r)]) for x_r in decoder)
    for i, row in enumerate(together.tolist()):
        alone = model.generate(batch.select(torch.tensor([i])), BEAM)[0].tolist()
        assert row[: len(alone)] == alone


def x_r_of_decoder(model, batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x_R of the decoder's bottlenecks and the mask of its valid rows."""
    model, calls = copy.deepcopy(model), []
    set_x_r = model.context.set_x_r
    model.context.set_x_r = lambda stack, *x_r: (calls.append(x_r), set_x_r(stack, *x_r))
    model(batch)
    return calls[-1]


@pytest.mark.parametrize("function", ["mm1", "mm1_relu", "mm1_ones"])
def test_padded_rows_of_x_r_have_no_effect(function):
    model = perturb(tiny_model("adapter", MULTI_ROW | {"function": function}))
    spy = Spy(model)
    short, long = tiny_batch(), padded(tiny_batch(), 5)
    torch.testing.assert_close(spy.model(long), spy.model(short), atol=2e-5, rtol=1e-5)
    assert {x_r.shape[1] for _, _, x_r in spy.calls} == {7 + 36, 12 + 36}
    x_r, valid = x_r_of_decoder(model, long)
    assert torch.equal(x_r, model.encode(long).hidden_states)
    assert valid.sum(1).tolist() == [7 + 36, 4 + 36, 6 + 36]


def test_multiple_rows_reject_unfit_functions():
    for function in ("mul", "add", "mm2"):
        with pytest.raises(InputError, match=f'routing.function: "{function}" is defined for one routing row'):
            Context(TASKS, RoutingConfig(function=function, pooling="none"))
    with pytest.raises(InputError, match="depends on the amount of padding"):
        Context(TASKS, RoutingConfig(function="mm1_legacy_reshape", pooling="none"))
    tiny_model("adapter", {"function": "mm1_legacy_reshape", "pooling": "none", "source": "visual"})(tiny_batch())


def test_tokens_require_mean_pooling():
    with pytest.raises(ValidationError, match="selects what pooling: mean averages"):
        RoutingConfig(pooling="none", tokens="visual")


@pytest.mark.parametrize("source", ["encoder", "visual"])
def test_x_r_carries_gradient(source):
    model, seen = perturb(tiny_model("adapter", {"function": "mul", "source": source})), []
    set_x_r = model.context.set_x_r

    def retain(stack: str, x_r: torch.Tensor) -> None:
        x_r.retain_grad()
        seen.append(x_r)
        set_x_r(stack, x_r)

    model.context.set_x_r = retain
    loss_of(model, tiny_batch()).backward()
    assert seen
    assert all(x_r.grad is not None and x_r.grad.abs().sum() > 0 for x_r in seen)


def test_functions_are_per_task():
    mixed = perturb(tiny_model("adapter", {"function": {"vqa": "mul", "nlvr2": "none"}}))
    for task, name in (("vqa", "mul"), ("nlvr2", "none")):
        other = perturb(tiny_model("adapter", {"function": name}))
        assert torch.equal(mixed(tiny_batch(task)), other(tiny_batch(task)))
    assert not torch.equal(mixed(tiny_batch("vqa")), perturb(tiny_model("adapter"))(tiny_batch("vqa")))


def test_wrong_functions_are_reported_together():
    with pytest.raises(InputError) as error:
        Context(TASKS, RoutingConfig(function={"vqa": "mull", "caption": "add"}))
    text = str(error.value)
    assert "routing.function.vqa: got 'mull'; did you mean 'mul'?" in text
    assert "routing.function.caption: unknown task" in text
    assert "routing.function: no function for nlvr2" in text


def test_bottleneck_requires_task_and_x_r():
    context = Context(TASKS, RoutingConfig(function="mul"))
    with pytest.raises(RuntimeError, match="no task is running"):
        context.bottleneck("decoder", torch.zeros(1, 1, 2), nn.Identity())
    with context.task_scope("vqa"), pytest.raises(RuntimeError, match="x_R is missing in the decoder"):
        context.bottleneck("decoder", torch.zeros(1, 1, 2), nn.Identity())


def test_call_state_ends_with_the_call():
    model = tiny_model("adapter", {"function": "mul"})
    model(tiny_batch())
    with pytest.raises(RuntimeError, match="no task is running"):
        model.lm.model.decoder.layers[0].fc2(torch.zeros(1, 1, 32))
    ids = torch.ones(1, 2, dtype=torch.long)
    with model.context.task_scope("vqa"), pytest.raises(RuntimeError, match="encoder_attention_mask"):
        model.lm.model.decoder(input_ids=ids, encoder_hidden_states=torch.zeros(1, 3, 16))


def test_task_scope_rejects_unknown_task():
    with pytest.raises(InputError, match="task 'gqa' is not one of this model's tasks"):
        tiny_model("adapter")(tiny_batch("gqa"))


def test_copied_model_has_its_own_context():
    model = perturb(tiny_model("adapter", {"function": "mm1"}))
    other = copy.deepcopy(model)
    assert other.context is not model.context
    site = other.lm.model.decoder.layers[0].fc2
    assert site.context is other.context
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))


@pytest.mark.parametrize("source", ["encoder", "visual"])
def test_control_replaces_only_x_r(source):
    """The image still reaches the encoder; noise replaces x_R at the sites that x_R routes."""
    spy, batch = spy_on({"function": "mul", "source": source, "control": "noise"}), tiny_batch()
    spy.model(batch)
    expected = control_x_r("noise", batch.ids, 1, 16, torch.zeros(1), False, tiny_config().seed)
    assert {stack for stack, _, _ in spy.calls} == ({"decoder"} if source == "encoder" else {"encoder", "decoder"})
    assert all(torch.equal(x_r, expected) for _, _, x_r in spy.calls)
    assert spy.model.encode(batch).hidden_states.shape[1] == 7 + 36 + 1


@pytest.mark.parametrize("control", ["noise", "ones"])
def test_control_routes_the_same_sites(control):
    """x_R of the encoder's output routes the decoder only, and so does its control; with rows, one per visual token."""
    spy = spy_on(MULTI_ROW | {"control": control})
    spy.model(tiny_batch())
    assert {tuple(x_r.shape) for _, _, x_r in spy.calls} == {(3, 36, 16)}
    both = ({"function": "mul"}, {"function": "mul", "control": control})
    models = [perturb(tiny_model("adapter", routing)) for routing in both]
    routed, replaced = (model.encode(tiny_batch()).hidden_states for model in models)
    assert torch.equal(replaced[:, : routed.shape[1]], routed)
    names = [dict(tiny_model("lora", routing, mapping="split").named_parameters()).keys() for routing in both]
    assert names[0] == names[1]
