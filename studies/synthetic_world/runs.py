"""Which runs does the study of the embedded world consist of? Names, configurations, overrides, seeds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SEEDS = (42, 43, 44)
STEPS = 600
"""Of the main comparison: those of configs/examples/quickstart.yaml."""
CURVE_LENGTHS = (150, 400, 1200)
"""Steps of the curve over steps; the main comparison's first run is one more point."""
CURVE_SHARES = (64, 16, 4)
"""One part in so many of the training split, for the quickstart's number of steps: from 51 passes over the questions of
the smallest part to less than one over all of them. With fewer steps the steps are the limit, not the data."""
CURVE_RANKS = (1, 4, 16, 64)
RANK_STEPS = 400
"""Long enough to tell, short enough not to be at the ceiling."""
RANK_SEEDS = SEEDS[:2]
"""One seed cannot tell a step of the curve from chance."""
BARE = ("method.sharing=single", "method.train_layer_norms=none")
"""The curve over ranks: one adapter for four tasks and no norm beside it, so that rank is what there is to learn with.
An adapter per task of rank 4 with trained norms already does what rank 64 does."""
RANK_ROUTING = "routing.function=mul"
"""The same function for every task and rank, the steadiest: the quickstart's mm2 on captions jumps at rank 64."""
ROUTED_STEPS = 200
"""Shorter than the quickstart: these runs ask for stability, not for the last point."""
HIGH_RATES = ("5e-3", "1e-2")
"""Above the quickstart's 2e-3: where do mm1 and mm2 end?"""
HIGH_STEPS = 100
LORA = "method={name: lora, rank: 32, alpha: 32, dropout: 0.0, targets: [query, value], biases: all}"
METHOD_STEPS = 200
METHODS = {
    "frozen": "{name: frozen}",
    "bitfit": "{name: bitfit}",
    "prompt, single": "{name: prompt, length: 40, mid: 128}",
    "lora, single": "{name: lora, rank: 32, alpha: 32, dropout: 0.0}",
    "lora, cross-attention": "{name: lora, rank: 32, alpha: 32, dropout: 0.0, mapping: cross_attention}",
    "low-rank adapter": "{name: low_rank_adapter, rank: 32}",
    "adapter, single": "{name: adapter, rank: 32, sharing: single}",
    "adapter, per task": "{name: adapter, rank: 32, sharing: per_task}",
    "compacter, single": "{name: compacter, rank: 32}",
    "hyperformer": "{name: hyperformer, rank: 32}",
    "parallel adapter": "{name: parallel_adapter, rank: 32}",
    "parallel adapter, cross-attention": "{name: parallel_adapter, rank: 32, mapping: cross_attention}",
    "vl_pet, large": "{name: vl_pet, rank: 32, gate_rank: 32, decoder_rank: 32}",
    "vl_pet, middleX": "{name: vl_pet, granularity: middleX, rank: 32, decoder_rank: 32}",
    "vl_pet, middleY": "{name: vl_pet, granularity: middleY, rank: 32, decoder_rank: 32}",
    "vl_pet, small": "{name: vl_pet, granularity: small, rank: 32, decoder_rank: 32}",
    "modex, share down": "{name: modex, rank: 32}",
    "modex, share up": "{name: modex, rank: 32, share: up}",
    "full": "{name: full}",
}
"""Every method at the width of the tiny backbone, un-routed: row -> its section. Ranks are the quickstart's; what is
shared between tasks is compared for adapters alone."""
UNPOOLED = ("cross-attention",)
"""Rows whose method reads every encoder position by itself."""
SHARINGS = {
    "single adapter": ("method.sharing=single",),
    "adapter per task": ("method.sharing=per_task",),
    "LoRA": (LORA, "method.sharing=single"),
}
BESIDE = (
    "plugins=[studies.synthetic_world.full_plus_adapter]",
    "method=[{name: adapter, rank: 32, activation: gelu_new, sharing: per_task, train_layer_norms: all}, "
    "{name: full_beside}]",
)
QUICKSTART, FULL = "configs/examples/quickstart.yaml", "configs/controls/full.yaml"
ONE_RATE = "training.backbone_lr=null"
AGAIN = "quickstart, again"
"""The first seed on the version of the rows beside it; also a point of the curves over steps and data."""
BOUNDS = {
    AGAIN: (QUICKSTART, 1, "frozen", "2e-3", ()),
    "quickstart, no routing": (QUICKSTART, 1, "frozen", "2e-3", ("routing.function=none",)),
    "full, twice the steps": (FULL, 2, "1e-4", "2e-3", ()),
    "full, faster": (FULL, 1, "5e-4", "2e-3", ("training.backbone_lr=5e-4",)),
    "full, one rate": (FULL, 1, "5e-4", "5e-4", ("training.lr=5e-4", ONE_RATE)),
    "full, one rate, twice the steps": (FULL, 2, "5e-4", "5e-4", ("training.lr=5e-4", ONE_RATE)),
    "full, one higher rate": (FULL, 1, "1e-3", "1e-3", ("training.lr=1e-3", ONE_RATE)),
    "quickstart and full": (QUICKSTART, 1, "1e-4", "2e-3", (*BESIDE, "training.backbone_lr=1e-4")),
    "quickstart and full, faster": (QUICKSTART, 1, "5e-4", "2e-3", (*BESIDE, "training.backbone_lr=5e-4")),
}
"""What training every weight takes, beside the rows of the main comparison: row -> configuration, how many times the
quickstart's steps, peak rate of what was pretrained and of what is new, overrides."""
LESS_WANTED = ("random_clip", "random_bart")
"""Rows of the main comparison that only take apart what another row shows."""
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
        group: which table it belongs to: main, bounds, routed, rates, steps, data, rank or methods.
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

    def settings(self) -> str:
        """What decides its outcome besides the code: configuration, seed, share of the data, overrides."""
        return shlex.join([self.config, f"seed={self.seed}", f"share=1/{self.share}", *self.overrides])

    def command(self, world: Path | str = "data/world", out: Path | str = "runs/embedded_world") -> str:
        """The same as a line for a shell in the project's folder."""
        return shlex.join(["python", *self.words(world, out)]).replace(f"={Path.cwd()}/", '="$PWD"/')


def all_runs(shorter: int = 1) -> list[StudyRun]:
    """Every run, the most wanted first.

    Args:
        shorter: divides every run's number of steps, for trying the study itself.
    """
    main = _main(STEPS // shorter)
    last = [run for run in main if run.row in LESS_WANTED]
    first = [run for run in main if run.row not in LESS_WANTED]
    more = (_bounds, _methods, _curves, _routed)
    return [*first, *(run for group in more for run in group(shorter)), *last, *_rates(shorter)]


def subset_overrides(folder: Path) -> tuple[str, ...]:
    """Train on the files that `studies.synthetic_world.subset` wrote to ``folder`` (made absolute)."""
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
        "quickstart": ("configs/examples/quickstart.yaml", SEEDS),
        "blind": ("configs/examples/quickstart_shuffled.yaml", SEEDS),
        "random_backbones": ("configs/controls/random_backbones.yaml", SEEDS[:1]),
        "full": ("configs/controls/full.yaml", SEEDS),
        "symbolic": ("configs/controls/symbolic.yaml", SEEDS[:1]),
        "random_clip": ("configs/controls/random_clip.yaml", SEEDS[:1]),
        "random_bart": ("configs/controls/random_bart.yaml", SEEDS[:1]),
    }
    length = f"training.steps={steps}"
    runs = [
        StudyRun(f"{row}-{seed}", "main", row, config, seed, (length,))
        for row, (config, seeds) in rows.items()
        for seed in seeds
    ]
    return runs


def _bounds(shorter: int) -> list[StudyRun]:
    return [
        StudyRun(
            name=f"{row.replace(', ', '_').replace(' ', '_')}-{SEEDS[0]}",
            group="bounds",
            row=row,
            config=config,
            seed=SEEDS[0],
            overrides=(f"training.steps={times * STEPS // shorter}", "evaluation.final=[report]", *overrides),
        )
        for row, (config, times, _, _, overrides) in BOUNDS.items()
    ]


def _routed(shorter: int) -> list[StudyRun]:
    runs = []
    for seed in SEEDS:
        first = seed == SEEDS[0]  # scores of the first seed, losses of every seed
        for function in ("mm1", "mm2", *(("none",) if first else ())):
            for sharing, overrides in SHARINGS.items():
                length = f"training.steps={ROUTED_STEPS // shorter}"
                final = f"evaluation.final=[{'tune' if first else ''}]"
                runs.append(
                    StudyRun(
                        name=f"{function}-{sharing.replace(' ', '_')}-{seed}",
                        group="routed",
                        row=f"{sharing}, {function}",
                        config="configs/examples/quickstart.yaml",
                        seed=seed,
                        overrides=(length, final, *overrides, f"routing.function={function}"),
                    )
                )
    return runs


def _rates(shorter: int) -> list[StudyRun]:
    length = (f"training.steps={HIGH_STEPS // shorter}", "evaluation.final=[tune]")
    return [
        StudyRun(
            name=f"{function}_{rate}-{SEEDS[0]}",
            group="rates",
            row=f"adapter per task, {function}, rate {rate}",
            config="configs/examples/quickstart.yaml",
            seed=SEEDS[0],
            overrides=(*length, f"routing.function={function}", f"training.lr={rate}"),
        )
        for function in ("none", "mm1", "mm2")
        for rate in HIGH_RATES
    ]


def _methods(shorter: int) -> list[StudyRun]:
    runs = []
    for row, section in METHODS.items():
        pool = ("routing.pool=none",) if row.endswith(UNPOOLED) else ()
        rate = ("training.lr=5e-4",) if row == "full" else ()
        runs.append(
            StudyRun(
                name=f"method_{row.replace(', ', '_').replace(' ', '_')}-{SEEDS[0]}",
                group="methods",
                row=row,
                config="configs/examples/quickstart.yaml",
                seed=SEEDS[0],
                overrides=(
                    f"training.steps={METHOD_STEPS // shorter}",
                    "evaluation.final=[report]",
                    f"method={section}",
                    "routing.function=none",
                    *pool,
                    *rate,
                ),
            )
        )
    return runs


def _curves(shorter: int) -> list[StudyRun]:
    def run(group: str, row: str, length: int, *more: str, name: str = "", share: int = 1, seed: int = SEEDS[0]):
        words = (*more, f"training.steps={length // shorter}", "evaluation.final=[report]")
        name = f"{group}_{name or row.replace('/', '_')}-{seed}"
        return StudyRun(name, group, row, "configs/examples/quickstart.yaml", seed, words, share)

    steps = [run("steps", str(steps // shorter), steps) for steps in CURVE_LENGTHS]
    data = [run("data", f"1/{share}", STEPS, share=share) for share in CURVE_SHARES]
    ranks = [
        run("rank", str(rank), RANK_STEPS, *BARE, RANK_ROUTING, f"method.rank={rank}", name=f"{rank}_mul", seed=seed)
        for rank in CURVE_RANKS
        for seed in RANK_SEEDS
    ]
    # a wide bottleneck in which captions lose their way: the width's doing, or that of their routing function, mm2?
    top = CURVE_RANKS[-1]
    wide = (RANK_STEPS, *BARE, f"method.rank={top}")
    ranks.append(run("rank", f"{top}, the quickstart's routing", *wide, name=str(top)))
    ranks.append(run("rank", f"{top}, no routing", *wide, "routing.function=none", name=f"{top}_no_routing"))
    return [one for turn in zip_longest(steps, ranks, data) for one in turn if one]  # a point of each in turn
