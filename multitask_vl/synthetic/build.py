"""Building a synthetic world: images and annotation files of all tasks and splits.

Scenes are sampled once for VQA, GQA and captions, and pairs of scenes for NLVR2; each task has its own random streams.
The same seed gives the same bytes, with any number of processes. Command: ``multitask-vl make-synthetic``.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from multitask_vl.errors import InputError
from multitask_vl.synthetic import questions_gqa, questions_vqa
from multitask_vl.synthetic.captions import caption_scene
from multitask_vl.synthetic.questions import Question, QuestionSampler, Template, world_scene
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import SPLITS, Scene, rng_for, split_rng
from multitask_vl.synthetic.statements import PAIRS_PER_SET, pair_set
from multitask_vl.synthetic.writers import (
    FILES,
    gqa_file,
    image_key,
    karpathy_images,
    nlvr2_rows,
    pair_key,
    scene_graphs,
    vqa_files,
    write_json,
    write_jsonl,
)

FORMAT_VERSION = 1
"""Incremented whenever the same seed would give other files."""
METADATA_FILE = "world.json"
IMAGES_PER_JOB = 100


@dataclass(frozen=True)
class SplitSize:
    """Size of a split.

    Attributes:
        scenes: number of images for VQA, GQA and captions.
        questions: number of VQA questions, and of GQA questions.
        sets: number of NLVR2 sets, of four pairs and two sentences: eight examples, eight images.
    """

    scenes: int
    questions: int
    sets: int


SPLIT_SIZES = {
    "train": SplitSize(4500, 12000, 600),
    "val": SplitSize(240, 480, 50),
    "test": SplitSize(800, 2000, 110),
    "ood": SplitSize(400, 600, 50),
}


def scaled_sizes(scale: float) -> dict[str, SplitSize]:
    """`SPLIT_SIZES` times ``scale``, at least 8 of everything."""
    return {
        split: SplitSize(*(max(8, round(value * scale)) for value in (size.scenes, size.questions, size.sets)))
        for split, size in SPLIT_SIZES.items()
    }


def build_world(out: Path, seed: int = 0, scale: float = 1.0, processes: int = 2) -> dict[str, int]:
    """Build a world in the folder ``out``, which must not exist yet.

    Args:
        out: folder to create; it appears once it is complete.
        seed: random seed of all scenes and texts.
        scale: size relative to `SPLIT_SIZES`.
        processes: number of processes; 1 builds in this one.

    Returns:
        Number of images, questions and so on, also recorded in ``world.json``.

    Raises:
        InputError: ``out`` exists, or an argument is out of range.
    """
    _check_arguments(out, seed, scale, processes)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    sizes = scaled_sizes(scale)
    counts: dict[str, int] = {}
    for result in _run_jobs(_jobs(partial, seed, sizes), processes):
        for name, number in result.items():
            counts[name] = counts.get(name, 0) + number
    counts = dict(sorted(counts.items()))
    header = {"format": FORMAT_VERSION, "seed": seed, "scale": scale, "sizes": {k: asdict(v) for k, v in sizes.items()}}
    (partial / METADATA_FILE).write_text(json.dumps({**header, "counts": counts}, indent=1) + "\n")
    partial.rename(out)
    return counts


def _check_arguments(out: Path, seed: int, scale: float, processes: int) -> None:
    problems = []
    if out.exists():
        problems.append(f"--out {out}: already exists; choose another folder, or remove it first if it is an old world")
    if seed < 0:
        problems.append(f"--seed {seed}: must be 0 or more")
    if not 0 < scale <= 100:
        problems.append(f"--scale {scale}: must be above 0 and at most 100; 1 is the default size")
    if processes < 1:
        problems.append(f"--processes {processes}: must be 1 or more")
    blocked = next((parent for parent in out.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        problems.append(f"--out {out}: {blocked} is a file, not a folder")
    if problems:
        raise InputError(problems)


Job = tuple[Callable[..., dict[str, int]], tuple]
"""Module-level function, so that spawned processes can import it, and its arguments; it returns counts."""


def _jobs(out: Path, seed: int, sizes: dict[str, SplitSize]) -> list[Job]:
    """Jobs that together write all files, the longest first."""
    jobs: list[Job] = []
    for split, size in sizes.items():
        jobs += [(_write_questions, (out, seed, split, size, task)) for task in ("vqa", "gqa")]
        jobs += [(_write_statements, (out, seed, split, size)), (_write_scene_graphs, (out, seed, split, size))]
    jobs.append((_write_captions, (out, seed, sizes)))
    sets_per_job = IMAGES_PER_JOB // (2 * PAIRS_PER_SET)
    for split, size in sizes.items():
        for start in range(0, size.scenes, IMAGES_PER_JOB):
            jobs.append((_write_images, (out, seed, split, start, min(start + IMAGES_PER_JOB, size.scenes))))
        for start in range(0, size.sets, sets_per_job):
            jobs.append((_write_pair_images, (out, seed, split, start, min(start + sets_per_job, size.sets))))
    return jobs


def _run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[dict[str, int]]:
    if processes == 1:
        yield from (function(*arguments) for function, arguments in jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from (future.result() for future in [pool.submit(function, *arguments) for function, arguments in jobs])


def image_id(split: str, index: int) -> int:
    """Id of an image, unique across splits."""
    return SPLITS.index(split) * 1_000_000 + index + 1


def _scenes(seed: int, split: str, size: SplitSize) -> dict[int, Scene]:
    return {image_id(split, index): world_scene(seed, split, index) for index in range(size.scenes)}


def sample_questions(
    seed: int, split: str, size: SplitSize, task: str, templates: Sequence[Template]
) -> dict[int, list[Question]]:
    """Image id -> its questions, ``size.questions`` in total, spread evenly over the images."""
    sampler = QuestionSampler(templates, only_held_out=split == "ood")
    questions: dict[int, list[Question]] = {}
    total = 0
    for index, (number, scene) in enumerate(_scenes(seed, split, size).items()):
        due = (index + 1) * size.questions // size.scenes - total
        questions[number] = sampler.sample(scene, due, split_rng(seed, task, split, index))
        total += len(questions[number])
    return questions


def _write_questions(out: Path, seed: int, split: str, size: SplitSize, task: str) -> dict[str, int]:
    templates = questions_vqa.TEMPLATES if task == "vqa" else questions_gqa.TEMPLATES
    questions_by_image = sample_questions(seed, split, size, task, templates)
    if task == "vqa":
        questions, annotations = vqa_files(split, questions_by_image, seed)
        write_json(out / FILES["vqa_questions"].format(split=split), questions)
        write_json(out / FILES["vqa_annotations"].format(split=split), annotations)
    else:
        write_json(out / FILES["gqa"].format(split=split), gqa_file(questions_by_image))
    return {f"{task}/{split}": sum(map(len, questions_by_image.values()))}


def _write_statements(out: Path, seed: int, split: str, size: SplitSize) -> dict[str, int]:
    sets = {index: pair_set(seed, split, index) for index in range(size.sets)}
    rows = list(nlvr2_rows(split, sets))
    write_jsonl(out / FILES["nlvr2"].format(split=split), rows)
    graphs = scene_graphs(
        (pair_key(split, index, pair, side), (index * PAIRS_PER_SET + pair) * 2 + side, scene)
        for index, each in sets.items()
        for pair, scenes in enumerate(each.pairs)
        for side, scene in enumerate(scenes)
    )
    write_json(out / FILES["nlvr2_scenes"].format(split=split), graphs)
    return {f"nlvr2/{split}": len(rows)}


def _write_scene_graphs(out: Path, seed: int, split: str, size: SplitSize) -> dict[str, int]:
    graphs = scene_graphs((image_key(number), number, scene) for number, scene in _scenes(seed, split, size).items())
    write_json(out / FILES["gqa_scenes"].format(split=split), graphs)
    return {}


def _write_captions(out: Path, seed: int, sizes: dict[str, SplitSize]) -> dict[str, int]:
    images, counts = [], {}
    for split, size in sizes.items():
        captions = {
            number: caption_scene(scene, rng_for("world", seed, "captions", number))
            for number, scene in _scenes(seed, split, size).items()
        }
        images += karpathy_images(split, captions)
        counts[f"captions/{split}"] = len(captions)
    write_json(out / FILES["captions"], {"images": images, "dataset": "coco"})
    return counts


def _write_images(out: Path, seed: int, split: str, start: int, stop: int) -> dict[str, int]:
    for index in range(start, stop):
        _save_image(out, image_key(image_id(split, index)), world_scene(seed, split, index))
    return {"images": stop - start}


def _write_pair_images(out: Path, seed: int, split: str, start: int, stop: int) -> dict[str, int]:
    for index in range(start, stop):
        for pair, scenes in enumerate(pair_set(seed, split, index).pairs):
            for side, scene in enumerate(scenes):
                _save_image(out, pair_key(split, index, pair, side), scene)
    return {"images": (stop - start) * PAIRS_PER_SET * 2}


def _save_image(out: Path, key: str, scene: Scene) -> None:
    Image.fromarray(render(scene)).save(out / "images" / f"{key}.png", compress_level=1)
