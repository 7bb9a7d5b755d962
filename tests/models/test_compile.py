"""`training.compile`: layers are traced without graph breaks, compute the same, and predictions run uncompiled."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.models.build import build_model
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests import tiny_run
from tests.tiny_models import TASKS, loss_of, perturb, tiny_batch, tiny_config

CASES = {
    "routed adapters per task": ("adapter", {"function": "mm1"}, "bart", {"sharing": "per_task"}, 2),
    "routed LoRA on T5": ("lora", {"function": "mul"}, "t5", {"dropout": 0.0}, 1),
}
"""Method, routing, family, settings, and the number of tasks to train."""
ONE_LAYER = {"bart": {"encoder_layers": 1, "decoder_layers": 1}, "t5": {"num_layers": 1}}


@pytest.fixture(autouse=True)
def reset_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def loss_and_gradients(model, task, rows):
    model.zero_grad()
    loss = loss_of(model, tiny_batch(task, rows=rows))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.trainable_parameters().values() if p.grad is not None)]


@pytest.mark.parametrize("case", CASES)
def test_compiled_losses_and_gradients_are_equal(case):
    method, routing, family, settings, num_tasks = CASES[case]
    config = tiny_config(method, routing, family, **settings)
    sizes = config.backbone.config | ONE_LAYER[family]
    backbone = config.backbone.model_copy(update={"config": sizes, "dropout": 0.0})
    model = perturb(build_model(config.model_copy(update={"backbone": backbone})), 0.05).train()
    batches = list(zip(TASKS, (3, 2), strict=True))[:num_tasks]
    expected = [loss_and_gradients(model, *batch) for batch in batches]
    names = list(model.state_dict())
    model.compile_layers(backend="eager")
    assert list(model.state_dict()) == names
    for batch, eager in zip(batches, expected, strict=True):
        for compiled, reference in zip(loss_and_gradients(model, *batch), eager, strict=True):
            torch.testing.assert_close(compiled, reference, atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def test_run_compiles_steps_but_not_predictions(tmp_path, monkeypatch):
    tiny_run.write_dataset(tmp_path)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_layers = functools.partialmethod(VLSeq2Seq.compile_layers, backend=backend)
    monkeypatch.setattr(VLSeq2Seq, "compile_layers", compile_layers)
    generate = VLSeq2Seq.generate

    def checked_generate(self, *args):
        before = len(graphs)
        result = generate(self, *args)
        assert before
        assert len(graphs) == before
        return result

    monkeypatch.setattr(VLSeq2Seq, "generate", checked_generate)
    config = tiny_run.write_config(tmp_path)
    one_task = ("tasks.gqa=null", "tasks.nlvr2=null", "tasks.coco_caption=null", "routing.function=mul")
    overrides = ("training.compile=true", "training.max_steps=1", *one_task)
    assert tiny_run.launch("train", "--config", str(config), *overrides) == 0
    assert len(tiny_run.read_losses(tmp_path / "run")) == 1
    assert graphs


def test_compile_rejects_gradient_checkpointing():
    with pytest.raises(ValueError, match=r"cannot be combined with training\.gradient_checkpointing"):
        TrainingConfig(max_steps=1, compile=True, gradient_checkpointing=True)
