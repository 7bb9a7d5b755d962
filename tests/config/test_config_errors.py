"""Is everything that can be wrong with a configuration told at once, with its place and a way to mend it?"""

import importlib
import os
import subprocess
import sys

import pytest

from multitask_vl.config import load, locate
from multitask_vl.errors import InputError
from tests.config_files import config_folder, problems_of

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    yield from config_folder(tmp_path, monkeypatch)


BROKEN = """\
compose: [base.yaml]
plugins: [colour_plugin]
seed: 1
seed: 2
tasks:
  colours: {promt: x, style: lng, splits: {train: {questions: 3, extra: 1}, report: {}}}
  colurs: {}
  shades: {type: colour}
  rest: 5
method: {name: thn, rank: 8}
routing:
  function: mull
  source: encoder
training:
  lr: fast
  batch_size: true
  epochs: 2
  betas: [0.9]
  lrr: 1
evaluation: {final: report}
features: {control: 5, store: {}}
visual:
data_dir: 3
"""


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file(folder):
    (folder / "broken.yaml").write_text(BROKEN)
    assert [problem.split(" (known")[0] for problem in problems_of("broken.yaml")] == [
        "broken.yaml:4: seed: written twice (first at broken.yaml:3); keep one of them",
        "broken.yaml:6: tasks.colours.splits.train.questions: got 3; expected text (in quotes: '3')",
        "broken.yaml:6: tasks.colours.splits.train.extra: unknown key",
        "broken.yaml:6: tasks.colours.splits.report.questions: is missing",
        "broken.yaml:6: tasks.colours.style: got 'lng'; did you mean 'long'?",
        "broken.yaml:6: tasks.colours.promt: unknown key; did you mean 'prompt'?",
        "broken.yaml:7: tasks.colurs: there is no task of this name; did you mean 'colours'? (or say its type; "
        "a task of your own: plugins)",
        "broken.yaml:8: tasks.shades.type: got 'colour'; did you mean 'colours'?",
        "broken.yaml:9: tasks.rest: got 5; expected a mapping of its settings",
        "broken.yaml:10: method.name: got 'thn'; did you mean 'thin'?",
        "broken.yaml:12: routing.function: got 'mull'; did you mean 'mul'?",
        "broken.yaml:13: routing.source: got 'encoder'; did you mean 'encoder_pooled'?",
        "broken.yaml:15: training.lr: got 'fast'; expected a number",
        "broken.yaml:16: training.batch_size: got true; a truth value cannot stand here",
        "broken.yaml:18: training.betas.1: is missing",
        "broken.yaml:19: training.lrr: unknown key; did you mean 'lr'?",
        "broken.yaml:20: evaluation.final: got 'report'; expected a list, such as [report]",
        "broken.yaml:21: features.store: got a mapping; expected a list or text or a path",
        "broken.yaml:21: features.control: got 5 (one of: none, shuffled)",
        "broken.yaml:22: visual: got nothing; expected a mapping",
        "broken.yaml:23: data_dir: got 3; expected a path",
        "base.yaml:4: training.steps: got 100; epochs is 2 as well; set one to null (training.epochs=null)",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["training.lr"], "override 'training.lr': expected key=value, such as training.lr=1e-3"),
        (["--seed=3"], "override '--seed=3': write it without dashes: 'seed=3'"),
        (["training..lr=3"], "override 'training..lr=3': a key is names joined by single dots, such as training.lr"),
        (["compose=[x.yaml]"], "override 'compose=[x.yaml]': compose belongs in a file"),
        (["seed="], "override 'seed=': no value after '='; write null for nothing or '\"\"' for an empty text"),
        (["visual.pool=[1, 2"], "override 'visual.pool=[1, 2': not YAML: while parsing a flow sequence"),
        (["method={a: 1, a: 2}"], "override 'method={a: 1, a: 2}': a: written twice"),
        (["seed=x"], "override: seed: got 'x'; expected a whole number"),
        (["training.steps=null", "training.epochs=null"], "override: training.steps: neither epochs nor steps is set"),
        (["training.clip_norm=.inf"], "override: training.clip_norm: got inf; expected a finite number"),
        (["training.lr=-1"], "override: training.lr: got -1; must be greater than 0"),
        (["visual.pool=[1, 2, 3]"], "override: visual.pool: got a list; must have at most 2 items, not 3"),
        (
            ["evaluation.final=[reprot]"],
            "override: evaluation.final: no task has a split 'reprot'; did you mean 'report'?",
        ),
        (
            ["routing.function.hue=mul"],
            "override: routing.function.hue: there is no such task (tasks: colours, shades)",
        ),
        (
            ["routing.function.shades=null"],
            "override: routing.function: leaves out shades; name each task's function",
        ),
        (["routing.function.shades=swrl"], "override: routing.function.shades: got 'swrl'; did you mean 'swirl'?"),
        (["backbone.family=brt"], "override: backbone.family: got 'brt'"),
        (["method=3"], "override: method: got 3; expected a mapping such as {name: adapter}"),
        (["method=[{rank: 2}]"], "override: method: the key 'name' is missing or no text (known methods: "),
        (["method.rnk=2"], "override: method.rnk: unknown key; did you mean 'rank'?"),
        (["tasks.colours.decoding.kind=choice"], "override: tasks.colours.decoding.choices: kind is choice"),
        (["plugins=[colour_plugn]"], "override: plugins: cannot import 'colour_plugn'"),
        (["training=[1]"], "override: training: got a list; expected a mapping"),
        (["tasks=3"], "override: tasks: got 3; expected a mapping"),
        (
            ["training.clip_norm=None"],
            "override: training.clip_norm: got 'None'; expected a number (nothing is written",
        ),
        (["Seed=3"], "override: Seed: unknown key; did you mean 'seed'?"),
    ],
)
def test_one_wrong_override(words, expected):
    found = problems_of("run.yaml", words)
    assert any(problem.startswith(expected) for problem in found), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "wrong.yaml: holds nothing; a configuration is a mapping"),
        ("# only this\n", "wrong.yaml: holds nothing"),
        ("- 1\n", "wrong.yaml:1: a configuration is a mapping of keys to values, this is a list"),
        ("just words\n", "wrong.yaml:1: a configuration is a mapping of keys to values, this is a single value"),
        ("seed: 1\ntraining: [1, 2\n", "wrong.yaml:3: not YAML: while parsing a flow sequence"),
        ("seed: 1\n\tlr: 2\n", "wrong.yaml:2: not YAML: while scanning for the next token found character"),
        ("seed: 1\n---\nseed: 2\n", "wrong.yaml:2: not YAML: expected a single document"),
        ("seed: 1\nrun_dir: \x07\n", "wrong.yaml:2: not YAML: special characters are not allowed"),
        ("seed: 1\n? [a]\n: 3\n", "wrong.yaml:2: a key must be text, this one is a list"),
        ("seed: !!python/name:os.system x\n", "wrong.yaml:1: the tag 'tag:yaml.org,2002:python/name:os.system' is not"),
        ("seed: !!int x\n", "wrong.yaml:1: 'x' is marked !!int but is none"),
        ("backbone: &a {config: *a}\n", "wrong.yaml:1: this alias contains itself"),
        (
            "training.lr: 3\n",
            "wrong.yaml:1: training.lr: unknown key (dots join keys on the command line only; in a file",
        ),
        ("compose: base.yaml\n", "wrong.yaml:1: compose: got 'base.yaml'; expected a list, such as [base.yaml]"),
        ("compose: [3]\n", "wrong.yaml:1: compose: got 3; expected the path of a YAML"),
        (
            "compose:\n  - base.yaml\n  - bse.yaml\n",
            "wrong.yaml:3: compose: no file 'bse.yaml'; did you mean 'base'?",
        ),
        ("compose: [no/where.yaml]\n", "wrong.yaml:1: compose: no file 'no/where.yaml': there is no folder no"),
        ("compose: [wrong.yaml]\n", "wrong.yaml:1: compose: goes in a circle: wrong.yaml -> wrong.yaml"),
    ],
)
def test_one_wrong_file(folder, text, expected):
    (folder / "wrong.yaml").write_text(text)
    found = problems_of("wrong.yaml")
    assert any(problem.startswith(expected) for problem in found), found


def test_files_that_cannot_be_read(folder):
    (folder / "latin.yaml").write_bytes("run_dir: caf\xe9\n".encode("latin-1"))
    assert problems_of("latin.yaml") == ["latin.yaml: cannot be read: not UTF-8 text"]
    assert problems_of(".") == [".: cannot be read: Is a directory"]
    assert problems_of("rum.yaml") == ["rum.yaml: no such file; did you mean 'run'?"]
    assert problems_of("no/where.yaml") == ["no/where.yaml: no such file: there is no folder no"]


def test_a_circle_over_two_files_and_all_unreadable_layers_are_told(folder):
    (folder / "one.yaml").write_text("compose: [two.yaml, gone.yaml, bad.yaml]\n")
    (folder / "two.yaml").write_text("seed: 1\ncompose: [one.yaml]\n")
    (folder / "bad.yaml").write_text("a: [\n")
    found = problems_of("one.yaml")
    assert found[0].startswith("one.yaml:1: compose: no file 'gone.yaml'")
    assert found[1] == "two.yaml:2: compose: goes in a circle: one.yaml -> two.yaml -> one.yaml"
    assert found[2].startswith("bad.yaml:2: not YAML:")
    assert len(found) == 3


def test_a_plugin_that_fails_on_import_is_named(folder):
    (folder / "crooked.py").write_text("def (:\n")
    (folder / "own.yaml").write_text("plugins:\n  - crooked\n  - 5\n")
    found = problems_of("own.yaml")
    assert found[0].startswith("own.yaml:2: plugins: 'crooked' fails on import: SyntaxError:")
    assert found[1] == "own.yaml:3: plugins.1: got 5; expected text (in quotes: '5')"


def test_embedded_names(monkeypatch, folder):
    # The package offers the function under the module's name, so the module is reached by importing it.
    monkeypatch.setattr(importlib.import_module("multitask_vl.config.resources"), "WEIGHTS", folder)
    (folder / "bart").mkdir()
    assert locate("embedded:bart") == str(folder / "bart")
    assert locate("facebook/bart-base") == "facebook/bart-base"
    with pytest.raises(InputError, match=r"embedded:brat: nothing of this name in .*; did you mean 'bart'"):
        locate("embedded:brat")
    with pytest.raises(InputError, match="nothing of this name"):
        locate("embedded:..")


def test_a_command_ends_with_code_2_and_no_traceback(folder):
    (folder / "run.yaml").write_text(
        "compose: [base.yaml]\nseed: nine\n"
    )  # no task or method: nothing heavy is imported
    (folder / "base.yaml").write_text("training: {lrr: 1e-3}\n")
    code = (
        "import sys; from multitask_vl.config import load; from multitask_vl.errors import exits_cleanly;"
        "sys.exit(exits_cleanly(lambda: load('run.yaml'))())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: run.yaml:2: seed: got 'nine'; expected a whole number",
        "error: base.yaml:1: training.lrr: unknown key; did you mean 'lr'?",
    ]


def test_a_good_file_raises_nothing():
    assert load("run.yaml").config.method[0].name == "thin"
