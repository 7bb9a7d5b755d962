"""Which runs does the study of the embedded world consist of? Names, configurations, overrides, seeds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

SEEDS = (42, 43, 44)
STEPS = 600
"""Of the main comparison: those of configs/quickstart.yaml."""
CURVE_STEPS = (150, 300, 600, 1200)
CURVE_SHARES = (8, 4, 2)
"""One part in so many of the training split; the whole of it is the main comparison's first run."""
CURVE_RANKS = (4, 8, 16, 64)
RANK = 32
"""The quickstart's, which the main comparison's first run has."""
ROUTED_STEPS = 200
"""Shorter than the quickstart: these runs ask for stability, not for the last point."""
LORA = "method={name: lora, rank: 32, alpha: 32, dropout: 0.0, targets: [query, value], biases: all}"
SHARINGS = {
    "single adapter": ("method.sharing=single",),
    "adapter per task": ("method.sharing=per_task",),
    "LoRA": (LORA, "method.sharing=single"),
}
ALWAYS = (
    "evaluation.during=[]",  # the numbers at the end do not depend on it, the time does
    "evaluation.every_epochs=null",
    "tracking.trackers=[]",
    "training.log_every=1",
    "training.resume=auto",  # what was interrupted goes on
)


@dataclass(frozen=True)
class StudyRun:
    """One run of the study.

    Attributes:
        name: of its folder, unique.
        group: which table it belongs to: main, routed, steps, data or rank.
        row: which row of the table; runs of the same row differ by the seed alone.
        config: its YAML.
        overrides: what else is said on the command line.
        share: one part in so many of the training split; 1 is all of it.
    """

    name: str
    group: str
    row: str
    config: str
    seed: int
    overrides: tuple[str, ...] = ()
    share: int = 1

    def words(self, world: Path | str, out: Path | str) -> list[str]:
        """The command line after ``python``; paths of the world and of the study's folder as given."""
        subset = subset_overrides(Path(out) / "subsets" / f"1_of_{self.share}") if self.share > 1 else ()
        places = (f"data_dir={world}", f"run_dir={out}/runs/{self.name}", f"seed={self.seed}")
        script = ["launch/train_multitask.py", "--config", self.config]
        return [*script, *places, *ALWAYS, *subset, *self.overrides]

    def command(self, world: Path | str = "data/world", out: Path | str = "runs/embedded_world") -> str:
        """The same as a line for a shell."""
        return shlex.join(["python", *self.words(world, out)])


def all_runs(steps: int = STEPS, routed_steps: int = ROUTED_STEPS) -> list[StudyRun]:
    """Every run, the most wanted first.

    Args:
        steps: of the main comparison, the data and the rank curve.
        routed_steps: of the runs that ask whether mm1 and mm2 are stable.
    """
    return [*_main(steps), *_routed(routed_steps), *_curves(steps)]


def subset_overrides(folder: Path) -> tuple[str, ...]:
    """Train on the files that `benchmarks.embedded_subset` wrote to ``folder`` (made absolute)."""
    folder = folder.absolute()
    return (
        f"tasks.vqa.splits.train.questions={folder}/vqa_questions.json",
        f"tasks.vqa.splits.train.annotations={folder}/vqa_annotations.json",
        f"tasks.gqa.splits.train.questions={folder}/gqa_questions.json",
        f"tasks.nlvr2.splits.train.items={folder}/nlvr2.json",
        f"tasks.coco_caption.splits.train.captions={folder}/dataset_coco.json",
    )


def _main(steps: int) -> list[StudyRun]:
    rows = {
        "quickstart": ("configs/quickstart.yaml", SEEDS),
        "blind": ("configs/quickstart_blind.yaml", SEEDS),
        "random_backbones": ("configs/controls/random_backbones.yaml", SEEDS[:1]),
        "full": ("configs/controls/full.yaml", SEEDS[:1]),
        "symbolic": ("configs/controls/symbolic.yaml", SEEDS[:1]),
        "random_clip": ("configs/controls/random_clip.yaml", SEEDS[:1]),
        "random_bart": ("configs/controls/random_bart.yaml", SEEDS[:1]),
    }
    length = (f"training.steps={steps}",)
    return [
        StudyRun(f"{row}-{seed}", "main", row, config, seed, length)
        for row, (config, seeds) in rows.items()
        for seed in seeds
    ]


def _routed(steps: int) -> list[StudyRun]:
    shared = (f"training.steps={steps}", "evaluation.final=[report]")
    return [
        StudyRun(
            name=f"{function}-{sharing.replace(' ', '_')}-{seed}",
            group="routed",
            row=f"{function}, {sharing}",
            config="configs/quickstart.yaml",
            seed=seed,
            overrides=(*shared, *overrides, f"routing.function={function}"),
        )
        for function in ("mm1", "mm2", "none")
        for seed in (SEEDS if function != "none" else SEEDS[:1])
        for sharing, overrides in SHARINGS.items()
    ]


def _curves(steps: int) -> list[StudyRun]:
    seed, final = SEEDS[0], "evaluation.final=[report]"

    def run(group: str, row: int | str, *overrides: str, share: int = 1) -> StudyRun:
        name = f"{group}_{str(row).replace('/', '_')}-{seed}"
        return StudyRun(name, group, str(row), "configs/quickstart.yaml", seed, (*overrides, final), share)

    lengths = [round(steps * k / STEPS) for k in CURVE_STEPS]
    return [
        *(run("steps", length, f"training.steps={length}") for length in lengths if length != steps),
        *(run("data", f"1/{share}", f"training.steps={steps}", share=share) for share in CURVE_SHARES),
        *(run("rank", rank, f"training.steps={steps}", f"method.rank={rank}") for rank in CURVE_RANKS),
    ]
