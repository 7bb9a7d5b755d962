"""Do merge, export and stats do what they say, and leave nothing half done?"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from feature_extraction.maintenance import manage
from feature_extraction.maintenance.stats import look_at
from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import create, read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError
from multitask_vl.reproduction.parameters import put_between_markers
from tests.store_fixtures import MANIFEST, SHAPE, content, made

ROOT = Path(__file__).resolve().parents[2]
FEATURES = made([f"{n:03d}" for n in range(30)])
KEYS = sorted(FEATURES)


@pytest.fixture
def parts(tmp_path):
    """Three shards of `FEATURES`."""
    for at in range(3):
        part = {key: FEATURES[key] for key in KEYS[at::3]}
        write_store(tmp_path / f"part-{at:05d}-of-00003.h5", MANIFEST, part)
    return tmp_path / "part.h5"


def run(*words) -> int:
    return manage.main([str(word) for word in words])


def flip(path, row) -> None:
    layout = read_layout(path)
    with path.open("r+b") as file:
        file.seek(layout.features_at + row * layout.row_bytes)
        file.write(b"\xff\x01")


# ---- merge


def test_shards_become_the_file_that_one_process_would_have_made(parts, tmp_path, capsys):
    assert run("merge", parts, tmp_path / "whole.h5") == 0
    assert "whole.h5: 30 of 30 rows done, 30 copied now" in capsys.readouterr().out
    write_store(tmp_path / "undisturbed.h5", MANIFEST, FEATURES)
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert run("merge", parts, tmp_path / "whole.h5") == 0
    assert "30 of 30 rows done, 0 copied now" in capsys.readouterr().out


def test_equal_rows_are_taken_once_and_unequal_ones_refused(parts, tmp_path, capsys):
    write_store(tmp_path / "more.h5", MANIFEST, {**made(["new"]), "004": FEATURES["004"]})
    assert run("merge", parts, tmp_path / "more.h5", tmp_path / "whole.h5") == 0
    assert "31 of 31 rows done, 31 copied now; 1 images stood in several stores" in capsys.readouterr().out
    write_store(tmp_path / "unlike.h5", MANIFEST, {"004": FEATURES["004"] + 1, "005": FEATURES["005"] + 1})
    assert run("merge", parts, tmp_path / "unlike.h5", tmp_path / "other.h5") == 2
    assert "2 images have other features in one store than in another (first: 004 in" in capsys.readouterr().err
    assert not (tmp_path / "other.h5").exists()


def test_rows_that_are_not_done_or_damaged_stay_open(parts, tmp_path, capsys):
    first = tmp_path / "part-00000-of-00003.h5"
    file = RowFile(read_layout(first), writable=True)
    file.forget(1)
    flip(first, 2)
    create(tmp_path / "planned.h5", MANIFEST, ["000", "later"])
    assert run("merge", tmp_path / "planned.h5", parts, tmp_path / "whole.h5") == 1
    said = capsys.readouterr().out
    assert "28 of 31 rows done" in said
    assert "1 rows were damaged in their store (checksum) and are not done here:\n  006\n" in said
    assert "extract what is not done: python launch/extract_features.py" in said
    store = FeatureStore(tmp_path / "whole.h5")
    assert store.missing([*KEYS, "later"]) == ["003", "006", "later"]
    np.testing.assert_array_equal(store.get("000"), FEATURES["000"])


def test_what_cannot_be_merged_is_told(parts, tmp_path, capsys):
    write_store(tmp_path / "other.h5", MANIFEST.model_copy(update={"resize": "crop"}), made(["x"]))
    for words, said in (
        ((parts, tmp_path / "other.h5", tmp_path / "new.h5"), "made differently. resize: squash, not crop"),
        ((parts, parts), "shards of this name stand beside it"),
        ((tmp_path / "other.h5", tmp_path / "other.h5"), "is one of the stores to be merged"),
        ((tmp_path / "gone.h5", tmp_path / "new.h5"), "no such feature store"),
    ):
        assert run("merge", *words) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new.h5").exists()


def test_a_merge_that_was_killed_goes_on(parts, tmp_path, capsys):
    code = (
        "import os, signal, sys\n"
        "from feature_extraction import manage, merge\n"
        "rows, left = merge.checked_rows, [12]\n"
        "def dying(*args):\n"
        "    for one in rows(*args):\n"
        "        if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left[0] -= 1\n"
        "        yield one\n"
        "merge.checked_rows = dying\n"
        "manage.main(sys.argv[1:])\n"
    )
    words = ["merge", str(parts), str(tmp_path / "whole.h5")]
    died = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(FeatureStore(tmp_path / "whole.h5")) == 12
    assert run(*words) == 0
    assert "30 of 30 rows done, 18 copied now" in capsys.readouterr().out
    write_store(tmp_path / "undisturbed.h5", MANIFEST, FEATURES)
    assert content(tmp_path / "whole.h5") == content(tmp_path / "undisturbed.h5")


# ---- export


@pytest.fixture
def config(tmp_path):
    """What `import` asks for: how the features were made."""
    path = tmp_path / "config.yaml"
    clip = {"model": "RN101", "weights_seed": 0, "image_size": 224}
    path.write_text(yaml.safe_dump({"clip": clip, "visual": {"feature_dim": 8}}))
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("layout", ["per-image", "groups"])
def test_an_export_is_imported_as_the_same_features(tmp_path, config, capsys, layout, dtype):
    features = {key: np.vstack([one, one])[:9] for key, one in FEATURES.items()}  # 9 cells: a square grid
    write_store(tmp_path / "s.h5", MANIFEST.model_copy(update={"grid": (3, 3)}), features)
    target = tmp_path / ("old.h5" if layout == "groups" else "data_clip_RN101_att")
    assert run("export", tmp_path / "s.h5", target, "--layout", layout, "--dtype", dtype) == 0
    assert "30 of 30 images (30 written)" in capsys.readouterr().out
    file = target if layout == "groups" else target / "007.h5"
    with h5py.File(file) as opened:
        stored = opened["007/features"]
        assert (stored.shape, stored.dtype) == ((9, 8), np.dtype(dtype))
        read = np.zeros((9, 8), np.float32)  # as VL-Adapter's loader does
        stored.read_direct(read)
        np.testing.assert_array_equal(read, features["007"].astype(np.float32))
    assert run("import", target, tmp_path / "back.h5", "--config", config) == 0
    store = FeatureStore(tmp_path / "back.h5")
    np.testing.assert_array_equal(store.get_many(KEYS), np.stack([features[key] for key in KEYS]))


def test_an_export_goes_on_and_repairs_what_was_cut(parts, tmp_path, capsys):
    target = tmp_path / "old"
    assert run("export", parts, target) == 0
    (target / "004.h5").unlink()
    (target / "005.h5").write_bytes((target / "005.h5").read_bytes()[:300])
    capsys.readouterr()
    assert run("export", parts, target) == 0
    assert "30 of 30 images (2 written, 28 were there)" in capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == [f"{key}.h5" for key in KEYS]
    for key in ("004", "005"):
        with h5py.File(target / f"{key}.h5") as file:
            np.testing.assert_array_equal(file[f"{key}/features"][()], FEATURES[key])


def test_what_is_not_exported_is_told(parts, tmp_path, capsys, monkeypatch):
    first = tmp_path / "part-00000-of-00003.h5"
    file = RowFile(read_layout(first), writable=True)
    file.forget(1)
    flip(first, 2)
    assert run("export", parts, tmp_path / "old.h5", "--layout", "groups") == 1
    said = capsys.readouterr().out
    assert "28 of 30 images" in said
    assert "1 rows are damaged (checksum) and were left out:\n  006" in said
    assert "1 rows are not extracted yet:\n  003" in said
    write_store(tmp_path / "odd.h5", MANIFEST, made(["a/b"]))
    (tmp_path / "file").touch()
    for words, said in (
        ((parts, tmp_path / "old.h5", "--layout", "groups"), "exists already; name a new file"),
        ((tmp_path / "odd.h5", tmp_path / "x"), "1 image keys cannot be names in these layouts (first: a/b)"),
        ((parts, tmp_path / "file"), "a file, not a folder"),
    ):
        assert run("export", *words) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
    assert run("export", parts, tmp_path / "new") == 2
    assert "10 are free" not in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


# ---- stats, inspect and verify for machines


def test_stats_name_what_no_trunk_makes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    features = {f"{n:03d}": rng.standard_normal(SHAPE).astype("f2") for n in range(60)}
    for one in features.values():
        one[:, 3] = 0
    features["010"] = np.zeros(SHAPE, "f2")
    features["011"] = np.tile(features["012"][:1], (SHAPE[0], 1))
    features["013"] = features["014"]
    features["015"] *= 100
    write_store(tmp_path / "s.h5", MANIFEST, features)
    layout = read_layout(tmp_path / "s.h5")
    rows = RowFile(layout, writable=True)
    rows.write(20, np.full(SHAPE, np.nan, "<f2"))
    rows.close()
    flip(tmp_path / "s.h5", 21)
    assert run("stats", tmp_path / "s.h5", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["dead"], found["constant"], found["not_finite"]) == (["010"], ["011"], ["020"])
    assert (found["alike"], next(iter(found["far"])), found["damaged"]) == ([["013", "014"]], "015", ["021"])
    assert (found["rows"], found["read"], found["dead_channels"]) == (60, 59, [3])
    seen = np.stack([one for key, one in features.items() if key not in ("020", "021")]).astype(np.float64)
    np.testing.assert_allclose(found["means"], seen.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found["spreads"], seen.std((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["zeros"], (seen == 0).mean((0, 1)))
    assert (found["least"], found["most"]) == (seen.min(), seen.max())
    assert run("stats", tmp_path / "s.h5") == 1
    said = capsys.readouterr().out
    for line in (
        "59 of 60 rows looked at, 8 channels", "1 rows are dead (all zeros):\n  010", "1 rows are constant",
        "1 rows hold numbers that are not finite", "  015: ", "1 channels are zero everywhere (first: 3)", "  013, 014",
    ):  # fmt: skip
        assert line in said


def test_stats_of_sound_stores_and_of_samples(parts, tmp_path, capsys):
    assert run("stats", parts) == 0
    assert look_at(parts, sample=7).read == 7
    assert run("stats", parts, "--sample", 0) == 2
    create(tmp_path / "new.h5", MANIFEST, ["a"])
    assert run("stats", tmp_path / "new.h5") == 2
    assert "no row is done yet" in capsys.readouterr().err
    write_store(tmp_path / "dead.h5", MANIFEST, {"a": np.zeros(SHAPE)})
    assert run("stats", tmp_path / "dead.h5") == 1


def test_inspect_and_verify_speak_to_machines(parts, tmp_path, capsys):
    first = tmp_path / "part-00000-of-00003.h5"
    file = RowFile(read_layout(first), writable=True)
    file.forget(1)
    assert run("inspect", parts, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["done"], found["files"][0]["done"]) == (30, 29, 9)
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("part-*.h5"))
    assert found["bytes_on_disk"] > 0
    assert found["manifest"]["encoder"] == "RN101"
    assert run("inspect", parts) == 0
    said = capsys.readouterr().out
    assert "30, of which 29 done (96.7 %)" in said
    assert "part-00000-of-00003.h5: 9 of 10 done" in said
    flip(tmp_path / "part-00001-of-00003.h5", 0)
    assert run("verify", parts, "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["sound"], verdict["good"]) == (False, 28)
    assert (verdict["undone"], verdict["damaged"]) == (["003"], ["001"])


# ---- readers and pages


def test_a_reader_that_opened_before_a_merge_ended_sees_whole_rows_only(parts, tmp_path):
    create(tmp_path / "whole.h5", MANIFEST, KEYS)
    early = FeatureStore(tmp_path / "whole.h5")
    assert run("merge", parts, tmp_path / "whole.h5") == 0
    assert early.missing(KEYS) == KEYS
    assert FeatureStore(tmp_path / "whole.h5").missing(KEYS) == []


# ---- the benchmark and the page it writes


def test_the_benchmark_reads_every_layout_and_writes_its_page(tmp_path):
    from benchmarks import feature_store

    text = feature_store.compare(tmp_path, images=6, reads=8, rounds=1)
    for name in (feature_store.PUBLISHED, "ours, get_many", "ours, get_many, read: ram", "ours, blocks of 16 rows"):
        assert f"| {name}" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rates: begin -->\nold\n<!-- rates: end -->\nafter\n")
    put_between_markers(page, text, "rates")
    assert page.read_text() == f"before\n<!-- rates: begin -->\n{text}\n<!-- rates: end -->\nafter\n"
    with pytest.raises(InputError, match="has no line '<!-- step: begin -->'"):
        put_between_markers(page, text, "step")
    shown = (ROOT / "docs" / "extract_on_a_cluster.md").read_text()
    for name in ("rates", "step"):
        assert shown.count(f"<!-- {name}: begin -->") == shown.count(f"<!-- {name}: end -->") == 1


def test_the_pages_name_what_there_is(capsys):
    pages = [(ROOT / "docs" / name).read_text() for name in ("extract_on_a_cluster.md", "neighbours.md")]
    with pytest.raises(SystemExit):
        run("--help")
    commands = capsys.readouterr().out
    for text in pages:
        for path in re.findall(r"(?<![\w/])((?:launch|configs)/[\w/]+\.(?:py|sh|yaml))", text):
            assert (ROOT / path).exists(), path
        for link in re.findall(r"\]\(([\w.]+)\)", text):
            assert (ROOT / "docs" / link).exists(), link
        for command in re.findall(r"feature_extraction.maintenance.manage (\w+)", text):
            assert f"    {command} " in commands
        for key in re.findall(r"features\.(\w+)=", text):
            assert key in FeaturesConfig.model_fields, key
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", pages[0], re.DOTALL)[1])
    FeaturesConfig.model_validate(shown["features"])
    assert (ROOT / "docs" / "neighbours.webp").stat().st_size < 300_000
