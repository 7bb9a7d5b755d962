"""Does extraction survive kills at any moment and a disk that is really full?"""

import json
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from feature_extraction.command import main
from feature_extraction.extract import extract
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from tests.drawn_images import tiny_config
from tests.extraction_child import started
from tests.feature_extraction.test_images import KINDS, _bomb, _broken_png, _float_pixels, _nothing, _truncated
from tests.store_fixtures import content

IMAGES, STORES, KILLS = 40, 4, 5


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(tmp_path):
    """Four stores, each killed five times, each then finished; features and keys are those of an undisturbed run."""
    whole = tiny_config(tmp_path / "whole", IMAGES, workers=1)
    (tmp_path / "whole.json").write_text(whole.model_dump_json())
    for _ in range(2):  # the first one also starts the server of forks
        (tmp_path / "whole" / "features.h5").unlink(missing_ok=True)
        begun = time.monotonic()
        process = started(tmp_path / "whole.json")
        process.join()
        whole_s = time.monotonic() - begun
        assert process.exitcode == 0
    expected, moments, kills = content(tmp_path / "whole" / "features.h5"), random.Random(6), []
    for number in range(STORES):
        cut = tiny_config(tmp_path / f"cut{number}", IMAGES, workers=number % 2)
        (tmp_path / "cut.json").write_text(cut.model_dump_json())
        store = tmp_path / f"cut{number}" / "features.h5"
        for kill in range(KILLS):
            process, before = started(tmp_path / "cut.json"), _done(store)
            if kill % 2:
                time.sleep(moments.uniform(0.1, 0.7) * whole_s)
            else:  # however slow the machine is: while rows are being written
                while _done(store) == before and process.is_alive():
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.02))
            process.kill()
            process.join()
            kills.append((process.exitcode, _done(store)))
        summary = extract(cut, "cpu")
        assert summary.complete
        assert content(store) == expected, f"store {number} after {kills[-KILLS:]}"
        assert [path.name for path in store.parent.iterdir() if path.name.startswith((".", "features"))] == [store.name]
    assert len(kills) == 20
    inside = [done for code, done in kills if code == -9 and 0 < done < IMAGES]
    assert len(inside) >= 5, f"the moments missed the run: {kills}"


def _done(store: Path) -> int:
    """Rows that are done; none while the file is being made."""
    try:
        return int(read_layout(store).done.sum())
    except InputError:
        return 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for little."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({mounted.stderr.strip() or mounted.returncode})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_the_store_goes_on(small_disk, tmp_path):
    config = tiny_config(tmp_path, IMAGES, workers=0)
    extract(config, "cpu")
    on_disk = config.features.model_copy(update={"store": small_disk / "features.h5"})
    full = config.model_copy(update={"features": on_disk})
    with StoreWriter(
        small_disk / "features.h5",
        read_layout(tmp_path / "features.h5").manifest,
        FeatureStore(tmp_path / "features.h5").keys(),
    ):
        pass  # space for it was there when it was made
    (small_disk / "others").write_bytes(bytes(340_000))  # and then somebody else took it
    with pytest.raises(InputError, match=r"No space left on device; what is stored so far is kept\. Make room"):
        extract(full, "cpu")
    done = int(read_layout(small_disk / "features.h5").done.sum())
    assert 0 < done < IMAGES
    (small_disk / "others").unlink()
    summary = extract(full, "cpu")
    assert (summary.skipped, summary.extracted, summary.complete) == (done, IMAGES - done, True)
    assert content(small_disk / "features.h5") == content(tmp_path / "features.h5")


def test_a_disk_too_small_is_told_before_work_begins(small_disk, tmp_path):
    (small_disk / "others").write_bytes(bytes(340_000))
    config = tiny_config(tmp_path, IMAGES, store=str(small_disk / "features.h5"))
    with pytest.raises(InputError, match=r"needs 0\.00 GB for 40 images.*are free; make room"):
        extract(config, "cpu")
    assert not (small_disk / "features.h5").exists()


@pytest.mark.parametrize("at", [0.3, 0.99])
def test_a_truncated_store_is_refused_with_the_command_that_mends_it(tmp_path, at):
    config = tiny_config(tmp_path, workers=0)
    extract(config, "cpu")
    before, store = content(tmp_path / "features.h5"), tmp_path / "features.h5"
    data = store.read_bytes()
    store.write_bytes(data[: int(at * len(data))])
    mending = r"features\.h5: truncated or damaged.*delete it and run: python launch/extract_features.py"
    with pytest.raises(InputError, match=mending):
        FeatureStore(store)
    with pytest.raises(InputError, match=mending):
        extract(config, "cpu")
    store.unlink()
    extract(config, "cpu")
    assert content(store) == before


def test_an_error_of_the_writing_thread_ends_the_run(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, IMAGES, workers=0)
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


def test_one_folder_of_every_kind_of_image(tmp_path, capsys):
    """What can be shown is converted, the rest is listed with its reason, and the exit code says so."""
    config = tiny_config(tmp_path, 3, workers=1)
    bad = {"truncated": _truncated, "floats": _float_pixels, "bomb": _bomb, "nothing": _nothing, "broken": _broken_png}
    for kind in KINDS:
        kind(tmp_path / "images" / f"fine{kind.__name__}.png")
    for name, kind in bad.items():
        kind(tmp_path / "images" / f"{name}.png")
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "images" / "animated.webp", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x112] = 6
    frames[0].save(tmp_path / "images" / "turned.jpg", exif=exif)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(json.loads(config.model_dump_json(include={"clip", "features", "data_dir"})))
    )
    assert main(["--config", str(tmp_path / "run.yaml")]) == 1
    told = capsys.readouterr().out
    assert f"{5 + len(KINDS)} of {10 + len(KINDS)} images" in told
    assert "1 images were turned upright" in told
    listed = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [one["key"] for one in listed] == sorted(bad)
    assert all(one["reason"] for one in listed)
    assert len(FeatureStore(tmp_path / "features.h5")) == 5 + len(KINDS)
