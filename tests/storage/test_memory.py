"""Available memory under the limits of control groups."""

import pytest

from multitask_vl.storage import memory


def test_available_memory_is_positive():
    assert 0 < memory.available_memory() < 1 << 50


@pytest.mark.parametrize(
    ("groups", "folder", "limit", "usage", "prefix", "unlimited"),
    [
        ("0::/job/step", "job", "memory.max", "memory.current", "", "max"),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/job",
            "memory/job",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
            "9223372036854771712",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_available_memory_respects_control_group(
    tmp_path, monkeypatch, groups, folder, limit, usage, prefix, unlimited
):
    folder = tmp_path / folder
    (folder / "step").mkdir(parents=True)
    (tmp_path / "groups").write_text(f"{groups}\n")
    (folder / limit).write_text("5000\n")
    (folder / usage).write_text("2000\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "PROCESS_CGROUPS", tmp_path / "groups")
    assert memory.available_memory() == 3000
    # the kernel's cache of files, the store among them, is reclaimable
    (folder / "memory.stat").write_text(f"anon 500\nfile 1400\n{prefix}inactive_file 900\n{prefix}active_file 400\n")
    assert memory.available_memory() == 4300
    (folder / limit).write_text(f"{unlimited}\n")
    assert memory.available_memory() > 10**8
