"""Do the routing functions compute their formulas, and does x_R reach every bottleneck, for every beam and step?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from multitask_vl.config.schema import DecodingConfig, RoutingConfig
from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING
from multitask_vl.routing.context import PADDING, TEXT, VISUAL, Context, pooled
from multitask_vl.routing.controls import replacement
from tests.tiny_models import TASKS, loss_of, padded, shaken, tiny_batch, tiny_config, tiny_model

BATCH, LENGTH, RANK = 3, 5, 7


def by_product(name: str, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The published formulas with explicit matrices."""
    transposed = v.transpose(1, 2)
    return {
        "none": lambda: t,
        "mul": lambda: t * v.expand_as(t),
        "add": lambda: t + v.expand_as(t),
        "mm1": lambda: torch.bmm(torch.bmm(t, transposed), v),
        "mm2": lambda: torch.bmm(t, v.expand(-1, t.shape[2], -1)),
        "mm1_relu": lambda: torch.bmm(torch.bmm(t.clamp(min=0), transposed.clamp(min=0)), v),
        "mm1_ones": lambda: torch.bmm(torch.bmm(t, transposed), torch.ones_like(v)),
        "mm1_legacy_reshape": lambda: torch.bmm(torch.bmm(t, v.reshape(len(v), v.shape[2], v.shape[1])), v),
    }[name]()


def states(rows: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (BATCH, LENGTH, RANK), (BATCH, rows, RANK)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("name", ["none", "mul", "add", "mm1", "mm2", "mm1_relu", "mm1_ones", "mm1_legacy_reshape"])
def test_one_row_equals_the_matrix_form(name):
    t, v = states()
    torch.testing.assert_close(ROUTING.get(name)(t, v), by_product(name, t, v), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["mm1", "mm1_relu", "mm1_ones", "mm1_legacy_reshape"])
@pytest.mark.parametrize("rows", [4, RANK, 3 * RANK])
def test_several_rows_are_transposed_and_only_the_legacy_form_scrambles_them(name, rows):
    t, v = states(rows)
    torch.testing.assert_close(ROUTING.get(name)(t, v), by_product(name, t, v), atol=1e-12, rtol=0)
    assert not torch.allclose(ROUTING.get("mm1")(t, v), ROUTING.get("mm1_legacy_reshape")(t, v))


def test_the_legacy_form_equals_mm1_for_one_row():
    t, v = states()
    torch.testing.assert_close(ROUTING.get("mm1_legacy_reshape")(t, v), ROUTING.get("mm1")(t, v), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["mul", "add", "mm2"])
def test_several_rows_are_refused_where_undefined(name):
    with pytest.raises(InputError, match=f'"{name}" is defined for one routing row, not for 4'):
        ROUTING.get(name)(*states(4))


@pytest.mark.parametrize("name", ["mul", "add", "mm1", "mm2", "mm1_relu", "mm1_ones", "mm1_legacy_reshape"])
def test_each_token_is_routed_alone(name):
    """What cached decoding rests on: a token's value does not depend on the others'."""
    t, v = states()
    whole = ROUTING.get(name)(t, v)
    parts = [ROUTING.get(name)(t[:, i : i + 1], v) for i in range(LENGTH)]
    assert torch.equal(whole, torch.cat(parts, 1))


def test_cost_of_one_row_is_linear_in_the_rank():
    """No r x r matrix: nothing larger than the bottleneck itself is made."""
    t, v = torch.randn(1, 2, 4096), torch.randn(1, 1, 4096)
    for name in ROUTING.names():
        made = []

        class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None, made=made):
                result = function(*args, **(kwargs or {}))
                made.append(result.numel() if isinstance(result, torch.Tensor) else 0)
                return result

        with Sizes():
            ROUTING.get(name)(t, v)
        assert max(made, default=0) <= t.numel(), name


def test_pooling_takes_the_named_positions():
    kinds = torch.tensor([[TEXT, PADDING, VISUAL, VISUAL], [TEXT, TEXT, VISUAL, VISUAL]])
    values = torch.arange(8.0).reshape(2, 4, 1)
    assert pooled(values, kinds, "all").flatten().tolist() == pytest.approx([5 / 3, 5.5])
    assert pooled(values, kinds, "text").flatten().tolist() == [0, 4.5]
    assert pooled(values, kinds, "visual").flatten().tolist() == [2.5, 6.5]


class Spy:
    """Notes what every bottleneck of a model is routed with."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        self.seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        context, through = self.model.context, self.model.context.through

        def noting(stack, x, down):
            if context._route() is not None and context.reaches(stack):
                self.seen.append((stack, x.detach(), context.x_r(stack)[0].detach()))
            return through(stack, x, down)

        context.through = noting


@pytest.mark.parametrize("pool", ["all", "visual", "text"])
def test_encoder_pooled_is_the_mean_of_the_encoders_output_and_stays_out_of_the_encoder(pool):
    spy = Spy(shaken(tiny_model("adapter", {"function": "mul", "pool": pool})))
    batch = tiny_batch()
    spy.model(batch)
    encoded = spy.model.encode(batch)
    valid = {"all": encoded.kinds > 0, "visual": encoded.kinds == VISUAL, "text": encoded.kinds == TEXT}[pool]
    mean = torch.stack([row[keep].mean(0) for row, keep in zip(encoded.states, valid, strict=True)])
    assert {stack for stack, _, _ in spy.seen} == {"decoder"}
    assert len(spy.seen) == 2 * 3
    for _, _, x_r in spy.seen:
        torch.testing.assert_close(x_r[:, 0], mean, atol=1e-6, rtol=1e-5)


def test_visual_pooled_is_the_mean_of_the_projected_cells_in_both_stacks():
    spy = Spy(shaken(tiny_model("adapter", {"function": "mul", "source": "visual_pooled"})))
    batch = tiny_batch("nlvr2", images=2)
    spy.model(batch)
    _, projected = spy.model.visual(batch.features, spy.model.lm.get_input_embeddings().weight)
    assert [stack for stack, _, _ in spy.seen].count("encoder") == 2 * 2
    assert [stack for stack, _, _ in spy.seen].count("decoder") == 2 * 3
    for _, _, x_r in spy.seen:
        torch.testing.assert_close(x_r, projected.mean(1, keepdim=True))


@pytest.mark.parametrize("routing", [{"source": "visual_pooled"}, {"control": "noise"}, {}])
def test_at_every_step_every_beam_has_its_rows_x_r(routing):
    spy = Spy(shaken(tiny_model("lora", {"function": "mm1", **routing})))
    batch = tiny_batch()
    spy.model.generate(batch, DecodingConfig(kind="beam", num_beams=3, max_length=6))
    decoder = [(x, x_r) for stack, x, x_r in spy.seen if stack == "decoder"]
    first = decoder[0][1]
    assert first.shape == (3, 1, 16), "the beams of a row are the same before the first token"
    beams = first.repeat_interleave(3, 0)
    # in the last step the end is forced, so that the first row's beams stand for all
    assert {len(x_r) for _, x_r in decoder} == {3, 9}
    assert all(torch.equal(x_r, first) or torch.equal(x_r, beams[: len(x_r)]) for _, x_r in decoder)
    assert all(len(x) == len(x_r) for x, x_r in decoder)
    lengths = {x.shape[1] for x, _ in decoder}
    assert lengths == {1, 7 + 36}, "single tokens, and the encoder's states at the cross-attention's values"


@pytest.mark.parametrize("source", ["encoder_pooled", "visual_pooled"])
def test_x_r_carries_gradient(source):
    model, caught = shaken(tiny_model("adapter", {"function": "mul", "source": source})), []
    put = model.context.put

    def keeping(stack: str, x_r: torch.Tensor) -> None:
        x_r.retain_grad()
        caught.append(x_r)
        put(stack, x_r)

    model.context.put = keeping
    loss_of(model, tiny_batch()).backward()
    assert caught
    assert all(x_r.grad is not None and x_r.grad.abs().sum() > 0 for x_r in caught)


def test_functions_are_per_task():
    mixed = shaken(tiny_model("adapter", {"function": {"vqa": "mul", "nlvr2": "none"}}))
    for task, name in (("vqa", "mul"), ("nlvr2", "none")):
        other = shaken(tiny_model("adapter", {"function": name}))
        assert torch.equal(mixed(tiny_batch(task)), other(tiny_batch(task)))
    assert not torch.equal(mixed(tiny_batch("vqa")), shaken(tiny_model("adapter"))(tiny_batch("vqa")))


def test_wrong_functions_are_told_all_at_once():
    with pytest.raises(InputError) as caught:
        Context(TASKS, RoutingConfig(function={"vqa": "mull", "caption": "add"}))
    text = str(caught.value)
    assert "routing.function.caption: there is no task 'caption'" in text
    assert "task 'nlvr2' has no function" in text
    assert "did you mean 'mul'" in text


def test_an_empty_slot_raises():
    context = Context(TASKS, RoutingConfig(function="mul"))
    with pytest.raises(RuntimeError, match="no task is running"):
        context.through("decoder", torch.zeros(1, 1, 2), nn.Identity())
    with context.of("vqa"), pytest.raises(RuntimeError, match="x_R is missing in the decoder"):
        context.through("decoder", torch.zeros(1, 1, 2), nn.Identity())


def test_nothing_is_left_behind_after_a_call():
    model = tiny_model("adapter", {"function": "mul"})
    model(tiny_batch())
    with pytest.raises(RuntimeError, match="no task is running"):
        model.lm.model.decoder.layers[0].fc2(torch.zeros(1, 1, 32))


def test_a_task_that_is_not_the_models_is_refused():
    with pytest.raises(InputError, match="task 'gqa' is not one of this model's"):
        tiny_model("adapter")(tiny_batch("gqa"))


def test_the_door_wants_a_mask():
    model = tiny_model("adapter", {"function": "mul"})
    ids = torch.ones(1, 2, dtype=torch.long)
    with model.context.of("vqa"), pytest.raises(RuntimeError, match="encoder_attention_mask"):
        model.lm.model.decoder(input_ids=ids, encoder_hidden_states=torch.zeros(1, 3, 16))


def test_a_copy_of_a_model_has_its_own_context():
    model = shaken(tiny_model("adapter", {"function": "mm1"}))
    other = copy.deepcopy(model)
    assert other.context is not model.context
    site = other.lm.model.decoder.layers[0].fc2
    assert site.context is other.context
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))


class TestSeveralRows:
    """``routing.pool: none``: every valid position is a routing row."""

    ROUTING = {"function": "mm1", "pool": "none"}

    @pytest.mark.parametrize("function", ["mm1", "mm1_relu", "mm1_ones"])
    def test_rows_of_padding_count_for_nothing(self, function):
        model = shaken(tiny_model("adapter", {"function": function, "pool": "none"}))
        short, long = tiny_batch(), padded(tiny_batch(), 5)
        spy = Spy(model)
        torch.testing.assert_close(spy.model(long), spy.model(short), atol=2e-5, rtol=1e-5)
        assert {x_r.shape[1] for _, _, x_r in spy.seen} == {7 + 36, 12 + 36}
        _, valid = _x_r_of(model, long)
        assert valid.sum(1).tolist() == [7 + 36, 4 + 36, 6 + 36]

    def test_the_rows_are_the_encoders_output(self):
        model, batch = shaken(tiny_model("adapter", self.ROUTING)), tiny_batch()
        assert torch.equal(_x_r_of(model, batch)[0], model.encode(batch).states)

    @pytest.mark.parametrize("source", ["encoder_pooled", "visual_pooled"])
    def test_at_every_step_every_beam_has_its_rows(self, source):
        # a seed whose best captions are not permutations of each other, which score the same
        model, batch = shaken(tiny_model("adapter", self.ROUTING | {"source": source}), seed=12), tiny_batch()
        spy = Spy(model)
        decoding = DecodingConfig(kind="beam", num_beams=3, max_length=6)
        together = spy.model.generate(batch, decoding)
        decoder = [x_r for stack, _, x_r in spy.seen if stack == "decoder"]
        first = decoder[0]
        assert first.shape == (3, 36 if source == "visual_pooled" else 7 + 36, 16)
        beams = first.repeat_interleave(3, 0)
        assert {len(x_r) for x_r in decoder} == {3, 9}
        assert all(torch.equal(x_r, first) or torch.equal(x_r, beams[: len(x_r)]) for x_r in decoder)
        for i, row in enumerate(together.tolist()):
            alone = model.generate(batch.rows_slice(i, i + 1), decoding)[0].tolist()
            assert row[: len(alone)] == alone

    def test_visual_rows_are_the_projected_cells_in_both_stacks(self):
        spy = Spy(shaken(tiny_model("adapter", self.ROUTING | {"source": "visual_pooled"})))
        batch = tiny_batch("nlvr2", images=2)
        spy.model(batch)
        _, projected = spy.model.visual(batch.features, spy.model.lm.get_input_embeddings().weight)
        assert projected.shape[1] == 2 * 36
        assert [stack for stack, _, _ in spy.seen].count("encoder") == 2 * 2
        for _, _, x_r in spy.seen:
            torch.testing.assert_close(x_r, projected)

    @pytest.mark.parametrize("control", ["noise", "ones"])
    def test_a_control_has_a_row_a_cell(self, control):
        spy = Spy(shaken(tiny_model("adapter", self.ROUTING | {"control": control})))
        spy.model(tiny_batch())
        assert {tuple(x_r.shape) for _, _, x_r in spy.seen} == {(3, 36, 16)}

    @pytest.mark.parametrize("function", ["mul", "add", "mm2"])
    def test_functions_of_one_row_are_refused_before_anything_runs(self, function):
        with pytest.raises(InputError, match=f'routing.function: "{function}" is defined for one routing row'):
            tiny_model("adapter", {"function": function, "pool": "none"})

    def test_what_depends_on_padding_is_for_rows_that_are_always_as_many(self):
        routing = {"function": "mm1_legacy_reshape", "pool": "none"}
        with pytest.raises(InputError, match="whose rows are always as many"):
            tiny_model("adapter", routing)
        tiny_model("adapter", routing | {"source": "visual_pooled"})(tiny_batch())


def _x_r_of(model, batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the decoder's bottlenecks are routed with."""
    model, seen = copy.deepcopy(model), []
    put = model.context.put
    model.context.put = lambda stack, *x_r: (seen.append(x_r), put(stack, *x_r))
    model(batch)
    return seen[-1]


class TestControls:
    """Noise and ones in place of x_R (routing paper, Table B2)."""

    def noise(self, ids=("a", "b"), training=False, seed=1):
        return replacement("noise", ids, 1, 4, torch.zeros(1), training, seed)

    def test_ones_are_ones(self):
        assert torch.equal(replacement("ones", ["a", "b"], 3, 4, torch.zeros(1), True, 0), torch.ones(2, 3, 4))

    def test_noise_in_training_is_fresh_and_follows_the_generator(self):
        torch.manual_seed(3)
        first, second = self.noise(training=True), self.noise(training=True)
        torch.manual_seed(3)
        assert torch.equal(self.noise(training=True), first)
        assert not torch.equal(first, second)

    def test_noise_in_evaluation_belongs_to_the_example(self):
        both = self.noise()
        torch.manual_seed(9)
        assert torch.equal(self.noise(("b",))[0], both[1])
        assert not torch.equal(both[0], both[1])
        assert not torch.equal(self.noise(seed=2), both)

    def test_other_controls_do_not_exist(self):
        with pytest.raises(ValueError, match="no such control"):
            replacement("zeros", ["a"], 1, 4, torch.zeros(1), True, 0)

    @pytest.mark.parametrize("source", ["encoder_pooled", "visual_pooled"])
    def test_noise_replaces_x_r_alone(self, source):
        """The picture still reaches the encoder; only what routes is noise, and only where there is routing."""
        routing = {"function": "mul", "source": source, "control": "noise"}
        spy = Spy(shaken(tiny_model("adapter", routing)))
        batch = tiny_batch()
        spy.model(batch)
        expected = replacement("noise", batch.ids, 1, 16, torch.zeros(1), False, tiny_config().seed)
        stacks = {"decoder"} if source == "encoder_pooled" else {"encoder", "decoder"}
        assert {stack for stack, _, _ in spy.seen} == stacks
        assert all(torch.equal(x_r, expected) for _, _, x_r in spy.seen)
        assert spy.model.encode(batch).states.shape[1] == 7 + 36 + 1

    @pytest.mark.parametrize("control", ["noise", "ones"])
    def test_a_control_routes_no_stack_that_x_r_does_not(self, control):
        """x_R of the encoder's output routes the decoder alone, and so does what stands in for it."""
        both = ({"function": "mul"}, {"function": "mul", "control": control})
        routed, replaced = (shaken(tiny_model("adapter", routing)).encode(tiny_batch()).states for routing in both)
        assert torch.equal(replaced[:, : routed.shape[1]], routed)
        maps = [dict(tiny_model("lora", routing, mapping="split").named_parameters()).keys() for routing in both]
        assert maps[0] == maps[1]
