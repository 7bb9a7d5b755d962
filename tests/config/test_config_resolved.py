"""resolved.yaml and the compatibility of configurations."""

import pytest
import yaml

from multitask_vl.config import differences, fingerprint, load
from multitask_vl.config.resolved import flatten
from multitask_vl.config.schema import Config
from multitask_vl.storage.atomic import atomic_write
from tests.config_files import config_folder

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    yield from config_folder(tmp_path, monkeypatch)


AWKWARD = [
    'tasks.colors.prompt="no"',
    'tasks.shades.prompt="a: b # c \\" \\n \\U0001F600 é 1e-3 "',
    'backbone.config={a: "1e-3", b: 1e-7, "c d": [x, "y, z", {k: null}], e: "", f: "007", g: "-", h: {}}',
    'backbone.config.i="2024-01-01"',
    "training.lr=3e-5",
    "method=[{name: thin, rank: 3}, {name: thick}]",
    "features.store=[a.h5, b.h5]",
]


def test_resolved_yaml_reloads_equal_config(folder):
    loaded = load("run.yaml", ["seed=7", *AWKWARD])
    loaded.write_resolved(folder / "runs" / "resolved.yaml")
    text = (folder / "runs" / "resolved.yaml").read_text()
    assert "seed: 7  # override" in text
    assert "  max_steps: 100  # base.yaml:4" in text
    assert "  max_images: 2  # default" in text
    assert "\n        questions: a.json  # run.yaml:6" in text
    assert "  - name: thin  # override" in text
    again = load(folder / "runs" / "resolved.yaml")
    assert again.config == loaded.config
    assert fingerprint(again.config) == fingerprint(loaded.config)
    assert all(origin.split(":")[-1].isdigit() for origin in again.origins.values())  # every value has a line there
    # a plain YAML 1.1 reader gets the same values
    assert yaml.safe_load(text) == loaded.config.model_dump(mode="json")
    # overrides apply as for any other file
    assert load(folder / "runs" / "resolved.yaml", ["method.1.depth=4"]).config.method[1].depth == 4


def test_origins_cover_every_leaf():
    loaded = load("run.yaml")
    leaves = flatten(loaded.config.model_dump(mode="json"))
    assert set(loaded.origins) == {".".join(keys) for keys in leaves}
    assert loaded.origins["backbone.config"] == "default"


def test_failed_write_keeps_previous_file(folder, monkeypatch):
    target = folder / "resolved.yaml"
    atomic_write(target, "old\n")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("multitask_vl.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(target, "new\n")
    assert target.read_text() == "old\n"
    assert [path.name for path in folder.glob(".resolved*")] == []


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "cache_dir=/scratch",
        "training.resume=auto",
        "training.log_steps=1",
        "training.checkpoint_steps=null",
        "training.max_checkpoints=9",
        "training.num_workers=4",
        "training.micro_batch_size=8",
        "training.gradient_checkpointing=true",
        "evaluation.max_examples=10",
        "tracking.trackers=[]",
        "features.num_workers=3",
        "tasks.colors.decoding.max_length=7",
    ],
)
def test_fingerprint_ignores_runtime_keys(override):
    old, new = load("run.yaml").config, load("run.yaml", [override]).config
    assert old != new
    assert differences(old, new) == []
    assert fingerprint(old) == fingerprint(new)


def test_differences_list_key_and_both_values():
    old = load("run.yaml").config
    overrides = [
        "training.lr=3e-4", "seed=1", "method.name=thick", "features.shuffle_images=true", "backbone.config={a: 1}",
    ]  # fmt: skip
    new = load("run.yaml", overrides).config
    assert sorted(differences(old, new)) == [
        "backbone.config.a: was not set, is 1",
        "backbone.config: was {}, is not set",
        "features.shuffle_images: was false, is true",
        "method.0.depth: was not set, is 2",
        'method.0.name: was "thin", is "thick"',
        "method.0.rank: was 8, is not set",
        "method.0.scale: was 0.5, is not set",
        "seed: was 9595, is 1",
        "training.lr: was 0.001, is 0.0003",
    ]
    assert fingerprint(old) != fingerprint(new)
    # checkpoints contain the dump, which is accepted as well
    dump = old.model_dump(mode="json")
    assert differences(dump, new) == differences(old, new)
    assert fingerprint(dump) == fingerprint(old)
    assert len(fingerprint(old)) == 64


def test_differences_assume_default_of_unknown_key():
    old = Config().model_dump(mode="json")
    del old["vision"]["output"], old["vision"]["pool"]
    assert differences(old, Config()) == []
    pooled = Config.model_validate({"vision": {"output": "pooled"}})
    assert differences(old, pooled) == ['vision.output: was "grid", is "pooled"']
