"""The commands `ls`, `configs` and `make-synthetic`."""

from pathlib import Path

import pytest

from multitask_vl.cli.ls import summary
from multitask_vl.cli.main import main
from multitask_vl.config.resources import CONFIGS_DIR
from multitask_vl.registry import BACKBONES, METHODS, ROUTING, TASKS


@pytest.mark.parametrize(
    ("kind", "registry"), [("methods", METHODS), ("routing", ROUTING), ("tasks", TASKS), ("backbones", BACKBONES)]
)
def test_ls_prints_registered_names(capsys, kind, registry):
    assert main(["ls", kind]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == registry.names()


@pytest.mark.parametrize(("kind", "folder"), [("encoders", "vision"), ("experiments", "experiments")])
def test_ls_prints_config_summaries(capsys, kind, folder):
    assert main(["ls", kind]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == sum(1 for _ in (CONFIGS_DIR / folder).rglob("*.yaml"))
    assert all((CONFIGS_DIR / folder / f"{name}.yaml").is_file() and text for name, text in rows)


def test_ls_tables_are_for_experiments_only(capsys):
    assert main(["ls", "tasks", "--markdown"]) == 2
    assert "only for experiments" in capsys.readouterr().err


def test_summary_is_first_sentence(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# OpenAI's CLIP RN101: 2.5 million\n# images. Compose it: x\nvision: {}\n# not this\n")
    assert summary(path) == "OpenAI's CLIP RN101: 2.5 million images"


def test_configs_prints_and_copies_folder(tmp_path, capsys):
    assert main(["configs"]) == 0
    assert Path(capsys.readouterr().out.strip()) == CONFIGS_DIR
    assert main(["configs", "--copy", str(tmp_path / "configs")]) == 0
    assert (tmp_path / "configs" / "examples" / "quickstart.yaml").is_file()
    assert main(["configs", "--copy", str(tmp_path / "configs")]) == 2
    assert "already exists" in capsys.readouterr().err
