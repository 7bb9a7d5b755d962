"""Can a run be launched again from its resolved.yaml, and does it know which checkpoints are its own?"""

import pytest
import yaml

from multitask_vl.config import differences, fingerprint, load
from multitask_vl.config.resolved import flatten
from multitask_vl.config.schema import Config
from multitask_vl.storage.atomic import write_whole
from tests.config_files import config_folder

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    yield from config_folder(tmp_path, monkeypatch)


AWKWARD = [
    'tasks.colours.prompt="no"',
    'tasks.shades.prompt="a: b # c \\" \\n \\U0001F600 é 1e-3 "',
    'backbone.config={a: "1e-3", b: 1e-7, "c d": [x, "y, z", {k: null}], e: "", f: "007", g: "-", h: {}}',
    'backbone.config.i="2024-01-01"',
    "training.lr=3e-5",
    "method=[{name: thin, rank: 3}, {name: thick}]",
    "features.store=[a.h5, b.h5]",
]


def test_resolved_says_every_origin_and_loads_to_the_same(folder):
    loaded = load("run.yaml", ["seed=7", *AWKWARD])
    loaded.write_resolved(folder / "runs" / "resolved.yaml")
    text = (folder / "runs" / "resolved.yaml").read_text()
    assert "seed: 7  # override" in text
    assert "  steps: 100  # base.yaml:4" in text
    assert "  max_images: 2  # default" in text
    assert "\n        questions: a.json  # run.yaml:6" in text
    assert "  - name: thin  # override" in text
    again = load(folder / "runs" / "resolved.yaml")
    assert again.config == loaded.config
    assert fingerprint(again.config) == fingerprint(loaded.config)
    assert all(origin.split(":")[-1].isdigit() for origin in again.origins.values())  # every value has its line there
    # Others may read it by a plain YAML 1.1 reader.
    assert yaml.safe_load(text) == loaded.config.model_dump(mode="json")
    # And it can be changed from the command line as any other file.
    assert load(folder / "runs" / "resolved.yaml", ["method.1.depth=4"]).config.method[1].depth == 4


def test_every_leaf_has_an_origin():
    loaded = load("run.yaml")
    leaves = flatten(loaded.config.model_dump(mode="json"))
    assert set(loaded.origins) == {".".join(keys) for keys in leaves}
    assert loaded.origins["backbone.config"] == "default"


def test_writing_is_whole_or_not_at_all(folder, monkeypatch):
    target = folder / "resolved.yaml"
    write_whole(target, "old\n")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("multitask_vl.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, "new\n")
    assert target.read_text() == "old\n"
    assert [path.name for path in folder.glob(".resolved*")] == []


@pytest.mark.parametrize(
    "word",
    [
        "run_dir=elsewhere",
        "cache_dir=/scratch",
        "training.resume=auto",
        "training.log_every=1",
        "training.checkpoint_every=null",
        "training.keep_checkpoints=9",
        "training.workers=4",
        "training.micro_batch_size=8",
        "training.gradient_checkpointing=true",
        "evaluation.limit=10",
        "tracking.trackers=[]",
        "features.workers=3",
        "tasks.colours.decoding.max_length=7",
    ],
)
def test_a_resumed_run_may_change(word):
    old, new = load("run.yaml").config, load("run.yaml", [word]).config
    assert old != new
    assert differences(old, new) == []
    assert fingerprint(old) == fingerprint(new)


def test_what_decides_training_is_told_by_key_and_both_values():
    old = load("run.yaml").config
    words = ["training.lr=3e-4", "seed=1", "method.name=thick", "features.control=shuffled", "backbone.config={a: 1}"]
    new = load("run.yaml", words).config
    assert sorted(differences(old, new)) == [
        "backbone.config.a: was not set, is 1",
        "backbone.config: was {}, is not set",
        'features.control: was "none", is "shuffled"',
        "method.0.depth: was not set, is 2",
        'method.0.name: was "thin", is "thick"',
        "method.0.rank: was 8, is not set",
        "method.0.scale: was 0.5, is not set",
        "seed: was 9595, is 1",
        "training.lr: was 0.001, is 0.0003",
    ]
    assert fingerprint(old) != fingerprint(new)
    # A checkpoint keeps the dump, which serves as well as the object.
    dump = old.model_dump(mode="json")
    assert differences(dump, new) == differences(old, new)
    assert fingerprint(dump) == fingerprint(old)
    assert len(fingerprint(old)) == 64


def test_a_key_that_a_checkpoint_does_not_know_yet_was_its_default():
    old = Config().model_dump(mode="json")
    del old["clip"]["layer"], old["clip"]["pool"]
    assert differences(old, Config()) == []
    pooled = Config.model_validate({"clip": {"layer": "pooled"}})
    assert differences(old, pooled) == ['clip.layer: was "grid", is "pooled"']
