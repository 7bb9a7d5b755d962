"""What the README says is so: its commands run, its code runs, its files and numbers exist."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import yaml

from multitask_vl.config import load_config
from multitask_vl.registry import METHODS, ROUTING
from tests import tiny_run
from tests.reproduction.test_parameters import PUBLISHED

README = (tiny_run.ROOT / "README.md").read_text()


def block(tag: str) -> str:
    """The code block that follows ``<!-- test: tag -->``."""
    return re.search(rf"<!-- test: {tag} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def made(target: str) -> list[str]:
    """The commands that make would run for a target on a machine that is set up."""
    words = ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", target, "WORLD=absent"]
    # the tests themselves may run under make, whose flags would be handed on
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    said = subprocess.run(words, cwd=tiny_run.ROOT, env=env, capture_output=True, text=True, check=True).stdout
    return [line.replace(".venv/bin/", "").strip() for line in said.splitlines()]


def test_make_demo_runs_the_commands_that_are_shown():
    shown = block("demo").strip().splitlines()
    run = [line.replace("absent", "data/world") for line in made("demo") if not line.startswith("rm ")]
    assert run == shown


def test_make_test_is_what_ci_runs():
    script = (tiny_run.ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert any("pytest" in line for line in made("test"))


@pytest.mark.slow
def test_the_demo_from_world_to_report(tmp_path):
    """Each shown command with its words, on a world a fiftieth in size; one of them through the real launcher."""
    world = f"data_dir={tmp_path / 'world'}"
    runs = {name: str(tmp_path / name) for name in ("runs/quickstart_blind", "runs/quickstart")}
    few = ["training.steps=8", "evaluation.limit=8", "evaluation.every_epochs=null", "training.log_every=2"]
    for line in block("demo").strip().splitlines():
        words = [runs.get(word, word) for word in line.split()]
        if words[2] == "multitask_vl.synthetic.build":
            words = [*words[:-1], str(tmp_path / "world"), "--scale", "0.02"]
        elif "train_multitask.py" in line:
            name = re.search(r"configs/(\w+)\.yaml$", line)[1]
            words = [*words, world, f"run_dir={tmp_path / 'runs' / name}", *few]
        elif "extract_features" in line:
            words = [*words, world]
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]
        command = command if words[0] == "accelerate" else [sys.executable, *words[1:]]
        done = subprocess.run(
            command, cwd=tiny_run.ROOT, env=tiny_run.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    for task in ("vqa", "gqa", "nlvr2", "coco_caption"):
        assert task in done.stdout
    scores = json.loads((tmp_path / "runs/quickstart/scores.json").read_text())
    assert set(scores["splits"]) == {"tune", "report", "heldout"}
    assert (tmp_path / "runs/quickstart/report.html").stat().st_size > 50_000

    code = block("adapter") + block("answer")
    code = code.replace("runs/quickstart", str(tmp_path / "runs/quickstart")).replace(
        "data/world", str(tmp_path / "world")
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.ROOT, env=tiny_run.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    counts = scores["parameters"]
    trained, *answers = said.stdout.splitlines()
    assert trained == f"{counts['trainable']} of {counts['total']} parameters trained"
    assert len(answers) == 2


def test_the_yaml_that_is_shown_loads(tmp_path):
    shown = yaml.safe_load(re.search(r"```yaml\n(   compose:.*?)```", README, re.DOTALL)[1])
    shown["compose"] = [str(tiny_run.ROOT / "configs" / name) for name in shown["compose"]]
    path = tmp_path / "yours.yaml"
    path.write_text(yaml.safe_dump(shown))
    config = load_config(path)
    assert config.routing.function == {"vqa": "mul", "gqa": "mul", "nlvr2": "mm1", "coco_caption": "mm2"}
    assert config.method[0].sharing == "per_task"


def test_the_routing_functions_that_are_shown_are_those_there_are(monkeypatch, tmp_path):
    table = README[README.index("`routing.function` is one of") : README.index("for all tasks, or per task")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(ROUTING.names())
    monkeypatch.setattr(ROUTING, "_entries", dict(ROUTING._entries))
    module = tmp_path / "minus.py"
    module.write_text(re.search(r"```python\n(from multitask_vl.registry import ROUTING.*?)```", README, re.DOTALL)[1])
    runpy.run_path(str(module))
    assert ROUTING.get("minus")(3, 1) == 2


def test_the_methods_that_are_shown_are_those_there_are():
    table = README[README.index("| `method:` |") : README.index("All of them run on BART and on T5")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(METHODS.names())


def test_what_is_named_exists():
    for path in re.findall(
        r"(?<![\w/])((?:launch|configs|tests|multitask_vl|docs)/[\w/.-]+\.(?:py|yaml|md|svg))", README
    ):
        assert (tiny_run.ROOT / path).exists(), path
    for module in re.findall(r"python -m (\w[\w.]*)", README):
        assert importlib.util.find_spec(module) is not None, module
    for target in re.findall(r"make (demo|test|lint|clean)", README):
        assert made(target)


def test_parameter_counts_are_those_that_are_counted():
    for name, (trainable, total) in PUBLISHED.items():
        assert f"{trainable:,} of {total:,}" in README, name
