"""Plugins: a task, a method and a routing function, each in one file outside the package."""

import json
import sys
import textwrap

import pytest

from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING, load_plugins
from tests import tiny_run

TASK = '''
"""Count the letters of a word; every example has the same image, which is not needed."""

from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, Scores, Task


@TASKS.register("letters")
class Letters(Task):
    primary_metric = "accuracy"
    submission_name = "letters.txt"

    def sources(self, split):
        return [self.resolve(self.config.splits[split]["words"])]

    def read(self, split):
        for word in self.sources(split)[0].read_text().split():
            yield Example(word, ("000000000000",), word, (str(len(word)),), (1.0,))

    def score(self, examples, predictions, **options):
        right = {e.id: 100.0 * (predictions[e.id] == e.answers[0]) for e in examples}
        return Scores("accuracy", {"accuracy": sum(right.values()) / len(right)}, right)

    def submission(self, predictions, path):
        path.write_text("".join(f"{id_} {text}\\n" for id_, text in predictions.items()))
'''

METHOD = '''
"""A learned scale on every feed-forward block's output, routed before it is applied."""

import torch

from multitask_vl.config.schema import MethodConfig
from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


class ScaleConfig(MethodConfig):
    start: float = 1.0


class Scaled(torch.nn.Module):
    def __init__(self, base, width, start):
        super().__init__()
        self.base, self.scale = base, torch.nn.Parameter(torch.full((width,), start))

    def forward(self, x):
        return self.base(x) * self.scale


@METHODS.register("scale")
class Scale(Method[ScaleConfig]):
    Config = ScaleConfig

    def wrap(self, site, module):
        return Scaled(module, site.d_out, self.config.start) if site.role == "ffn_out" else module
'''

ROUTING_FUNCTION = '''
"""x_t minus x_v."""

from multitask_vl.registry import ROUTING


@ROUTING.register("minus")
def minus(x_t, x_v):
    return x_t - x_v
'''


def test_task_method_and_routing_train_from_one_file_each(tmp_path, monkeypatch, capsys):
    tiny_run.write_dataset(tmp_path)
    modules = tmp_path / "outside"
    modules.mkdir()
    for name, code in {"my_task": TASK, "my_method": METHOD, "my_routing": ROUTING_FUNCTION}.items():
        (modules / f"{name}.py").write_text(textwrap.dedent(code))
    (tmp_path / "words.txt").write_text("red blue green a the")
    monkeypatch.syspath_prepend(str(modules))
    tasks = tiny_run.base_config(tmp_path)["tasks"]
    letters = {
        "type": "letters",
        "prompt": "letters: ",
        "splits": {split: {"words": "words.txt"} for split in ("train", "test")},
    }
    changes = {
        "plugins": ["my_task", "my_method", "my_routing"],
        "tasks": {**tasks, "spelling": letters},
        "routing": {"function": {**dict.fromkeys(tasks, "none"), "spelling": "minus"}},
        "method": [{"name": "scale", "start": 0.9}, {"name": "adapter", "rank": 4}],
    }
    config = tiny_run.write_config(tmp_path, **{k: v for k, v in changes.items() if k != "method"})
    text = config.read_text()
    config.write_text(text.replace(text[text.index("method:") : text.index("routing:")], ""))
    with config.open("a") as file:
        file.write("method: " + json.dumps(changes["method"]) + "\n")
    assert tiny_run.launch("train", "--config", str(config), "training.max_steps=null", "training.epochs=1") == 0, (
        capsys.readouterr().err
    )

    run = tmp_path / "run"
    scores = json.loads((run / "scores.json").read_text())["splits"]["test"]["tasks"]
    assert scores["spelling"]["count"] == 5
    assert (run / "submission/test/letters.txt").read_text().count("\n") == 5
    assert "spelling" in {task for _, task, _ in tiny_run.read_losses(run)}
    from safetensors.torch import load_file

    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    scales = [value for name, value in saved.items() if name.endswith(".scale")]
    assert len(scales) == 4
    assert all((value != 0.9).any() for value in scales)


def test_plugin_may_be_named_as_a_launch_script(tmp_path, monkeypatch):
    """`python launch/train_multitask.py` would find launch/evaluate.py first."""
    (tmp_path / "evaluate.py").write_text(textwrap.dedent(ROUTING_FUNCTION).replace("minus", "compared"))
    monkeypatch.setattr(sys, "path", [str(tiny_run.ROOT / "launch"), str(tmp_path), *sys.path])
    monkeypatch.setattr(ROUTING, "_entries", dict(ROUTING._entries))
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    load_plugins(["evaluate"])
    assert ROUTING.get("compared")(3, 1) == 2
    monkeypatch.delitem(sys.modules, "evaluate")


def test_plugin_that_fails_on_import_is_reported(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("def task(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="plugins: 'half_written' fails on import: SyntaxError: invalid syntax"):
        load_plugins(["half_written"])


def test_launch_script_is_not_a_plugin(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tiny_run.ROOT / "launch"), *sys.path])
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    with pytest.raises(InputError, match=r"plugins: 'evaluate' is the launch script .*launch/evaluate\.py\. Is"):
        load_plugins(["evaluate"])
    assert "evaluate" not in sys.modules
