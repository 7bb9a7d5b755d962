"""The published experiments: figures, recipes, parameter counts, and training of the shrunk models."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from multitask_vl.cli.main import main
from multitask_vl.config.reproduces_schema import PublishedRow
from multitask_vl.config.schema import BackboneConfig, VisualConfig
from multitask_vl.data.schedule import Schedule, StepPlan
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.registry import TASKS
from multitask_vl.reports.markers import markers
from multitask_vl.reproduction.experiments import (
    EXPERIMENTS_SECTION,
    experiments_as_markdown,
    find_experiment,
    read_experiments,
)
from multitask_vl.reproduction.parameters import parameter_report, with_known_sizes
from multitask_vl.training.state import TrainState
from multitask_vl.training.step import train_step
from tests import tiny_run
from tests.reproduction.test_parameters import COUNTS
from tests.tiny_models import FAMILIES, SMALL, tiny_batch

BEGIN, END = markers(EXPERIMENTS_SECTION)
PAGE = next(path for path in sorted((tiny_run.ROOT / "docs").glob("*.md")) if BEGIN in path.read_text())
FOUR = ["vqa", "gqa", "nlvr2", "coco_caption"]
BOTTLENECK, NORMS = 148_320, {"encoder": 19_968, "decoder": 29_184}
"""Parameters of 768 -> 96 -> 768 with biases, and of BART's layer norms."""
LARGE, LARGE_TOTAL = COUNTS["vl_pet_large"]
COUNTS_WITHOUT_ID = {
    # number of modules in each of the six decoder layers, where the large model has one
    **{
        f"vl_pet/decoder_{sites}": (LARGE + 6 * extra * BOTTLENECK, LARGE_TOTAL + 6 * extra * BOTTLENECK)
        for extra, names in enumerate(
            (
                ("self_attn", "cross_attn", "ffn", "key"),
                ("self_attn_cross_attn", "self_attn_ffn", "cross_attn_ffn"),
                ("self_attn_cross_attn_ffn",),
            )
        )
        for sites in names
    },
    "vl_pet/norms_none": (LARGE - NORMS["encoder"], LARGE_TOTAL),
    "vl_pet/norms_decoder": (LARGE - NORMS["encoder"] + NORMS["decoder"], LARGE_TOTAL),
    "vl_pet/norms_all": (LARGE + NORMS["decoder"], LARGE_TOTAL),
    **{f"vl_pet/single_task_{task}": COUNTS["vl_pet_large"] for task in FOUR},
    **{f"vl_pet/t5_single_task_{task}": COUNTS["t5_vl_pet_large"] for task in FOUR},
    **{f"routing/single_adapter_{name}": COUNTS["adapter_single"] for name in ("none", "mul", "add", "mm1", "mm2")},
    **{
        f"routing/multiple_adapters_{name}": COUNTS["adapter_per_task"]
        for name in ("none", "mul", "add", "mm1", "mm2", "comb1", "comb2", "comb3", "comb4")
    },
    "routing/single_lora_none": COUNTS["lora_single"],
    # 36 updates of rank 96, all biases, the visual embedding
    **{f"routing/single_lora_{name}": (7_017_216, 146_465_280) for name in ("mul", "add", "mm1", "mm2")},
}
"""Name -> trainable and total of the rows without an id; tests/reproduction/test_parameters.py has the others."""


@pytest.fixture(scope="module")
def experiments():
    """All files of configs/experiments."""
    return read_experiments()


def test_documentation_tables_are_current(experiments):
    tables = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert tables == experiments_as_markdown(experiments), (
        "run: multitask-vl ls experiments --write docs/experiments.md"
    )


def test_ls_experiments_prints_and_writes_tables(experiments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("multitask_vl.reproduction.experiments.read_experiments", lambda: experiments[:3])
    assert not main(["ls", "experiments", "--markdown"])
    printed = capsys.readouterr().out
    assert printed.count("\n| [") == len(
        [row for experiment in experiments[:3] for row in experiment.published or [None]]
    )
    page = tmp_path / "page.md"
    assert main(["ls", "experiments", "--write", str(page)]) == 2
    assert f"--write: file not found: {page}" in capsys.readouterr().err
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert not main(["ls", "experiments", "--write", str(page)])
    assert page.read_text() == f"before\n{BEGIN}\n\n{printed.strip()}\n\n{END}\nafter\n"


def test_experiments_without_id_have_published_counts(experiments):
    expected = {
        one.name: (one.reproduces.trainable, one.reproduces.total) for one in experiments if not one.reproduces.id
    }
    assert expected == COUNTS_WITHOUT_ID
    counted: dict[str, tuple[int, int]] = {}
    for experiment in experiments:
        if experiment.name in expected:
            # settings that do not change the model, such as routing functions and the number of heads
            methods = [
                method.model_dump(mode="json", exclude={"mean_over_padding", "num_heads"})
                for method in experiment.config.method
            ]
            key = json.dumps([experiment.config.backbone.family, methods], sort_keys=True)
            if key not in counted:
                report = parameter_report(with_known_sizes(experiment.config))
                counted[key] = report["trainable"], report["total"]
            assert counted[key] == expected[experiment.name], experiment.name


def test_published_figures_are_consistent(experiments):
    rows = [(experiment, row) for experiment in experiments for row in experiment.published]
    assert len(rows) == 87
    for experiment, row in rows:
        block = experiment.reproduces
        assert row.std.keys() <= row.scores.keys()
        if row.trained_percent:
            here = Decimal(100 * block.trainable) / block.total
            assert round(here, -row.trained_percent.as_tuple().exponent) == row.trained_percent, experiment.name
        if average := row.scores.get("average"):
            scores = [score for metric, score in row.scores.items() if metric != "average"]
            step = Decimal(1).scaleb(average.as_tuple().exponent)
            assert abs(sum(scores) / len(scores) - average) <= step, (experiment.name, row)
        assert re.search(r"^(VL-Adapter|VL-PET|routing paper|ModeX), Table \w", row.source)


def test_experiments_follow_published_recipes(experiments):
    for experiment in experiments:
        config, family = experiment.config, experiment.config.backbone.family
        folder = experiment.name.split("/")[0]
        training, tasks = config.training, config.tasks
        batches = {name: int(training.batch_size * task.batch_size_ratio) for name, task in tasks.items()}
        published = {"bart": (500, 833, 166, 416), "t5": (300, 500, 100, 250)}[family]
        assert batches.items() <= dict(zip(FOUR, published, strict=True)).items()
        assert (training.epochs, training.optimizer, training.mixed_precision) == (20, "adamw_hf_legacy", "no")
        limits = {name: (task.max_input_tokens, task.overflow) for name, task in tasks.items()}
        truncated = {"vqa": (20, "truncate"), "gqa": (20, "truncate"), "nlvr2": (None, "truncate")}
        assert limits.items() <= (truncated | {"coco_caption": (40, "truncate")}).items()
        prompts = {task.prompt for task in tasks.values()}
        assert prompts == {""} or prompts <= {"vqa: ", "gpa: ", "nlvr: ", "caption: "}
        assert {tasks[name].decoding.mode for name in ("vqa", "gqa") if name in tasks} <= {"greedy"}
        single_task = re.search(r"single_task_(\w+)", experiment.name)
        assert list(tasks) == ([single_task[1]] if single_task else FOUR)
        if folder == "vl_pet":
            assert config.seed == 42
            assert training.lr == (3e-4 if family == "t5" else 1e-3)
            assert "coco_caption" not in tasks or tasks["coco_caption"].decoding.max_length == 20
        else:
            assert config.seed == 9595


def test_experiments_train(experiments):
    """Two steps per task on tiny models: one row of each backbone and kind of method, with and without routing."""
    structure = {"name", "sharing", "mapping", "adapter_type", "granularity"}
    representatives = {}
    for experiment in experiments:
        config = _shrunk(experiment.config)
        methods = [method.model_dump_json(include=structure) for method in config.method]
        routed = any(function != "none" for function in config.routing.function.values())
        representatives.setdefault((config.backbone.family, *methods, routed), (experiment.name, config))
    assert len(representatives) >= 33
    for name, config in representatives.values():
        _train(name, config)


def _train(name: str, config) -> None:
    model = build_model(config)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    names = list(config.tasks)
    tasks = {task: TASKS.get(task)(task, config.tasks[task], config.data_dir) for task in names}
    sizes, num_steps = dict.fromkeys(names, 3), 2 * len(names) + 1  # the first step of LoRA changes B only
    changes = {"max_steps": num_steps, "warmup_ratio": 0.0}
    config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
    schedule = Schedule(sizes, sizes, config.sampling, config.seed)
    state = TrainState.create(model, tasks, schedule, config, Accelerator(cpu=True))
    for step in range(num_steps):
        task = names[step % len(names)]
        batch = tiny_batch(task, images=2 if task == "nlvr2" else 1)
        result = train_step(state, StepPlan(step, task, np.arange(len(batch)), 0), batch)
        assert math.isfinite(result.loss), name
    momentum = {key: state.optimizer.state.get(value, {}).get("exp_avg") for key, value in state.parameters.items()}
    reached = {key for key, value in momentum.items() if value is not None and value.any()}
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert "visual.project.weight" in moved <= set(state.parameters), name
    # the published recipe gives zeros to the box layer
    assert set(state.parameters) - reached <= {"visual.box.weight"}, name


def _shrunk(config):
    """The configuration with two tasks, and a backbone and methods of a few thousand weights."""
    sizes = SMALL | {"gate_rank": 8, "decoder_rank": 8}
    family = config.backbone.family
    names = [name for name in ("vqa", "nlvr2") if name in config.tasks] or list(config.tasks)
    function = config.routing.function
    functions = (
        dict.fromkeys(names, function) if isinstance(function, str) else {name: function[name] for name in names}
    )
    methods = [
        method.model_copy(update={key: size for key, size in sizes.items() if key in type(method).model_fields})
        for method in config.method
    ]
    return config.model_copy(
        update={
            "backbone": BackboneConfig(family=family, config=FAMILIES[family], extra_tokens=80, dropout=0.1),
            "visual": VisualConfig(feature_dim=8, pool=(6, 6)),
            "method": methods,
            "tasks": {name: config.tasks[name] for name in names},
            "routing": config.routing.model_copy(update={"function": functions}),
        }
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("", r"x\.yaml: the block 'reproduces:' is missing"),
        ("reproduces: {paper: A}", r"x\.yaml:2: reproduces\.trainable: is missing"),
        ("reproduces: {trainable: 1, total: 2, scores: {bleu: 3}}", r"x\.yaml:2: reproduces\.scores.*bleu"),
        (
            "reproduces: {trainable: 1, total: 2, trained_percent: lots}",
            r"trained_percent: got 'lots'; expected a number",
        ),
        ("reproduces: {trainable: 1, total: 2, trained_percent: 120}", r"got 120; must be less than or equal to 100"),
        ("reproduces: {trainable: 1, total: 2, tabel: 1}", r"reproduces\.tabel: unknown key; did you mean 'table'"),
    ],
)
def test_invalid_reproduces_block_is_reported(tmp_path, block, message):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "x.yaml").write_text(f"seed: 1\n{block}\n")
    with pytest.raises(InputError, match=message):
        read_experiments(tmp_path)


def test_duplicate_experiment_id_is_reported(tmp_path):
    (tmp_path / "experiments").mkdir()
    for name in ("x", "y"):
        path = tmp_path / "experiments" / f"{name}.yaml"
        path.write_text("reproduces: {id: same, trainable: 1, total: 2}\n")
    with pytest.raises(InputError, match=r"y\.yaml: reproduces\.id: 'same' is also the id of .*x\.yaml"):
        read_experiments(tmp_path)
    assert find_experiment("y", tmp_path).name == "y"


METRICS = {"vqa": "vqa", "gqa": "gqa", "nlvr2": "nlvr2", "cider": "coco_caption", "avg": "average"}
METRICS |= {"nlvr2_testp": "nlvr2", "coco_cider": "coco_caption"}
"""Key of the transcribed results -> key of a `reproduces:` block."""


@pytest.mark.shared
def test_no_published_row_is_missing(experiments, shared):
    """Each transcribed row is in a block to the digit, or in the list of rows that cannot be run."""
    blocks = [(experiment.name, row) for experiment in experiments for row in experiment.published]
    cells = [line.split(" | ") for line in PAGE.read_text().split("## Rows without a configuration")[1].splitlines()]
    results = yaml.safe_load((shared / "reference" / "published_results.yaml").read_text())["results"]
    for result in results:
        paper, tables = result["source"].split(" ")[0].split("/")
        paper = {"routing": "routing paper", "vlpet": "VL-PET", "modex": "ModeX"}[paper]
        tables = [re.sub(r"^(T|Fig)", "", table) for table in tables.split("+")]
        parts = [result]
        if result["setting"] == "single-task image-text":
            values = result["values"]
            parts = [{"values": {key: values[key]}, "std": result["std"]} for key in METRICS if key in values]
            parts.remove({"values": {"avg": values["avg"]}, "std": result["std"]})
        runnable = "multitask image-text" in result["setting"] or "VL-T5" in result["backbone"] or len(parts) > 1
        ending = f"_{result['routing']}" if "routing" in result else ""
        found = runnable and all(
            any(
                _is_from(row.source, paper, tables[0]) and _figures(row, part) == _transcribed(part)
                for name, row in blocks
                if name.endswith(ending)
            )
            for part in parts
        )
        excused = any(
            all(_is_from(line[0], f"| {paper}", table) for table in tables)
            and (result["method"] in line[1] if runnable else line[1].startswith("all"))
            for line in cells
            if len(line) == 3
        )
        assert found or excused, result


def _is_from(source: str, paper: str, table: str) -> bool:
    return source.startswith(f"{paper}, ") and re.search(rf"\b{table}\b", source) is not None


def _transcribed(result: dict) -> dict[str, tuple[float, float | None]]:
    figures = {METRICS[key]: (value, result.get("std", {}).get(key)) for key, value in result["values"].items()}
    return figures | ({"trained": (result["trainable_pct"], None)} if "trainable_pct" in result else {})


def _figures(row: PublishedRow, result: dict) -> dict[str, tuple[float, float | None]]:
    """Figures of a block that ``result`` has as well."""
    wanted = _transcribed(result)
    stds = {metric: float(value) for metric, value in row.std.items()}
    figures = {metric: (float(score), stds.get(metric)) for metric, score in row.scores.items() if metric in wanted}
    if "trained" in wanted and row.trained_percent is not None:
        figures["trained"] = (float(row.trained_percent), None)
    return figures
