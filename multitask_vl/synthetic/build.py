"""How is the embedded world made: ``python -m multitask_vl.synthetic.build --out data/world [--seed N]``.

Scenes are drawn once for VQA, GQA and captions, pairs of scenes for NLVR2; each task asks with generators of its own.
The same seed gives the same bytes, with any number of processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.synthetic import questions_gqa, questions_vqa
from multitask_vl.synthetic.captions import captions_of
from multitask_vl.synthetic.questions import Asker, Question, Template, staged_scene
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import Scene, stream
from multitask_vl.synthetic.statements import PAIRS, pair_set
from multitask_vl.synthetic.writers import (
    FILES,
    SPLITS,
    gqa_file,
    image_key,
    karpathy_images,
    nlvr2_lines,
    pair_key,
    scene_graphs,
    vqa_files,
    write_json,
    write_lines,
)

FORMAT = 1
"""Goes up whenever the same seed would give other files."""
MARKER = "world.json"
CHUNK = 100
"""Pictures that one job draws."""


@dataclass(frozen=True)
class Size:
    """How large a split is.

    Attributes:
        scenes: pictures for VQA, GQA and captions.
        questions: VQA questions, and as many GQA questions.
        sets: NLVR2 sets, of four pairs and two sentences: eight items, eight pictures.
    """

    scenes: int
    questions: int
    sets: int


SIZES = {
    "train": Size(4500, 12000, 600),
    "tune": Size(240, 480, 50),
    "report": Size(800, 2000, 110),
    "heldout": Size(400, 600, 50),
}


def scaled(scale: float) -> dict[str, Size]:
    """`SIZES` times ``scale``, for a smaller or larger world."""
    return {
        split: Size(*(max(8, round(value * scale)) for value in (size.scenes, size.questions, size.sets)))
        for split, size in SIZES.items()
    }


def build(out: Path, seed: int = 0, scale: float = 1.0, processes: int = 2) -> dict[str, int]:
    """Make a world in the folder ``out``, which must not exist yet.

    Returns:
        Numbers of pictures, questions and so on, as also printed and kept in ``world.json``.

    Raises:
        InputError: ``out`` exists, or a number makes no sense.
    """
    _check(out, seed, scale, processes)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    sizes = scaled(scale)
    jobs: list[tuple[Callable, tuple]] = []
    for split, size in sizes.items():
        jobs += [(_ask, (partial, seed, split, size, task)) for task in ("vqa", "gqa")]
        jobs += [(_state, (partial, seed, split, size)), (_graph, (partial, seed, split, size))]
    jobs.append((_caption, (partial, seed, sizes)))
    for split, size in sizes.items():
        jobs += [(_draw, (partial, seed, split, k, min(k + CHUNK, size.scenes))) for k in range(0, size.scenes, CHUNK)]
        step = CHUNK // (2 * PAIRS)
        jobs += [(_draw_pairs, (partial, seed, split, k, min(k + step, size.sets))) for k in range(0, size.sets, step)]
    counts: dict[str, int] = {}
    for found in _run(jobs, processes):
        for name, number in found.items():
            counts[name] = counts.get(name, 0) + number
    counts = dict(sorted(counts.items()))
    header = {"format": FORMAT, "seed": seed, "scale": scale, "sizes": {k: asdict(v) for k, v in sizes.items()}}
    (partial / MARKER).write_text(json.dumps({**header, "counts": counts}, indent=1) + "\n")
    partial.rename(out)
    return counts


def _check(out: Path, seed: int, scale: float, processes: int) -> None:
    problems = []
    if out.exists():
        problems.append(f"--out {out}: exists already; choose another folder, or remove it first if it is an old world")
    if seed < 0:
        problems.append(f"--seed {seed}: give 0 or more")
    if not 0 < scale <= 100:
        problems.append(f"--scale {scale}: give a number above 0 and up to 100; 1 is the default world")
    if processes < 1:
        problems.append(f"--processes {processes}: give 1 or more")
    blocked = next((parent for parent in out.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        problems.append(f"--out {out}: {blocked} is a file, not a folder")
    if problems:
        raise InputError(problems)


def _run(jobs: Sequence[tuple[Callable, tuple]], processes: int):
    if processes == 1:
        yield from (function(*arguments) for function, arguments in jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from (future.result() for future in [pool.submit(function, *arguments) for function, arguments in jobs])


def image_id(split: str, index: int) -> int:
    """Number of a picture; the splits' numbers never meet."""
    return SPLITS.index(split) * 1_000_000 + index + 1


def _scenes(seed: int, split: str, size: Size) -> dict[int, Scene]:
    return {image_id(split, index): staged_scene(seed, split, index) for index in range(size.scenes)}


def questions_of(
    seed: int, split: str, size: Size, task: str, templates: Sequence[Template]
) -> dict[int, list[Question]]:
    """Image id -> its questions, ``size.questions`` in all, spread evenly over the pictures."""
    asker = Asker(templates, only_held_out=split == "heldout")
    found: dict[int, list[Question]] = {}
    total = 0
    for index, (number, scene) in enumerate(_scenes(seed, split, size).items()):
        due = (index + 1) * size.questions // size.scenes - total
        found[number] = asker.ask(scene, due, stream("world", seed, task, split, index))
        total += len(found[number])
    return found


def _ask(out: Path, seed: int, split: str, size: Size, task: str) -> dict[str, int]:
    templates = questions_vqa.TEMPLATES if task == "vqa" else questions_gqa.TEMPLATES
    asked = questions_of(seed, split, size, task, templates)
    if task == "vqa":
        questions, annotations = vqa_files(split, asked, seed)
        write_json(out / FILES["vqa_questions"].format(split=split), questions)
        write_json(out / FILES["vqa_annotations"].format(split=split), annotations)
    else:
        write_json(out / FILES["gqa"].format(split=split), gqa_file(asked))
    return {f"{task}/{split}": sum(map(len, asked.values()))}


def _state(out: Path, seed: int, split: str, size: Size) -> dict[str, int]:
    sets = {index: pair_set(seed, split, index) for index in range(size.sets)}
    lines = list(nlvr2_lines(split, sets))
    write_lines(out / FILES["nlvr2"].format(split=split), lines)
    graphs = scene_graphs(
        (pair_key(split, index, pair, side), (index * PAIRS + pair) * 2 + side, scene)
        for index, one in sets.items()
        for pair, scenes in enumerate(one.pairs)
        for side, scene in enumerate(scenes)
    )
    write_json(out / FILES["nlvr2_scenes"].format(split=split), graphs)
    return {f"nlvr2/{split}": len(lines)}


def _graph(out: Path, seed: int, split: str, size: Size) -> dict[str, int]:
    graphs = scene_graphs((image_key(number), number, scene) for number, scene in _scenes(seed, split, size).items())
    write_json(out / FILES["gqa_scenes"].format(split=split), graphs)
    return {}


def _caption(out: Path, seed: int, sizes: dict[str, Size]) -> dict[str, int]:
    images, counts = [], {}
    for split, size in sizes.items():
        captioned = {
            number: captions_of(scene, stream("world", seed, "captions", number))
            for number, scene in _scenes(seed, split, size).items()
        }
        images += karpathy_images(split, captioned)
        counts[f"captions/{split}"] = len(captioned)
    write_json(out / FILES["captions"], {"images": images, "dataset": "coco"})
    return counts


def _draw(out: Path, seed: int, split: str, start: int, stop: int) -> dict[str, int]:
    for index in range(start, stop):
        _save(out, image_key(image_id(split, index)), staged_scene(seed, split, index))
    return {"images": stop - start}


def _draw_pairs(out: Path, seed: int, split: str, start: int, stop: int) -> dict[str, int]:
    for index in range(start, stop):
        for pair, scenes in enumerate(pair_set(seed, split, index).pairs):
            for side, scene in enumerate(scenes):
                _save(out, pair_key(split, index, pair, side), scene)
    return {"images": (stop - start) * PAIRS * 2}


def _save(out: Path, key: str, scene: Scene) -> None:
    Image.fromarray(render(scene)).save(out / "images" / f"{key}.png", compress_level=1)


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, build, say what was built."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.synthetic.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="decides every scene and every word (default 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the world relative to the default one")
    parser.add_argument("--processes", type=int, default=2, help="processes that draw and write (default 2)")
    options = parser.parse_args(argv)
    started = time.monotonic()
    counts = build(options.out, options.seed, options.scale, options.processes)
    for name, number in counts.items():
        print(f"{name:18} {number:7,}")
    print(f"wrote {options.out} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
