"""Error messages of invalid configurations: place, key, value and fix."""

import os
import subprocess
import sys

import pytest

from multitask_vl.config import locate
from multitask_vl.errors import InputError
from tests.config_files import config_folder, problems_of

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    yield from config_folder(tmp_path, monkeypatch)


BROKEN = """\
compose: [base.yaml]
plugins: [color_plugin]
seed: 1
seed: 2
tasks:
  colors: {promt: x, style: lng, splits: {train: {questions: 3, extra: 1}, test: {}}}
  colrs: {}
  shades: {type: color}
  rest: 5
method: {name: thn, rank: 8}
routing:
  function: mull
  source: encodr
training:
  lr: fast
  batch_size: true
  epochs: 2
  betas: [0.9]
  lrr: 1
evaluation: {final_splits: test}
features: {shuffle_images: 5, store: {}}
visual:
data_dir: 3
"""


def test_load_reports_all_problems_in_file_order(folder):
    (folder / "broken.yaml").write_text(BROKEN)
    assert [problem.split(" (known")[0] for problem in problems_of("broken.yaml")] == [
        "broken.yaml:4: seed: duplicate key (first at broken.yaml:3); keep one of them",
        "broken.yaml:6: tasks.colors.splits.train.questions: got 3; expected text (in quotes: '3')",
        "broken.yaml:6: tasks.colors.splits.train.extra: unknown key",
        "broken.yaml:6: tasks.colors.splits.test.questions: is missing",
        "broken.yaml:6: tasks.colors.style: got 'lng'; did you mean 'long'?",
        "broken.yaml:6: tasks.colors.promt: unknown key; did you mean 'prompt'?",
        "broken.yaml:7: tasks.colrs: unknown task; did you mean 'colors'? (or set its type; custom tasks are "
        "imported by plugins)",
        "broken.yaml:8: tasks.shades.type: got 'color'; did you mean 'colors'?",
        "broken.yaml:9: tasks.rest: got 5; expected a mapping of its settings",
        "broken.yaml:10: method.name: got 'thn'; did you mean 'thin'?",
        "broken.yaml:12: routing.function: got 'mull'; did you mean 'mul'?",
        "broken.yaml:13: routing.source: got 'encodr'; did you mean 'encoder'?",
        "broken.yaml:15: training.lr: got 'fast'; expected a number",
        "broken.yaml:16: training.batch_size: got true; true and false are not allowed here",
        "broken.yaml:18: training.betas.1: is missing",
        "broken.yaml:19: training.lrr: unknown key; did you mean 'lr'?",
        "broken.yaml:20: evaluation.final_splits: got 'test'; expected a list, such as [test]",
        "broken.yaml:21: features.store: got a mapping; expected a list or text or a path",
        "broken.yaml:21: features.shuffle_images: got 5; expected true or false",
        "broken.yaml:22: visual: got null; expected a mapping",
        "broken.yaml:23: data_dir: got 3; expected a path",
        "base.yaml:4: training.max_steps: got 100; epochs is 2 as well; set one to null (training.epochs=null)",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.lr"], "override 'training.lr': expected key=value, such as training.lr=1e-3"),
        (["--seed=3"], "override '--seed=3': remove the leading dashes: 'seed=3'"),
        (["training..lr=3"], "override 'training..lr=3': a key is a list of names joined by single dots"),
        (["compose=[x.yaml]"], "override 'compose=[x.yaml]': compose is allowed in files only"),
        (["seed="], "override 'seed=': no value after '='; write null for no value or '\"\"' for empty text"),
        (["visual.pool=[1, 2"], "override 'visual.pool=[1, 2': invalid YAML: while parsing a flow sequence"),
        (["method={a: 1, a: 2}"], "override 'method={a: 1, a: 2}': a: duplicate key"),
        (["seed=x"], "override: seed: got 'x'; expected an integer"),
        (
            ["training.max_steps=null", "training.epochs=null"],
            "override: training.max_steps: neither epochs nor max_steps is set",
        ),
        (["training.max_grad_norm=.inf"], "override: training.max_grad_norm: got inf; expected a finite number"),
        (["training.lr=-1"], "override: training.lr: got -1; must be greater than 0"),
        (["visual.pool=[1, 2, 3]"], "override: visual.pool: got a list; must have at most 2 items, not 3"),
        (
            ["evaluation.final_splits=[tset]"],
            "override: evaluation.final_splits: no task has a split 'tset'; did you mean 'test'?",
        ),
        (
            ["routing.function.hue=mul"],
            "override: routing.function.hue: unknown task (tasks: colors, shades)",
        ),
        (
            ["routing.function.shades=null"],
            "override: routing.function: no function for shades; name one for each task (shades: none)",
        ),
        (["routing.function.shades=swrl"], "override: routing.function.shades: got 'swrl'; did you mean 'swirl'?"),
        (["backbone.family=brt"], "override: backbone.family: got 'brt'"),
        (["method=3"], "override: method: got 3; expected a mapping such as {name: adapter}"),
        (["method=[{rank: 2}]"], "override: method: the key 'name' is missing or not text (known methods: "),
        (["method.rnk=2"], "override: method.rnk: unknown key; did you mean 'rank'?"),
        (["tasks.colors.decoding.mode=classify"], "override: tasks.colors.decoding.choices: mode is classify"),
        (["plugins=[color_plugn]"], "override: plugins: cannot import 'color_plugn'"),
        (["training=[1]"], "override: training: got a list; expected a mapping"),
        (["tasks=3"], "override: tasks: got 3; expected a mapping"),
        (
            ["training.max_grad_norm=None"],
            "override: training.max_grad_norm: got 'None'; expected a number (write null for no value)",
        ),
        (["Seed=3"], "override: Seed: unknown key; did you mean 'seed'?"),
    ],
)
def test_load_reports_invalid_override(overrides, expected):
    found = problems_of("run.yaml", overrides)
    assert any(problem.startswith(expected) for problem in found), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "wrong.yaml: the file is empty; a configuration is a mapping"),
        ("# only this\n", "wrong.yaml: the file is empty"),
        ("- 1\n", "wrong.yaml:1: a configuration is a mapping of keys to values, got a list"),
        ("just words\n", "wrong.yaml:1: a configuration is a mapping of keys to values, got a single value"),
        ("seed: 1\ntraining: [1, 2\n", "wrong.yaml:3: invalid YAML: while parsing a flow sequence"),
        ("seed: 1\n\tlr: 2\n", "wrong.yaml:2: invalid YAML: while scanning for the next token found character"),
        ("seed: 1\n---\nseed: 2\n", "wrong.yaml:2: invalid YAML: expected a single document"),
        ("seed: 1\nrun_dir: \x07\n", "wrong.yaml:2: invalid YAML: special characters are not allowed"),
        ("seed: 1\n? [a]\n: 3\n", "wrong.yaml:2: a key must be text, got a list"),
        ("seed: !!python/name:os.system x\n", "wrong.yaml:1: the tag 'tag:yaml.org,2002:python/name:os.system' is not"),
        ("seed: !!int x\n", "wrong.yaml:1: 'x' is tagged !!int but is not one"),
        ("backbone: &a {config: *a}\n", "wrong.yaml:1: the alias contains itself"),
        (
            "training.lr: 3\n",
            "wrong.yaml:1: training.lr: unknown key (dots join keys on the command line only; in a file",
        ),
        ("compose: base.yaml\n", "wrong.yaml:1: compose: got 'base.yaml'; expected a list, such as [base.yaml]"),
        ("compose: [3]\n", "wrong.yaml:1: compose: got 3; expected the path of a YAML"),
        (
            "compose:\n  - base.yaml\n  - bse.yaml\n",
            "wrong.yaml:3: compose: file not found: 'bse.yaml'; did you mean 'base'?",
        ),
        (
            "compose: [no/where.yaml]\n",
            "wrong.yaml:1: compose: file not found: 'no/where.yaml': the folder no does not exist",
        ),
        ("compose: [wrong.yaml]\n", "wrong.yaml:1: compose: cycle: wrong.yaml -> wrong.yaml"),
    ],
)
def test_load_reports_invalid_file(folder, text, expected):
    (folder / "wrong.yaml").write_text(text)
    found = problems_of("wrong.yaml")
    assert any(problem.startswith(expected) for problem in found), found


def test_load_reports_unreadable_file(folder):
    (folder / "latin.yaml").write_bytes("run_dir: caf\xe9\n".encode("latin-1"))
    assert problems_of("latin.yaml") == ["latin.yaml: cannot be read: not UTF-8 text"]
    assert problems_of(".") == [".: cannot be read: Is a directory"]
    assert problems_of("rum.yaml") == ["rum.yaml: file not found; did you mean 'run'?"]
    assert problems_of("no/where.yaml") == ["no/where.yaml: file not found: the folder no does not exist"]


def test_load_reports_compose_cycle_and_unreadable_layers(folder):
    (folder / "one.yaml").write_text("compose: [two.yaml, gone.yaml, bad.yaml]\n")
    (folder / "two.yaml").write_text("seed: 1\ncompose: [one.yaml]\n")
    (folder / "bad.yaml").write_text("a: [\n")
    found = problems_of("one.yaml")
    assert found[0].startswith("one.yaml:1: compose: file not found: 'gone.yaml'")
    assert found[1] == "two.yaml:2: compose: cycle: one.yaml -> two.yaml -> one.yaml"
    assert found[2].startswith("bad.yaml:2: invalid YAML:")
    assert len(found) == 3


def test_load_reports_failing_plugin(folder):
    (folder / "crooked.py").write_text("def (:\n")
    (folder / "own.yaml").write_text("plugins:\n  - crooked\n  - 5\n")
    found = problems_of("own.yaml")
    assert found[0].startswith("own.yaml:2: plugins: 'crooked' fails on import: SyntaxError:")
    assert found[1] == "own.yaml:3: plugins.1: got 5; expected text (in quotes: '5')"


def test_locate_resolves_bundled_names(monkeypatch, folder):
    monkeypatch.setattr("multitask_vl.config.resources.WEIGHTS_DIR", folder)
    (folder / "bart").mkdir()
    assert locate("bundled:bart") == str(folder / "bart")
    assert locate("facebook/bart-base") == "facebook/bart-base"
    with pytest.raises(InputError, match=r"bundled:brat: not found in .*; did you mean 'bart'"):
        locate("bundled:brat")
    with pytest.raises(InputError, match="not found in"):
        locate("bundled:..")


def test_invalid_config_exits_with_code_2(folder):
    # without tasks and methods, nothing heavy is imported
    (folder / "run.yaml").write_text("compose: [base.yaml]\nseed: nine\n")
    (folder / "base.yaml").write_text("training: {lrr: 1e-3}\n")
    code = (
        "import sys; from multitask_vl.config import load; from multitask_vl.errors import cli_errors;"
        "sys.exit(cli_errors(lambda: load('run.yaml'))())"
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
        "error: run.yaml:2: seed: got 'nine'; expected an integer",
        "error: base.yaml:1: training.lrr: unknown key; did you mean 'lr'?",
    ]
