"""Tests of the doctor: its report equals docs/doctor.md and training's own errors, and a ready run starts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.writer import write_store
from multitask_vl.doctor import checks, machine
from tests import tiny_run

PAGE = tiny_run.ROOT / "docs" / "doctor.md"
BLOCK = re.compile(r"<!-- doctor: ([\w ]+) -->\n```text\n\$ multitask-vl doctor (.*?)\n(.*?)```", re.DOTALL)
CASES = {name: (arguments.split(), output) for name, arguments, output in BLOCK.findall(PAGE.read_text())}
MACHINE_ROWS = ("packages", "devices", "disk", "memory", "one step")
"""Rows whose details depend on the machine."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """The files of a tiny run."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny_run.write_dataset(folder)
    return folder


@pytest.fixture
def folder(dataset, tmp_path) -> Path:
    """A copy of the files that a test may break, and a configuration."""
    shutil.copytree(dataset, tmp_path / "tiny", ignore=shutil.ignore_patterns(".cache"))
    tiny_run.write_config(tmp_path / "tiny")
    return tmp_path / "tiny"


def doctor(capsys, folder: Path, *arguments: str) -> tuple[int, str]:
    """Return exit code and output of the command for ``folder/tiny.yaml``."""
    capsys.readouterr()
    code = tiny_run.launch("doctor", str(folder / "tiny.yaml"), *arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out


def problems(output: str) -> list[str]:
    return [line.removeprefix("problem: ") for line in output.splitlines() if line.startswith("problem: ")]


def row(output: str, name: str) -> str:
    """Detail and state of a check in the table."""
    (line,) = (line for line in output.splitlines() if re.match(rf"{name}  ", line))
    return " ".join(line.split()).removeprefix(f"{name} ")


# ---- docs/doctor.md


def remove_split(folder: Path) -> None:
    (folder / "gqa_test.json").unlink()


def truncate_file(folder: Path) -> None:
    path = folder / "captions_train.json"
    path.write_text(path.read_text()[:3000])


def drop_half_of_the_images(folder: Path) -> None:
    store = FeatureStore(folder / "features.h5")
    write_store(folder / "features.h5.half", store.manifest, {key: store.get(key) for key in store.keys()[::2]})
    (folder / "features.h5.half").replace(folder / "features.h5")


def change_nothing(folder: Path) -> None:
    pass


CHANGES: dict[str, Callable[[Path], None]] = {
    "complete": change_nothing,
    "missing split": remove_split,
    "truncated": truncate_file,
    "half the images": drop_half_of_the_images,
    "another encoder": change_nothing,
    "no java": change_nothing,
}


def normalize(text: str, folder: Path | None = None) -> list[str]:
    """Lines without paths, column widths, and what differs between machines."""
    text = text.replace(str(folder), "tiny") if folder else text
    text = re.sub(r"warning: task coco_caption: (SPICE|METEOR) will not be computed.*\n", "", text)
    lines = [" ".join(line.split()) for line in text.splitlines() if line]
    machine_row = re.compile(rf"({'|'.join(MACHINE_ROWS)}) .* (\w+)")
    return [re.sub(r"-{2,}", "--", machine_row.sub(r"\1 ... \2", line)) for line in lines]


@pytest.mark.parametrize("case", CHANGES)
def test_report_equals_docs_and_training_errors(folder, capsys, monkeypatch, case):
    arguments, documented = CASES[case]
    assert arguments[0] == "tiny/tiny.yaml"
    CHANGES[case](folder)
    if case == "no java":
        monkeypatch.setenv("PATH", "")
    code, output = doctor(capsys, folder, *arguments[1:])
    assert code == (0 if case == "complete" else 2)
    assert normalize(output, folder) == normalize(documented)
    assert not (folder / "run").exists()
    if case != "complete":
        overrides = [argument for argument in arguments[1:] if "=" in argument]
        assert tiny_run.launch("train", "--config", str(folder / "tiny.yaml"), *overrides) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert [line.removeprefix("error: ") for line in errors] == problems(output)


def test_docs_show_every_case():
    assert set(CASES) == set(CHANGES)


# ---- single checks


def test_ready_run_starts_and_can_be_resumed(folder, capsys):
    code, output = doctor(capsys, folder, "training.max_steps=1", "--json")
    report = json.loads(output)
    assert code == 0
    assert report["ready"]
    assert {check["state"] for check in report["checks"]} == {"ok"}
    assert "losses" in report["checks"][-1]["detail"]
    assert tiny_run.launch("train", "--config", str(folder / "tiny.yaml"), "training.max_steps=1") == 0
    code, output = doctor(capsys, folder, "--no-step", "training.max_steps=1")
    assert code == 2
    assert row(output, "run folder") == "- problem"
    assert "training.resume=auto" in problems(output)[0]
    code, output = doctor(capsys, folder, "--no-step", "training.max_steps=1", "training.resume=auto")
    assert code == 0
    assert "resumes from step-00000001" in row(output, "run folder")
    assert row(output, "one step") == "disabled by --no-step skipped"


def test_invalid_configuration(folder, capsys):
    code, output = doctor(capsys, folder, "method.rnk=4", "training.lr=fast")
    assert code == 2
    assert row(output, "configuration") == "- 2 problems"
    assert len(problems(output)) == 2
    assert "did you mean" in output


def test_all_problems_are_reported_together(folder, capsys):
    (folder / "features.h5").unlink()
    (folder / "vqa_train_questions.json").unlink()
    overrides = (
        "backbone.tokenizer=/nowhere", "tasks.nlvr2.splits.train.expected_count=24", "run_dir=/etc/hostname/run",
        "tasks.vqa.answer_list=answers.json",
    )  # fmt: skip
    code, output = doctor(capsys, folder, *overrides)
    assert code == 2
    assert output.count("tasks.vqa.answer_list: there is no file") == 1  # both splits need it
    for name in ("run folder", "tokenizer", "feature store", "vqa test", "nlvr2 train"):
        assert row(output, name).endswith(" problem"), name
    assert row(output, "vqa train") == "- 2 problems"
    assert "23 found, 24 expected" in output
    assert "cannot write in /etc/hostname: Not a directory" in output
    assert row(output, "gqa train") == "23 examples, 12 images ok"
    assert row(output, "backbone") == "blocked by the problems below skipped"
    code, output = doctor(capsys, folder, "tasks.nlvr2.splits.train.expected_count=23")
    assert row(output, "nlvr2 train") == "23 examples as expected, 24 images ok"


def test_packages_that_do_not_match_are_listed(tmp_path, monkeypatch):
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\nnumpy>=1\nh5py>=99,<100\n\nno-such-package>=1\n")
    monkeypatch.setattr(machine, "REQUIREMENTS", path)
    check = machine.check_packages()
    assert check.detail == "1 of 3 match requirements.txt"
    (problem,) = check.problems
    assert re.search(r"2 do not match .* \(first: h5py, required <100,>=99, found 3\.", problem)
    assert problem.endswith("pip install 'h5py<100,>=99' 'no-such-package>=1'")
    monkeypatch.setattr(machine, "REQUIREMENTS", tmp_path / "absent")
    assert machine.check_packages().problems == []  # requirements of the installed package


def test_too_little_disk_space_and_memory(folder, capsys, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(machine, "available_memory", lambda: 2000)
    code, output = doctor(capsys, folder)
    assert code == 2
    assert re.search(r"1 kB free; example cache \d+ kB problem$", row(output, "disk"))
    assert "training.max_checkpoints=1" in output
    assert "but 2 kB are free on cpu" in output
    assert row(output, "backbone") == "blocked by the problems below skipped"
    sizes = [machine.format_bytes(count) for count in (0, 999, 1000, 5e6, 12_345_678_900)]
    assert sizes == ["0 B", "999 B", "1 kB", "5 MB", "12.3 GB"]


@pytest.mark.parametrize(
    ("factor", "error", "expected"),
    [
        (float("nan"), None, "one step: the loss of vqa, gqa, nlvr2, coco_caption is not finite"),
        (
            1.0,
            RuntimeError("no\nkernel"),
            "one step: RuntimeError: no kernel. For the traceback run: multitask-vl train",
        ),
    ],
    ids=["nonfinite", "crash"],
)
def test_failing_step_is_a_problem(folder, capsys, monkeypatch, factor, error, expected):
    from multitask_vl.models.seq2seq import VLSeq2Seq

    token_loss = VLSeq2Seq.token_loss

    def broken(*args):
        if error:
            raise error
        return token_loss(*args) * factor

    monkeypatch.setattr(VLSeq2Seq, "token_loss", broken)
    code, output = doctor(capsys, folder)
    assert code == 2
    assert problems(output)[0].startswith(expected)
    assert row(output, "one step") == "- problem"


def test_one_step_updates_trainable_parameters(folder):
    from accelerate.state import AcceleratorState

    from multitask_vl.config import load_config
    from multitask_vl.run.build import make_accelerator, setup_run
    from multitask_vl.run.checks import configured_splits

    config = load_config(folder / "tiny.yaml", ["training.warmup_ratio=0"])
    accelerator = make_accelerator(config)
    run = setup_run(config, accelerator, configured_splits(config))
    before = {name: value.detach().clone() for name, value in run.model.trainable_parameters().items()}
    assert "losses" in checks.one_step(run, accelerator)
    changed = [name for name, value in run.model.trainable_parameters().items() if not value.equal(before[name])]
    assert len(changed) > len(before) / 2
    AcceleratorState._reset_state(reset_partial_state=True)
