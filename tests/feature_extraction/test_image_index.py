"""Index of images by key: folders, links, clashes and the folders of the official downloads."""

import json
import os

import pytest
from PIL import Image

from feature_extraction.images.image_index import index_images
from feature_extraction.images.image_sources import ImageFile
from multitask_vl.errors import InputError
from tests.task_files import karpathy_file, make, read, vqa_files


def touch(folder, *names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_images_are_indexed_by_stem_at_any_depth(tmp_path):
    touch(tmp_path, "a/b/9.PNG", "a/COCO_1.x.jpg", "3.jpeg", "a/.hidden.jpg", "a/._3.jpg", "notes.txt", "a/x.json")
    index = index_images([tmp_path])
    assert list(index.files) == ["3", "9", "COCO_1.x"]
    assert index.files["9"].path == tmp_path / "a" / "b" / "9.PNG"
    assert index.non_images == 2


def test_links_are_followed_and_repeated_folders_count_once(tmp_path):
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.mkdir()
    (real / "1.jpg").touch()
    (linked / "photos").symlink_to(real)
    (real / "up").symlink_to(linked)
    (linked / "same.jpg").symlink_to(real / "1.jpg")
    assert list(index_images([linked]).files) == ["1", "same"]
    assert list(index_images([linked, real, tmp_path]).files) == ["1", "same"]


def test_key_of_two_files_is_an_error_that_names_both(tmp_path):
    touch(tmp_path, "train/7.jpg", "val/7.png", "val/8.jpg", "val/8.png")
    with pytest.raises(InputError) as caught:
        index_images([tmp_path / "train", tmp_path / "val"])
    first, second = caught.value.problems
    assert first.startswith(f"image key 7 names two files: {tmp_path / 'train/7.jpg'} and {tmp_path / 'val/7.png'}")
    assert "image key 8" in second
    touch(tmp_path / "many", *(f"{number}.{extension}" for number in range(30) for extension in ("jpg", "png")))
    with pytest.raises(InputError) as caught:
        index_images([tmp_path / "many"])
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 10 more such files"


def test_images_that_differ_only_in_the_middle_are_not_copies(tmp_path):
    for folder, color in (("train", "red"), ("val", "blue")):
        (tmp_path / folder).mkdir()
        image = Image.new("RGB", (128, 128), "white")
        image.paste(color, (32, 32, 96, 96))
        image.save(tmp_path / folder / "7.bmp")
    first, second = (ImageFile(tmp_path / folder / "7.bmp") for folder in ("train", "val"))
    assert first.size_and_edges() == second.size_and_edges()
    with pytest.raises(InputError, match="image key 7 names two files"):
        index_images([tmp_path])


def test_broken_link_with_the_key_of_an_image_is_an_error(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"image key 1 names two files, and .*1\.png is a broken link; remove it"):
        index_images([tmp_path])


def test_sources_without_images_are_errors(tmp_path):
    with pytest.raises(InputError, match="names no folder"):
        index_images([])
    with pytest.raises(InputError) as caught:
        index_images([tmp_path / "a", tmp_path, tmp_path / "b"])
    assert [problem.split()[1] for problem in caught.value.problems] == [f"{tmp_path / 'a'}:", f"{tmp_path / 'b'}:"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no images in .* \(1 other files; image extensions: \.bmp"):
        index_images([tmp_path])


def test_file_name_that_is_not_utf8_is_an_error(tmp_path):
    open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "w").close()
    with pytest.raises(InputError, match=r"caf\\xe9\.jpg.*not UTF-8"):
        index_images([tmp_path])


def test_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "1.png", "closed/2.png")
    scandir = os.scandir

    def denying(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denying)  # permissions do not stop root
    with pytest.raises(InputError, match=r"closed: cannot be read: Permission denied; make it readable \(chmod"):
        index_images([tmp_path])


def test_official_folders_have_the_image_keys_of_the_tasks(tmp_path):
    """Folders as the official archives unpack, and the image keys that each task reads from its annotations."""
    images = tmp_path / "images"
    touch(images, *(f"coco/val2014/COCO_val2014_{number:012d}.jpg" for number in range(5)))
    touch(images, "coco/annotations/captions_val2014.json", "vg/VG_100K/1.jpg", "vg/VG_100K_2/2.jpg")
    touch(images, "gqa/images/2370799.jpg", "gqa/images/n161313.jpg", "nlvr2/dev/dev-850-0-img0.png")
    touch(images, "nlvr2/dev/dev-850-0-img1.png", "nlvr2/images/train/34/train-3433-1-img0.png", "coco/.DS_Store")
    index = index_images([images / "coco", images / "vg", images / "gqa", images / "nlvr2"])
    assert index.non_images == 1
    gqa = {str(n): {"imageId": image, "question": "?", "answer": "a"} for n, image in enumerate(("2370799", "n161313"))}
    (tmp_path / "gqa.json").write_text(json.dumps(gqa))
    nlvr2 = {"sentence": "s", "label": "True", "identifier": "dev-850-0-0"}
    (tmp_path / "nlvr2.json").write_text(json.dumps(nlvr2) + "\n")
    keys = set()
    for task in (
        make("vqa", tmp_path, **vqa_files(tmp_path)),
        make("gqa", tmp_path, questions="gqa.json"),
        make("nlvr2", tmp_path, items="nlvr2.json"),
        make("coco_caption", tmp_path, captions=karpathy_file(tmp_path), subset="test", unit="image"),
    ):
        keys |= {key for example in read(task) for key in example.images}
    assert keys <= index.files.keys(), keys - index.files.keys()
    assert len(keys) >= 5
