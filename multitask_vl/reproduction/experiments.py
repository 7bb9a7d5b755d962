"""Which configuration reproduces which published row: every recipe with the figures that its header expects.

A header says what was published in entries of the form
``# Expected: VQA 66.17 (.27), CIDEr 122.03 (.46), trained 4.16 % [VL-PET, Table 2, three seeds]``: figures as printed,
spreads in round brackets, paper and table in square ones. ``# Expected: nothing published`` says that there are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path

from multitask_vl.config import load_config
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.reproduction.parameters import parameter_report

NAME = "recipes"
"""Of the place of the tables in docs/recipes.md."""
FIGURES = ("VQA", "GQA", "NLVR2", "CIDEr", "average", "trained")
"""What can be published of a row; `trained` in percent of all parameters."""
_FIGURE = re.compile(rf"({'|'.join(FIGURES)}) (\d+(?:\.\d+)?(?: \(\d*\.\d+\))?)(?: %)?")
_EXPECTED = re.compile(r"Expected: (?:nothing published|([^\[\]]*?) \[([^\[\]]+)\])")


@dataclass(frozen=True)
class Published:
    """One row of a paper.

    Attributes:
        figures: of `FIGURES`, as printed, with the spread in brackets where one was.
        source: paper, table, and how many seeds where it says so.
    """

    figures: dict[str, str]
    source: str


@dataclass(frozen=True)
class Recipe:
    """One file of configs/experiments.

    Attributes:
        name: folder and file, without ending.
        path: of the file.
        config: what it says, whole.
        published: rows that it reproduces; none where there is no such row.
        trainable, total: parameters of its model, the frozen CLIP left out.
    """

    name: str
    path: Path
    config: Config
    published: tuple[Published, ...]
    trainable: int
    total: int


def read_recipes(configs: Path) -> list[Recipe]:
    """Every recipe below ``configs``/experiments, by name, its parameters counted without weights.

    Raises:
        InputError: a file that is no configuration of a model, or whose header says not what is expected of it.
    """
    folder = configs / "experiments"
    return [_read(path, folder, configs / "backbones") for path in sorted(folder.rglob("*.yaml"))]


def published_in(path: Path) -> tuple[Published, ...]:
    """The rows that a header says its file reproduces.

    Raises:
        InputError: no entry ``Expected:``, or one in another form.
    """
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    header = " ".join(line.removeprefix("#").strip() for line in lines)
    entries = header.split("Expected: ")[1:]
    found = [_EXPECTED.match(f"Expected: {entry}") for entry in entries]
    wrong = [entry for entry, match in zip(entries, found, strict=True) if match is None or not _is_row(match)]
    if wrong or not entries:
        got = f"got '{wrong[0][:60]}'" if wrong else "there is none"
        raise InputError(
            f"{path}: 'Expected:' in the header: {got}; write figures of {', '.join(FIGURES)} and a source, such as "
            "'# Expected: VQA 66.17 (.27), CIDEr 122.03 (.46) [VL-PET, Table 2]', or '# Expected: nothing published'"
        )
    rows = [match.groups() for match in found if match[1] is not None]
    return tuple(Published(dict(_FIGURE.findall(figures)), source) for figures, source in rows)


def as_markdown(recipes: Iterable[Recipe], up: str = "../configs") -> str:
    """A table for each folder of recipes, a line for each published row.

    Args:
        up: the way from the page to the folder of configurations.
    """
    head = ("recipe", *FIGURES[:-1], "trained, published %", "trained here", "%", "published in")
    rule = ("---", *["---:"] * (len(head) - 2), "---")
    tables = []
    for folder, some in groupby(recipes, key=lambda recipe: recipe.name.split("/")[0]):
        lines = [head, rule, *(line for recipe in some for line in _lines(recipe, up))]
        tables.append(f"### {folder}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def _is_row(match: re.Match) -> bool:
    if match[1] is None:
        return True
    figures = [_FIGURE.fullmatch(figure) for figure in match[1].split(", ")]
    return all(figures) and len({figure[1] for figure in figures}) == len(figures)


def _read(path: Path, folder: Path, backbones: Path) -> Recipe:
    config = load_config(path)
    # the sizes of the published backbone, so that nothing is looked up
    sizes = load_config(backbones / f"{config.backbone.family}_base_random.yaml").backbone
    report = parameter_report(config.model_copy(update={"backbone": sizes}))
    name = path.relative_to(folder).with_suffix("").as_posix()
    return Recipe(name, path, config, published_in(path), report["trainable"], report["total"])


def _lines(recipe: Recipe, up: str) -> list[tuple[str, ...]]:
    link = f"[{recipe.name.split('/')[1]}]({up}/experiments/{recipe.name}.yaml)"
    counted = (f"{recipe.trainable:,}", f"{100 * recipe.trainable / recipe.total:.2f}")
    rows = recipe.published or (Published({}, "nothing published"),)
    return [(link, *(row.figures.get(name, "") for name in FIGURES), *counted, row.source) for row in rows]
