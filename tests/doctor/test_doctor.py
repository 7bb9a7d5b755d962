"""Does the doctor say what is missing and how to mend it, as its page shows, and call a run ready only if it starts?"""

import json
import re
import shutil

import pytest
from accelerate.state import AcceleratorState

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.writer import write_store
from multitask_vl.doctor import checks, machine, main
from tests import tiny_run

PAGE = tiny_run.ROOT / "docs" / "doctor.md"
BLOCK = re.compile(r"<!-- doctor: ([\w ]+) -->\n```text\n\$ python -m multitask_vl\.doctor (.*?)\n(.*?)```", re.DOTALL)
CASES = {name: (words.split(), shown) for name, words, shown in BLOCK.findall(PAGE.read_text())}
OF_THE_MACHINE = ("packages", "devices", "disk", "memory", "one step")
"""Rows whose numbers are those of the machine that wrote the page."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The files of a tiny run."""
    folder = tmp_path_factory.mktemp("good")
    tiny_run.write_files(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy that a test may spoil, with its configuration; the current folder, so that paths stay short."""
    shutil.copytree(good, tmp_path / "tiny", ignore=shutil.ignore_patterns(".cache"))
    tiny_run.write_config(tmp_path / "tiny")
    return tmp_path / "tiny"


def doctor(capsys, folder, *words: str) -> tuple[int, str]:
    """Exit code and output of the command about ``folder/tiny.yaml``."""
    AcceleratorState._reset_state(reset_partial_state=True)
    capsys.readouterr()
    code = main([str(folder / "tiny.yaml"), *words])
    AcceleratorState._reset_state(reset_partial_state=True)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out


def problems(said: str) -> list[str]:
    return [line.removeprefix("problem: ") for line in said.splitlines() if line.startswith("problem: ")]


def row(said: str, name: str) -> str:
    (found,) = (line for line in said.splitlines() if re.match(rf"{name}  ", line))
    return " ".join(found.split()).removeprefix(f"{name} ")


# ---- the page


def without_a_split(folder) -> None:
    (folder / "gqa_report.json").unlink()


def cut(folder) -> None:
    path = folder / "captions_train.json"
    path.write_text(path.read_text()[:3000])


def half_the_images(folder) -> None:
    store = FeatureStore(folder / "features.h5")
    write_store(folder / "features.h5.half", store.manifest, {key: store.get(key) for key in store.keys()[::2]})
    (folder / "features.h5.half").replace(folder / "features.h5")


def nothing(folder) -> None:
    pass


SPOIL = {
    "complete": nothing,
    "missing split": without_a_split,
    "truncated": cut,
    "half the images": half_the_images,
    "another encoder": nothing,
    "no java": nothing,
}


def plain(text: str, folder=None) -> list[str]:
    """Lines without what differs between machines: paths, its numbers and scorers; and without widths of columns."""
    text = text.replace(str(folder), "tiny") if folder else text
    text = re.sub(r"remark: task coco_caption: (SPICE|METEOR) will not be computed.*\n", "", text)
    lines = [" ".join(line.split()) for line in text.splitlines() if line]
    of_machine = re.compile(rf"({'|'.join(OF_THE_MACHINE)}) .* (\w+)")
    return [re.sub(r"-{2,}", "--", of_machine.sub(r"\1 ... \2", line)) for line in lines]


@pytest.mark.parametrize("case", SPOIL)
def test_the_page_shows_what_is_said(folder, capsys, monkeypatch, case):
    words, shown = CASES[case]
    assert words[0] == "tiny/tiny.yaml"
    SPOIL[case](folder)
    if case == "no java":
        monkeypatch.setenv("PATH", "")
    code, said = doctor(capsys, folder, *words[1:])
    assert code == (0 if case == "complete" else 2)
    assert plain(said, folder) == plain(shown)
    assert not (folder / "run").exists()
    if case != "complete":
        # training says the same, and does not start
        training = [word for word in words[1:] if "=" in word]
        assert tiny_run.launch("train_multitask", "--config", str(folder / "tiny.yaml"), *training) == 2
        told = capsys.readouterr().err.splitlines()
        assert [line.removeprefix("error: ") for line in told if line.startswith("error: ")] == problems(said)


def test_every_case_has_its_block():
    assert set(CASES) == set(SPOIL)


# ---- single checks


def test_what_is_ready_starts(folder, capsys):
    code, said = doctor(capsys, folder, "training.steps=1", "--json")
    report = json.loads(said)
    assert code == 0
    assert report["ready"]
    assert {one["state"] for one in report["checks"]} == {"ok"}
    assert "losses" in report["checks"][-1]["found"]
    assert tiny_run.launch("train_multitask", "--config", str(folder / "tiny.yaml"), "training.steps=1") == 0
    code, said = doctor(capsys, folder, "--no-step", "training.steps=1")
    assert code == 2
    assert row(said, "run folder") == "- problem"
    assert "training.resume=auto" in problems(said)[0]
    code, said = doctor(capsys, folder, "--no-step", "training.steps=1", "training.resume=auto")
    assert code == 0
    assert "goes on from step-00000001" in row(said, "run folder")
    assert row(said, "one step") == "left out (--no-step) -"


def test_a_configuration_that_cannot_be_read(folder, capsys):
    code, said = doctor(capsys, folder, "method.rnk=4", "training.lr=fast")
    assert code == 2
    assert row(said, "configuration") == "- 2 problems"
    assert len(problems(said)) == 2
    assert "did you mean" in said


def test_all_that_is_wrong_is_told_at_once(folder, capsys):
    (folder / "features.h5").unlink()
    (folder / "vqa_train_questions.json").unlink()
    words = ("backbone.tokenizer=/nowhere", "tasks.nlvr2.splits.train.expected_count=24", "run_dir=/etc/hostname/run")
    code, said = doctor(capsys, folder, *words, "tasks.vqa.answer_list=answers.json")
    assert code == 2
    assert said.count("tasks.vqa.answer_list: there is no file") == 1  # though both splits want it
    for name in ("run folder", "tokenizer", "feature store", "vqa report", "nlvr2 train"):
        assert row(said, name).endswith(" problem"), name
    assert row(said, "vqa train") == "- 2 problems"
    assert "23 found, 24 expected" in said
    assert "cannot write in /etc/hostname: Not a directory" in said
    assert row(said, "gqa train") == "23 examples, 12 images ok"
    assert row(said, "backbone") == "not tried, see the problems -"
    code, said = doctor(capsys, folder, "tasks.nlvr2.splits.train.expected_count=23")
    assert row(said, "nlvr2 train") == "23 examples as expected, 24 images ok"


def test_packages(tmp_path, monkeypatch):
    path = tmp_path / "requirements.txt"
    path.write_text("# wanted\nnumpy>=1\nh5py>=99,<100\n\nno-such-package>=1\n")
    monkeypatch.setattr(machine, "REQUIREMENTS", path)
    found = machine.packages()
    assert found.found == "1 of 3 as requirements.txt asks"
    (told,) = found.problems
    assert re.search(r"2 are not .* \(first: h5py, wanted <100,>=99, found 3\.", told)
    assert told.endswith("pip install 'h5py<100,>=99' 'no-such-package>=1'")
    monkeypatch.setattr(machine, "REQUIREMENTS", tmp_path / "absent")
    assert machine.packages().problems == []  # those of the installed package


def test_room(folder, capsys, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(machine, "available_memory", lambda: 2000)
    code, said = doctor(capsys, folder)
    assert code == 2
    assert row(said, "disk").endswith("1 kB free; examples' cache 33 kB problem")
    assert "training.keep_checkpoints=1" in said
    assert "are needed before the first batch, and 2 kB are free on cpu" in said
    assert row(said, "backbone") == "not tried, see the problems -"
    monkeypatch.undo()
    assert 1 << 20 < machine.available_memory() < 1 << 50
    assert [machine.size(n) for n in (0, 999, 1000, 5e6, 12_345_678_900)] == ["0 B", "999 B", "1 kB", "5 MB", "12.3 GB"]


@pytest.mark.parametrize(
    ("factor", "error", "told"),
    [
        (float("nan"), None, "one step: the loss of vqa, gqa, nlvr2, coco_caption is not finite"),
        (1.0, RuntimeError("no\nkernel"), "one step: RuntimeError: no kernel. See where it comes from: python launch/"),
    ],
    ids=["infinite", "crash"],
)
def test_a_step_that_fails(folder, capsys, monkeypatch, factor, error, told):
    from multitask_vl.models.seq2seq import VLSeq2Seq

    token_loss = VLSeq2Seq.token_loss

    def spoiled(*args):
        if error:
            raise error
        return token_loss(*args) * factor

    monkeypatch.setattr(VLSeq2Seq, "token_loss", spoiled)
    code, said = doctor(capsys, folder)
    assert code == 2
    assert problems(said)[0].startswith(told)
    assert row(said, "one step") == "- problem"


def test_a_step_moves_what_is_trained(folder):
    """The step that is tried is a real one: gradients reach the trained tensors, and the optimiser moves them."""
    from multitask_vl.config import load_config
    from multitask_vl.run.build import make_accelerator, prepare
    from multitask_vl.run.checks import splits_of

    config = load_config(folder / "tiny.yaml", ["training.warmup_ratio=0"])
    accelerator = make_accelerator(config)
    run = prepare(config, accelerator, splits_of(config))
    before = {name: one.detach().clone() for name, one in run.model.trainable().items()}
    assert "losses" in checks.one_step(run, accelerator)
    moved = [name for name, one in run.model.trainable().items() if not one.equal(before[name])]
    assert len(moved) > len(before) / 2
    AcceleratorState._reset_state(reset_partial_state=True)


def test_params_takes_no_step(capsys, folder):
    assert main(["--params", "--no-step", str(folder / "tiny.yaml")]) == 2
    assert "leave --no-step out" in capsys.readouterr().err
