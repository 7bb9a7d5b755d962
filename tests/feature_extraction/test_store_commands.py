"""Commands `multitask-vl store` inspect, verify, stats and merge."""

import json
import os
import signal

import numpy as np

from feature_extraction.maintenance import merge
from feature_extraction.maintenance.stats import compute_stats
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import create_store, read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.writer import write_store
from tests.feature_extraction.sharded_store import FEATURES, KEYS, break_first_shard, run_store
from tests.store_fixtures import MANIFEST, SHAPE, corrupt_row, random_features, store_bytes

# ---- inspect and verify


def test_inspect_prints_manifest_and_size(tmp_path, capsys):
    write_store(tmp_path / "s.h5", MANIFEST.model_copy(update={"weights_sha256": None}), random_features(["b", "a"]))
    assert run_store("inspect", tmp_path / "s.h5") == 0
    lines = capsys.readouterr().out.splitlines()
    fields = dict(line.split(maxsplit=1) for line in lines if "first key" not in line)
    assert fields["rows"] == "2, of which 2 done (100.0 %)"
    assert fields["grid"] == "2 x 3"
    assert fields["encoder"] == "RN101"
    assert fields["weights_sha256"] == "unknown"
    assert fields["bytes"].endswith("(96 per image)")


def test_inspect_describes_shards(shards, tmp_path, capsys):
    break_first_shard(tmp_path)
    assert run_store("inspect", shards, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["done"], found["files"][0]["done"]) == (30, 29, 9)
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("part-*.h5"))
    assert found["bytes_on_disk"] > 0
    assert (found["bytes_per_row"], found["manifest"]["encoder"]) == (96, "RN101")
    assert run_store("inspect", shards) == 0
    output = capsys.readouterr().out
    assert "30, of which 29 done (96.7 %)" in output
    assert "part-00000-of-00003.h5: 9 of 10 done" in output


def test_verify_reports_problems_and_the_fix(tmp_path, capsys):
    for i in range(2):
        features = random_features([f"{n}" for n in range(i, 40, 2)])
        write_store(tmp_path / f"s-0000{i}-of-00002.h5", MANIFEST, features)
    store = tmp_path / "s.h5"
    assert run_store("verify", store) == 0
    assert "40 of 40 rows are valid" in capsys.readouterr().out
    first = tmp_path / "s-00000-of-00002.h5"
    rows = LocalRows(read_local_header(first), writable=True)
    for row in range(12):
        rows.mark_undone(row)
    rows.close()
    corrupt_row(first, 13)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "41.jpg").touch()
    (tmp_path / "images" / "1.jpg").touch()
    assert run_store("verify", store, "--images", tmp_path / "images") == 1
    output = capsys.readouterr().out
    assert "27 of 40 rows are valid" in output
    assert "1 rows are corrupt (checksum):\n" in output
    assert "12 rows are not extracted yet:" in output
    assert "... and 2 more" in output
    assert "1 images have no row:\n  41\n" in output
    assert "39 rows belong to images that are not in these folders" in output
    assert "to fix all of this, run: multitask-vl extract" in output
    assert run_store("verify", store, "--images", tmp_path / "images", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["ok"], result["valid"], result["extra_rows"]) == (False, 27, 39)
    assert (len(result["missing"]), len(result["corrupt"]), result["uncovered"]) == (12, 1, ["41"])


def test_verify_truncated_store_exits_2(tmp_path, capsys):
    write_store(tmp_path / "s.h5", MANIFEST, random_features(["a"]))
    os.truncate(tmp_path / "s.h5", 900)
    assert run_store("verify", tmp_path / "s.h5") == 2
    assert "truncated or corrupt" in capsys.readouterr().err


# ---- stats


def test_stats_list_suspicious_rows(tmp_path, capsys):
    rng = np.random.default_rng(0)
    features = {f"{n:03d}": rng.standard_normal(SHAPE).astype("f2") for n in range(60)}
    for row in features.values():
        row[:, 3] = 0
    features["010"] = np.zeros(SHAPE, "f2")
    features["011"] = np.tile(features["012"][:1], (SHAPE[0], 1))
    features["013"] = features["014"]
    features["015"] *= 100
    write_store(tmp_path / "s.h5", MANIFEST, features)
    rows = LocalRows(read_local_header(tmp_path / "s.h5"), writable=True)
    rows.write(20, np.full(SHAPE, np.nan, "<f2"))
    rows.close()
    corrupt_row(tmp_path / "s.h5", 21)
    assert run_store("stats", tmp_path / "s.h5", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert (found["all_zero"], found["constant"], found["nonfinite"]) == (["010"], ["011"], ["020"])
    assert (found["duplicates"], next(iter(found["outliers"]))) == ([["013", "014"]], "015")
    assert (found["corrupt"], found["rows"], found["rows_read"], found["zero_channels"]) == (["021"], 60, 59, [3])
    valid = np.stack([row for key, row in features.items() if key not in ("020", "021")]).astype(np.float64)
    np.testing.assert_allclose(found["channel_means"], valid.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found["channel_stds"], valid.std((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["zero_fractions"], (valid == 0).mean((0, 1)))
    assert (found["min"], found["max"]) == (valid.min(), valid.max())
    assert run_store("stats", tmp_path / "s.h5") == 1
    output = capsys.readouterr().out
    for line in (
        "59 of 60 rows read, 8 channels", "1 rows are all zeros:\n  010", "1 rows are constant",
        "1 rows have values that are not finite", "  015: ", "1 channels are zero everywhere (first: 3)", "  013, 014",
    ):  # fmt: skip
        assert line in output


def test_stats_of_valid_empty_and_all_zero_stores(shards, tmp_path, capsys):
    assert run_store("stats", shards) == 0
    assert compute_stats(shards, sample=7).rows_read == 7
    assert run_store("stats", shards, "--sample", 0) == 2
    create_store(tmp_path / "new.h5", MANIFEST, ["a"])
    assert run_store("stats", tmp_path / "new.h5") == 2
    assert "no row has features yet" in capsys.readouterr().err
    write_store(tmp_path / "zeros.h5", MANIFEST, {"a": np.zeros(SHAPE)})
    assert run_store("stats", tmp_path / "zeros.h5") == 1


# ---- merge


def test_merged_shards_equal_one_store(shards, tmp_path, capsys):
    create_store(tmp_path / "merged.h5", MANIFEST, KEYS)
    opened_before = FeatureStore(tmp_path / "merged.h5")
    assert run_store("merge", shards, tmp_path / "merged.h5") == 0
    assert "merged.h5: 30 of 30 rows done, 30 copied now" in capsys.readouterr().out
    write_store(tmp_path / "expected.h5", MANIFEST, FEATURES)
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "expected.h5").read_bytes()
    assert run_store("merge", shards, tmp_path / "merged.h5") == 0
    assert "30 of 30 rows done, 0 copied now" in capsys.readouterr().out
    assert opened_before.missing(KEYS) == KEYS, "a reader keeps the rows that were done when it opened the store"
    assert FeatureStore(tmp_path / "merged.h5").missing(KEYS) == []


def test_merge_copies_equal_rows_once_and_rejects_conflicts(shards, tmp_path, capsys):
    write_store(tmp_path / "more.h5", MANIFEST, {**random_features(["new"]), "004": FEATURES["004"]})
    assert run_store("merge", shards, tmp_path / "more.h5", tmp_path / "merged.h5") == 0
    assert "31 of 31 rows done, 31 copied now; 1 images are in several stores" in capsys.readouterr().out
    write_store(tmp_path / "conflict.h5", MANIFEST, {"004": FEATURES["004"] + 1, "005": FEATURES["005"] + 1})
    assert run_store("merge", shards, tmp_path / "conflict.h5", tmp_path / "other.h5") == 2
    assert "2 images have different features in two stores (first: 004 in" in capsys.readouterr().err
    assert not (tmp_path / "other.h5").exists()


def test_merge_leaves_undone_and_corrupt_rows_pending(shards, tmp_path, capsys):
    break_first_shard(tmp_path)
    create_store(tmp_path / "planned.h5", MANIFEST, ["000", "later"])
    assert run_store("merge", tmp_path / "planned.h5", shards, tmp_path / "merged.h5") == 1
    output = capsys.readouterr().out
    assert "28 of 31 rows done" in output
    assert "1 rows are corrupt in their store (checksum) and are not done here:\n  006\n" in output
    assert "extract the missing rows: " in output
    store = FeatureStore(tmp_path / "merged.h5")
    assert store.missing([*KEYS, "later"]) == ["003", "006", "later"]
    np.testing.assert_array_equal(store.get("000"), FEATURES["000"])


def test_merge_reports_unusable_stores(shards, tmp_path, capsys):
    write_store(tmp_path / "other.h5", MANIFEST.model_copy(update={"resize": "crop"}), random_features(["x"]))
    for args, message in (
        ((shards, tmp_path / "other.h5", tmp_path / "new.h5"), "made differently. resize: squash, not crop"),
        ((shards, shards), "shards of this name exist"),
        ((tmp_path / "other.h5", tmp_path / "other.h5"), "is one of the stores to merge"),
        ((tmp_path / "gone.h5", tmp_path / "new.h5"), "no such feature store"),
    ):
        assert run_store("merge", *args) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new.h5").exists()


def test_killed_merge_is_resumed(shards, tmp_path, capsys):
    args = ["merge", shards, tmp_path / "merged.h5"]
    child = os.fork()
    if child == 0:
        checked_rows, remaining = merge.checked_rows, [12]

        def kill_after_12(*args):
            for row in checked_rows(*args):
                if not remaining[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                remaining[0] -= 1
                yield row

        merge.checked_rows = kill_after_12
        run_store(*args)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(FeatureStore(tmp_path / "merged.h5")) == 12
    assert run_store(*args) == 0
    assert "30 of 30 rows done, 18 copied now" in capsys.readouterr().out
    write_store(tmp_path / "expected.h5", MANIFEST, FEATURES)
    assert store_bytes(tmp_path / "merged.h5") == store_bytes(tmp_path / "expected.h5")
