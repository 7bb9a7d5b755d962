"""`training.compile`: layers are traced whole, compute the same, and predictions do without them."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests import tiny_run
from tests.tiny_models import TASKS, loss_of, shaken, tiny_batch, tiny_model

CASES = {
    "routed adapters of each task": ("adapter", {"function": "mm1"}, "bart", {"sharing": "per_task"}),
    "routed LoRA": ("lora", {"function": "mul"}, "bart", {}),
    "adapters of T5": ("adapter", None, "t5", {}),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def gradients(model, task, rows):
    model.zero_grad()
    loss = loss_of(model, tiny_batch(task, rows=rows))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.trainable().values() if p.grad is not None)]


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_model_has_the_same_losses_and_gradients(case):
    method, routing, family, settings = CASES[case]
    torch.manual_seed(0)
    model = shaken(tiny_model(method, routing, family, **settings), 0.05).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    batches = [(task, rows) for task in TASKS for rows in (3, 2)]
    expected = [gradients(model, *batch) for batch in batches]
    names = list(model.state_dict())
    model.compile_layers(backend="eager")
    assert list(model.state_dict()) == names
    for batch, before in zip(batches, expected, strict=True):
        for one, other in zip(gradients(model, *batch), before, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def test_a_run_compiles_its_steps_and_not_its_predictions(tmp_path, monkeypatch):
    tiny_run.write_files(tmp_path)
    seen = []

    def spy(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(VLSeq2Seq, "compile_layers", functools.partialmethod(VLSeq2Seq.compile_layers, backend=spy))
    predicted = VLSeq2Seq.generate

    def generate(self, *words):
        before = len(seen)
        result = predicted(self, *words)
        assert before
        assert len(seen) == before
        return result

    monkeypatch.setattr(VLSeq2Seq, "generate", generate)
    config = tiny_run.write_config(tmp_path)
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.compile=true", "training.steps=4") == 0
    assert len(tiny_run.losses(tmp_path / "run")) == 4
    assert seen


def test_it_is_refused_beside_checkpointing():
    with pytest.raises(ValueError, match=r"not together with training\.gradient_checkpointing"):
        TrainingConfig(steps=1, compile=True, gradient_checkpointing=True)
