"""Extraction that is killed, runs out of disk space, or meets corrupt files."""

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from feature_extraction.extract import extract
from feature_extraction.maintenance.inspection import verify
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from tests.drawn_images import tiny_config
from tests.extraction_child import start_extraction
from tests.store_fixtures import store_bytes

IMAGES, STORES, KILLS = 40, 4, 5
PAUSE_S = 0.002


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Bytes of an uninterrupted extraction of `IMAGES` images."""
    folder = tmp_path_factory.mktemp("expected")
    assert extract(tiny_config(folder, IMAGES, num_workers=0), "cpu").complete
    return store_bytes(folder / "features.h5")


def test_killed_inside_a_write_resumes_with_the_same_bytes(expected, tmp_path):
    config = tiny_config(tmp_path, IMAGES, num_workers=1)
    # A row takes three writes: the 19th is the features of the seventh image, in the middle of the second batch.
    process = start_extraction(config, kill_at=19)
    process.join()  # with a timeout it would wait for the decoding worker, too
    assert process.exitcode == -signal.SIGKILL
    assert len(FeatureStore(tmp_path / "features.h5")) == 6
    summary = extract(config, "cpu")
    assert (summary.skipped, summary.extracted) == (6, IMAGES - 6)
    assert store_bytes(tmp_path / "features.h5") == expected
    assert not (tmp_path / "features.h5.lock").exists()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(expected, tmp_path):
    """Four stores, each killed five times and then finished, equal that of an uninterrupted run."""
    started = time.monotonic()
    process = start_extraction(tiny_config(tmp_path / "complete", IMAGES, num_workers=1), PAUSE_S)
    process.join()
    duration_s = time.monotonic() - started
    assert process.exitcode == 0
    assert store_bytes(tmp_path / "complete" / "features.h5") == expected
    moments, kills = random.Random(6), []
    for number in range(STORES):
        config = tiny_config(tmp_path / f"killed{number}", IMAGES, num_workers=number % 2)
        store = tmp_path / f"killed{number}" / "features.h5"
        for kill in range(KILLS):
            before = _count_done(store)
            process = start_extraction(config, PAUSE_S)
            if kill % 2:
                time.sleep(moments.uniform(0.1, 0.7) * duration_s)
            else:  # while rows are being written, however slow the machine is
                while _count_done(store) == before and process.is_alive():
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.02))
            process.kill()
            process.join()
            kills.append((process.exitcode, _count_done(store)))
        assert extract(config, "cpu").complete
        assert store_bytes(store) == expected, f"store {number} after {kills[-KILLS:]}"
        assert [path.name for path in store.parent.iterdir() if path.name.startswith((".", "features"))] == [store.name]
    assert len(kills) == 20
    inside = [done for code, done in kills if code == -signal.SIGKILL and 0 < done < IMAGES]
    assert len(inside) >= 5, f"the kills missed the run: {kills}"


def _count_done(store: Path) -> int:
    """Return the number of done rows; 0 while the file is being created."""
    try:
        return int(read_local_header(store).done.sum())
    except InputError:
        return 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({mounted.stderr.strip() or mounted.returncode})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_reported_and_extraction_resumes(expected, small_disk, tmp_path):
    config = tiny_config(tmp_path, IMAGES, store=str(small_disk / "features.h5"), num_workers=0)
    (small_disk / "others").write_bytes(bytes(340_000))
    with pytest.raises(InputError, match=r"needs 0\.00 GB for 40 images.*are free; make room"):
        extract(config, "cpu")
    assert not (small_disk / "features.h5").exists(), "the disk is too small from the start"
    (small_disk / "others").unlink()
    manifest = extract(tiny_config(tmp_path / "small", 1, num_workers=0), "cpu").manifest
    keys = [f"COCO_{n:03d}" for n in range(IMAGES)]
    with StoreWriter(small_disk / "features.h5", manifest.model_copy(), keys):
        pass
    (small_disk / "others").write_bytes(bytes(340_000))  # the disk fills up after the store was created
    with pytest.raises(InputError, match=r"No space left on device; the rows stored so far are kept\. Make room"):
        extract(config, "cpu")
    done = _count_done(small_disk / "features.h5")
    assert 0 < done < IMAGES
    (small_disk / "others").unlink()
    summary = extract(config, "cpu")
    assert (summary.skipped, summary.extracted, summary.complete) == (done, IMAGES - done, True)
    assert store_bytes(small_disk / "features.h5") == expected


@pytest.mark.parametrize("fraction", [0.3, 0.99])
def test_truncated_store_is_rejected_with_the_command(tmp_path, fraction):
    config = tiny_config(tmp_path, 4, num_workers=0)
    extract(config, "cpu")
    before, store = store_bytes(tmp_path / "features.h5"), tmp_path / "features.h5"
    data = store.read_bytes()
    store.write_bytes(data[: int(fraction * len(data))])
    message = r"features\.h5: truncated or corrupt.*delete it and run: multitask-vl extract"
    with pytest.raises(InputError, match=message):
        FeatureStore(store)
    with pytest.raises(InputError, match=message):
        extract(config, "cpu")
    store.unlink()
    extract(config, "cpu")
    assert store_bytes(store) == before


def test_flipped_byte_is_detected_and_extracted_again(tmp_path):
    config = tiny_config(tmp_path, num_workers=0)
    extract(config, "cpu")
    store = tmp_path / "features.h5"
    before, header = store.read_bytes(), read_local_header(store)
    corrupt = bytearray(before)
    corrupt[header.features_offset + 5 * header.row_bytes + 99] ^= 0x10
    store.write_bytes(corrupt)
    assert verify(store).corrupt == ["COCO_005"]
    summary = extract(config, "cpu")
    assert summary.corrupt_rows == ["COCO_005"]
    assert (summary.skipped, summary.extracted, summary.complete) == (9, 1, True)
    assert store.read_bytes() == before
    assert verify(store, [tmp_path / "images"]).ok


def test_error_in_the_writer_thread_ends_the_run(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, 12, num_workers=0)
    written = []

    def failing(self, rows, features):
        written.append(np.asarray(rows).tolist())
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(StoreWriter, "write", failing)
    with pytest.raises(OSError, match="Input/output"):
        extract(config, "cpu")
    assert len(written) == 1, "nothing is written after an error"
    monkeypatch.undo()
    assert extract(config, "cpu").complete
