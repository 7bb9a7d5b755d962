"""Can every published row be run: does its recipe build the published model, train, and say what was published?"""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest
import torch
import yaml

from multitask_vl.config import load_config
from multitask_vl.config.schema import BackboneConfig, VisualConfig
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.registry import TASKS
from multitask_vl.reproduction.experiments import NAME, Published, as_markdown, published_in, read_recipes
from multitask_vl.reproduction.parameters import markers
from multitask_vl.training.optim import build_optimizer, clip_gradients
from tests import tiny_run
from tests.reproduction.test_parameters import PUBLISHED
from tests.tiny_models import FAMILIES, SMALL, tiny_batch

CONFIGS = tiny_run.ROOT / "configs"
BEGIN, END = markers(NAME)
PAGE = tiny_run.ROOT / "docs" / "recipes.md"
FOUR = ["vqa", "gqa", "nlvr2", "coco_caption"]
UNDECIDED = {"legacy_pad_mean", "num_heads"}
"""Settings that decide nothing about parameters."""
BOTTLENECK, NORMS = 148_320, {"encoder": 19_968, "decoder": 29_184}
"""Parameters of 768 -> 96 -> 768 with biases; of BART's layer norms."""
LARGE, LARGE_ALL = PUBLISHED["vl_pet_large"]
OF_NO_FILE = {
    # places of modules in the decoder's six layers, where the large one has one
    "vl_pet/decoder_self_attn": (LARGE, LARGE_ALL),
    "vl_pet/decoder_ffn": (LARGE, LARGE_ALL),
    "vl_pet/decoder_key": (LARGE, LARGE_ALL),
    "vl_pet/decoder_self_attn_cross_attn": (LARGE + 6 * BOTTLENECK, LARGE_ALL + 6 * BOTTLENECK),
    "vl_pet/decoder_self_attn_ffn": (LARGE + 6 * BOTTLENECK, LARGE_ALL + 6 * BOTTLENECK),
    "vl_pet/decoder_cross_attn_ffn": (LARGE + 6 * BOTTLENECK, LARGE_ALL + 6 * BOTTLENECK),
    "vl_pet/decoder_self_attn_cross_attn_ffn": (LARGE + 12 * BOTTLENECK, LARGE_ALL + 12 * BOTTLENECK),
    "vl_pet/norms_none": (LARGE - NORMS["encoder"], LARGE_ALL),
    "vl_pet/norms_decoder": (LARGE - NORMS["encoder"] + NORMS["decoder"], LARGE_ALL),
    "vl_pet/norms_all": (LARGE + NORMS["decoder"], LARGE_ALL),
    # 36 updates of rank 96, all biases, the visual embedding
    **dict.fromkeys(
        [f"routing/single_lora_{function}" for function in ("mul", "add", "mm1", "mm2")], (7_017_216, 146_465_280)
    ),
}
"""Recipe -> trainable and total, where configs/parameters has no file of its method."""


@pytest.fixture(scope="module")
def recipes():
    """Every file of configs/experiments, counted."""
    return read_recipes(CONFIGS)


def test_the_page_has_the_tables_as_the_command_writes_them(recipes):
    stands = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert stands == as_markdown(recipes), "run: python launch/list_experiments.py --write docs/recipes.md"


def test_the_command_prints_and_writes(recipes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("multitask_vl.reproduction.experiments.read_recipes", lambda configs: recipes[:3])
    assert tiny_run.launch("recipes") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| [") == len([row for recipe in recipes[:3] for row in recipe.published or [None]])
    page = tmp_path / "page.md"
    assert tiny_run.launch("recipes", "--write", str(page)) == 2
    assert f"--write: there is no file {page}" in capsys.readouterr().err
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert tiny_run.launch("recipes", "--write", str(page)) == 0
    assert page.read_text() == f"before\n{BEGIN}\n\n{printed.strip()}\n\n{END}\nafter\n"


def test_every_recipe_trains_as_many_parameters_as_the_published_model(recipes):
    counts = {}
    for path in (CONFIGS / "parameters").glob("*.yaml"):
        counts[_decides_parameters(load_config(path))] = PUBLISHED.get(path.stem)
    for recipe in recipes:
        expected = OF_NO_FILE.get(recipe.name) or counts.get(_decides_parameters(recipe.config))
        assert (recipe.trainable, recipe.total) == expected, recipe.name


def test_published_figures_agree_with_the_model_and_with_each_other(recipes):
    for recipe in recipes:
        for row in recipe.published:
            figures = {name: Decimal(figure.split()[0]) for name, figure in row.figures.items()}
            if trained := figures.pop("trained", None):
                here = Decimal(100 * recipe.trainable) / recipe.total
                assert round(here, -trained.as_tuple().exponent) == trained, recipe.name
            if average := figures.pop("average", None):
                step = Decimal(1).scaleb(average.as_tuple().exponent)
                assert abs(sum(figures.values()) / len(figures) - average) <= step, (recipe.name, row)
            assert re.search(r"^(VL-Adapter|VL-PET|routing paper|ModeX), Tables? \w", row.source)


def test_every_recipe_is_the_published_one_with_its_quirks(recipes):
    for recipe in recipes:
        config, family, folder = recipe.config, recipe.config.backbone.family, recipe.name.split("/")[0]
        training, tasks = config.training, config.tasks
        shares = {name: int(training.batch_size * task.batch_share) for name, task in tasks.items()}
        published = {"bart": (500, 833, 166, 416), "t5": (300, 500, 100, 250)}[family]
        assert shares.items() <= dict(zip(FOUR, published, strict=True)).items()
        assert (training.epochs, training.optimizer, training.mixed_precision) == (20, "adamw_decay_after", "no")
        limits = {name: (task.max_input_tokens, task.too_long) for name, task in tasks.items()}
        cut = {"vqa": (20, "truncate"), "gqa": (20, "truncate"), "nlvr2": (None, "truncate")}
        assert limits.items() <= (cut | {"coco_caption": (40, "truncate")}).items()
        prompts = {task.prompt for task in tasks.values()}
        assert prompts == {""} or prompts <= {"vqa: ", "gpa: ", "nlvr: ", "caption: "}
        assert {tasks[name].decoding.kind for name in ("vqa", "gqa") if name in tasks} <= {"greedy"}
        alone = re.search(r"single_task_(\w+)", recipe.name)
        assert list(tasks) == ([alone[1]] if alone else FOUR)
        if folder == "vl_pet":
            assert config.seed == 42
            assert training.lr == (3e-4 if family == "t5" else 1e-3)
            assert "coco_caption" not in tasks or tasks["coco_caption"].decoding.max_length == 20
        else:
            assert config.seed == 9595


def test_every_recipe_trains(recipes):
    """One step a task and at least three, on tiny models; recipes that are one model there are tried once."""
    tried = {}
    for recipe in recipes:
        config = _shrunk(recipe.config)
        tried.setdefault(config.model_dump_json(include={"backbone", "method", "routing"}), (recipe, config))
    assert len(tried) > 40
    for recipe, config in tried.values():
        model = build_model(config).train()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained = model.trainable()
        optimizer = build_optimizer(trained, config.training)
        names, reached = list(config.tasks), set()
        for step in range(2 * len(names) + 1):  # twice a task: the first step of LoRA moves B alone
            name = names[step % len(names)]
            task = TASKS.get(name)(name, config.tasks[name], config.data_dir)
            batch = tiny_batch(name, images=2 if name == "nlvr2" else 1)
            torch.manual_seed(step)
            numerator, denominator = task.reduce(model(batch), *batch.to_reduce())
            loss = numerator / denominator
            assert torch.isfinite(loss), recipe.name
            optimizer.zero_grad()
            loss.backward()
            reached |= {name for name, value in trained.items() if value.grad is not None and value.grad.any()}
            clip_gradients(trained.values(), config.training.clip_norm)
            optimizer.step()
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert "visual.project.weight" in moved <= set(trained), recipe.name
        # the published block gives zero boxes to its map
        assert set(trained) - reached <= {"visual.box.weight"}, recipe.name


@pytest.mark.parametrize(
    "header",
    [
        "# Reproduces: something.\n",
        "# Expected: VQA 66.17 (.27)\n",
        "# Expected: VQA 66.17, VQA 66.2 [A paper, Table 1]\n",
        "# Expected: VQA 66,17 [A paper, Table 1]\n",
        "# Expected: BLEU 36.1 [A paper, Table 1]\n",
        "# Expected: VQA 66.17 [A paper, Table 1]\n# Expected: about as much\n",
    ],
)
def test_headers_in_another_form(tmp_path, header):
    (tmp_path / "x.yaml").write_text(f"{header}seed: 1\n")
    with pytest.raises(InputError, match=r"x\.yaml: 'Expected:' in the header: .* such as"):
        published_in(tmp_path / "x.yaml")


def test_headers_that_are_read(tmp_path):
    text = "# Expected: VQA 66.17 (.27), trained\n#   4.16 % [A paper,\n#   Table 1]\n#   More [1].\n"
    (tmp_path / "x.yaml").write_text(f"{text}# Expected: GQA 5 [B]\na: 1\n# Expected: not of the header\n")
    first, second = published_in(tmp_path / "x.yaml")
    assert (first.figures, first.source) == ({"VQA": "66.17 (.27)", "trained": "4.16"}, "A paper, Table 1")
    assert (second.figures, second.source) == ({"GQA": "5"}, "B")
    (tmp_path / "x.yaml").write_text("# Expected: nothing published, ours.\n")
    assert published_in(tmp_path / "x.yaml") == ()


@pytest.mark.shared
def test_no_published_row_is_missing(recipes, shared):
    """Each transcribed row stands in a header to the digit, or among what cannot be run."""
    expected = [(recipe.name, row) for recipe in recipes for row in recipe.published]
    cells = [line.split(" | ") for line in PAGE.read_text().split("## What cannot be run here")[1].splitlines()]
    rows = yaml.safe_load((shared / "reference" / "published_results.yaml").read_text())["results"]
    for row in rows:
        paper, tables = row["source"].split(" ")[0].split("/")
        paper = {"routing": "routing paper", "vlpet": "VL-PET", "modex": "ModeX"}[paper]
        tables = [re.sub(r"^(T|Fig)", "", table) for table in tables.split("+")]
        parts = [row]
        if row["setting"] == "single-task image-text":
            parts = [{"values": {key: row["values"][key]}, "std": row["std"]} for key in NAMES if key in row["values"]]
            parts.remove({"values": {"avg": row["values"]["avg"]}, "std": row["std"]})
        runnable = "multitask image-text" in row["setting"] or "VL-T5" in row["backbone"] or len(parts) > 1
        ending = f"_{row['routing']}" if "routing" in row else ""
        stands = runnable and all(
            any(
                _is_from(published.source, paper, tables[0]) and _numbers(published, part) == _figures(part)
                for name, published in expected
                if name.endswith(ending)
            )
            for part in parts
        )
        excused = any(
            all(_is_from(line[0], f"| {paper}", table) for table in tables)
            and (row["method"] in line[1] if runnable else line[1].startswith("all"))
            for line in cells
            if len(line) == 3
        )
        assert stands or excused, row


NAMES = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "cider": "CIDEr", "avg": "average"}
NAMES |= {"nlvr2_testp": "NLVR2", "coco_cider": "CIDEr"}


def _is_from(source: str, paper: str, table: str) -> bool:
    return source.startswith(f"{paper}, ") and re.search(rf"\b{table}\b", source) is not None


def _figures(row: dict) -> dict[str, tuple[float, float | None]]:
    figures = {NAMES[key]: (value, row.get("std", {}).get(key)) for key, value in row["values"].items()}
    return figures | ({"trained": (row["trainable_pct"], None)} if "trainable_pct" in row else {})


def _numbers(published: Published, row: dict) -> dict[str, tuple[float, float | None]]:
    """What was published of the figures that ``row`` has."""
    wanted = _figures(row)
    parts = {name: figure.strip(")").split(" (") for name, figure in published.figures.items() if name in wanted}
    return {name: (float(mean), float(*spread) if spread else None) for name, (mean, *spread) in parts.items()}


def _decides_parameters(config) -> str:
    methods = [one.model_dump(mode="json", exclude=UNDECIDED) for one in config.method]
    return json.dumps([config.backbone.family, methods], sort_keys=True)


def _shrunk(config):
    """The configuration with a backbone and method of a few thousand weights."""
    sizes = SMALL | {"gate_rank": 8, "decoder_rank": 8}
    family = config.backbone.family
    small = [
        one.model_copy(update={key: size for key, size in sizes.items() if key in type(one).model_fields})
        for one in config.method
    ]
    return config.model_copy(
        update={
            "backbone": BackboneConfig(family=family, config=FAMILIES[family], extra_tokens=80, dropout=0.1),
            "visual": VisualConfig(feature_dim=8, pool=(6, 6)),
            "method": small,
        }
    )
