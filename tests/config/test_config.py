"""Loading of YAML files and overrides."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from multitask_vl.config import config_from, differences, load, load_config
from multitask_vl.config.schema import Config, DecodingConfig, TrainingConfig
from multitask_vl.errors import InputError
from tests.config_files import config_folder, problems_of

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    yield from config_folder(tmp_path, monkeypatch)


def test_load_merges_layers_and_registered_sections():
    config = load_config("run.yaml")
    assert config.seed == 9595
    assert isinstance(config.training.lr, float)
    assert config.training.lr == 1e-3
    assert (config.training.max_steps, config.training.epochs) == (100, None)  # max_steps replaces the default epochs
    assert [m.model_dump() for m in config.method] == [{"name": "thin", "rank": 8, "scale": 0.5}]
    assert list(config.tasks) == ["colors", "shades"]
    assert config.tasks["colors"].splits["train"].keys == [1, 2]
    assert config.tasks["shades"].style == "short"
    assert config.routing.function == {"colors": "swirl", "shades": "none"}


def test_load_records_origin_of_each_value():
    origins = load("run.yaml", ["seed=3", "method.rank=16"]).origins
    assert origins["training.lr"] == "base.yaml:3"
    assert origins["tasks.colors.prompt"] == "run.yaml:5"
    assert origins["tasks.colors.splits.train.keys"] == "run.yaml:6"
    assert origins["method.0.rank"] == "override"
    assert origins["method.0.scale"] == "base.yaml:5"
    assert origins["seed"] == "override"
    assert origins["visual.pool"] == "default"


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("training.lr=1e-3", lambda c: c.training.lr == 0.001),
        ("training.lr=3E-4", lambda c: c.training.lr == 0.0003),
        ("method.rank=32", lambda c: c.method[0].rank == 32),
        ("method.0.rank=32", lambda c: c.method[0].rank == 32 and c.method[0].scale == 0.5),
        ("method.name=thick", lambda c: c.method[0].model_dump() == {"name": "thick", "depth": 2}),
        ("method={name: thick, depth: 5}", lambda c: c.method[0].depth == 5),
        ("method=[{name: thick}, {name: thin}]", lambda c: [m.name for m in c.method] == ["thick", "thin"]),
        ('tasks.colors.prompt="vqa: "', lambda c: c.tasks["colors"].prompt == "vqa: "),
        ("tasks.colors.prompt=vqa: ", lambda c: c.tasks["colors"].prompt == "vqa: "),  # what a shell passes
        ("tasks.colors.prompt=- a #b", lambda c: c.tasks["colors"].prompt == "- a #b"),
        ('tasks.colors.prompt=""', lambda c: c.tasks["colors"].prompt == ""),
        ('tasks.colors.prompt="12"', lambda c: c.tasks["colors"].prompt == "12"),
        ("routing.function.shades=mul", lambda c: c.routing.function == {"colors": "swirl", "shades": "mul"}),
        ("routing.function=add", lambda c: c.routing.function == "add"),
        ("training.mixed_precision=no", lambda c: c.training.mixed_precision == "no"),
        ("training.mixed_precision=null", lambda c: c.training.mixed_precision is None),
        ("visual.pool=[7, 7]", lambda c: c.visual.pool == (7, 7)),
        ("backbone.config={d_model: 16}", lambda c: c.backbone.config == {"d_model": 16}),
        ("backbone.config.dropout=5e-1", lambda c: c.backbone.config == {"dropout": 0.5}),
        ("evaluation.final_splits=[test, train]", lambda c: c.evaluation.final_splits == ["test", "train"]),
        ("features.store=[a.h5, 007]", lambda c: c.features.store == [Path("a.h5"), Path("007")]),
        ("tasks.colors.splits.test=null", lambda c: list(c.tasks["colors"].splits) == ["train"]),
    ],
)
def test_override_is_parsed_as_yaml(override, check):
    overrides = [override] if "test=null" not in override else [override, "evaluation.final_splits=[]"]
    assert check(load_config("run.yaml", overrides))


def test_overrides_combine():
    overrides = [
        "method.rank=64",
        "method.name=thin",
        "tasks.shades=null",
        "routing.function.shades=null",
        "seed=1",
        "seed=2",
    ]
    config = load_config("run.yaml", overrides)
    assert config.method[0].rank == 64
    assert list(config.tasks) == ["colors"]
    assert config.routing.function == {"colors": "swirl"}
    assert config.seed == 2
    # the order of two overrides of one method does not matter, even if the files have another method
    for overrides in (["method.depth=7", "method.name=thick"], ["method.name=thick", "method.depth=7"]):
        assert load_config("run.yaml", overrides).method[0].depth == 7
    # items of other lists are addressed by position as well
    overrides = ["features.images=[a, b]", "tasks.colors.splits.train.keys.1=9"]
    assert load_config("run.yaml", overrides).tasks["colors"].splits["train"].keys == [1, 9]


def test_compose_replaces_other_method_merges_same(folder):
    (folder / "other.yaml").write_text("compose: [run.yaml]\nmethod: {name: thick}\n")
    (folder / "same.yaml").write_text("compose: [run.yaml]\nmethod: {scale: 2}\n")
    (folder / "list.yaml").write_text("compose: [run.yaml]\nmethod:\n  - {name: thin}\n  - {name: thick, depth: 3}\n")
    (folder / "piece.yaml").write_text("method: {name: thin, scale: 7}\n")
    (folder / "pieces.yaml").write_text("compose: [run.yaml, piece.yaml]\nmethod: {rank: 3}\n")
    assert load_config("pieces.yaml").method[0].model_dump() == {"name": "thin", "rank": 3, "scale": 7.0}
    assert load_config("other.yaml").method[0].model_dump() == {"name": "thick", "depth": 2}
    assert load_config("same.yaml").method[0].model_dump() == {"name": "thin", "rank": 8, "scale": 2.0}
    assert [m.name for m in load_config("list.yaml").method] == ["thin", "thick"]
    assert load_config("list.yaml", ["method.1.depth=9"]).method[1].depth == 9
    (found,) = problems_of("list.yaml", ["method.depth=9"])
    assert found.startswith("override: method: 2 methods are configured; use method.0")
    (found,) = problems_of("list.yaml", ["method.2.depth=9"])
    assert found.startswith("override: method.2: the list has 2 items, counted from 0")


def test_compose_shortens_paths_of_other_folders(folder):
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "leaf.yaml").write_text("compose: [../mid.yaml]\nseed: 5\n")
    (folder / "deep" / "mid.yaml").write_text("compose: [../base.yaml]\nplugins: [color_plugin]\nseed: 4\n")
    loaded = load("deep/er/leaf.yaml")
    assert loaded.config.seed == 5
    assert loaded.origins["training.lr"] == "base.yaml:3"
    assert loaded.origins["plugins"] == "deep/mid.yaml:2"


def test_compose_does_not_inherit_reproduces(folder):
    block = 'reproduces: {id: row, paper: A, scores: {vqa: "65.00"}, trained_percent: 4.5, trainable: 1, total: 2}\n'
    (folder / "row.yaml").write_text(f"compose: [run.yaml]\n{block}")
    (folder / "own.yaml").write_text("compose: [row.yaml]\nseed: 3\n")
    row = load_config("row.yaml")
    assert str(row.reproduces.scores["vqa"]) == "65.00"
    assert load_config("own.yaml").reproduces is None
    assert differences(row, load_config("run.yaml")) == []
    assert config_from(row.model_dump(mode="json"), "dump") == row
    load("row.yaml").write_resolved(folder / "resolved.yaml")
    assert str(load_config("resolved.yaml").reproduces.scores["vqa"]) == "65.00"


def test_loader_reads_yaml_1_2_scalars(folder):
    text = "a: 1e-3\nb: no\nc: 007\nd: 12:30\ne: .5\nf: -.INF\ng: ~\nh: 2024-01-01\ni: 'true'\nj: True\nk: -3\nl: *x\n"
    (folder / "scalars.yaml").write_text(
        "backbone:\n  config:\n    x: &x [1, 0x1F]\n    " + text.replace("\n", "\n    ")
    )
    values = load_config("scalars.yaml").backbone.config
    assert values["a"] == 0.001
    assert (values["b"], values["c"], values["d"], values["h"], values["i"]) == (
        "no",
        "007",
        "12:30",
        "2024-01-01",
        "true",
    )
    assert (values["e"], values["f"], values["g"], values["j"], values["k"]) == (0.5, -math.inf, None, True, -3)
    assert values["l"] == values["x"] == [1, "0x1F"]


def test_schema_validates_in_python():
    assert TrainingConfig(max_steps=5).epochs is None
    assert TrainingConfig(epochs=0.5).max_steps is None
    for wrong in ({"max_steps": 5, "epochs": 5}, {"epochs": None}):
        with pytest.raises(ValueError, match="epochs"):
            TrainingConfig(**wrong)
    with pytest.raises(ValueError, match="candidate answers"):
        DecodingConfig(mode="classify")
    with pytest.raises(ValueError, match="true and false are not allowed"):
        TrainingConfig(batch_size=True)


def test_config_from_dump_is_equal():
    config = load_config("run.yaml")
    dump = config.model_dump(mode="json")
    assert config_from(dump, "adapter_config.json") == config
    assert Config.model_validate(dump) == config
    assert Config(method={"name": "thin", "rank": 2}).method[0].rank == 2
    dump["tasks"]["colors"]["style"] = "shrt"
    with pytest.raises(
        InputError, match=r"^adapter_config.json: tasks.colors.style: got 'shrt'; did you mean 'short'\?$"
    ):
        config_from(dump, "adapter_config.json")


def test_load_without_tasks_imports_no_torch(folder):
    (folder / "plain.yaml").write_text("seed: 1\nbackbone: {family: bart}\nrouting: {function: none}\n")
    code = "import sys; from multitask_vl.config import load; load('plain.yaml'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_default_config_survives_plain_yaml():
    dumped = yaml.safe_dump(Config().model_dump(mode="json"))
    assert Config.model_validate(yaml.safe_load(dumped)) == Config()
