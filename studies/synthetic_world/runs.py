"""Runs of the study: names, configurations, overrides and seeds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SEEDS = (42, 43, 44)
STEPS = 600
"""Training steps of the main comparison, as in configs/examples/quickstart.yaml."""
CURVE_LENGTHS = (150, 400, 1200)
"""Training steps of the curve over steps; the first run of the main comparison is one more point."""
TRAIN_DIVISORS = (64, 16, 4)
"""The curve over data trains on 1/64, 1/16 and 1/4 of the training split for the quickstart's number of steps: from 51
epochs of the questions of the smallest part to less than one epoch of all. With fewer steps, the number of steps limits
the scores, not the data."""
CURVE_RANKS = (1, 4, 16, 64)
RANK_STEPS = 400
"""Long enough to show differences, and short enough to stay below the maximum scores."""
RANK_SEEDS = SEEDS[:2]
"""The differences along the curve over ranks are too small for one seed."""
NO_NORMS = ("method.sharing=single", "method.train_layer_norms=none")
"""Settings of the curve over ranks: one adapter for all four tasks and no trained layer norms, so that the rank limits
the trainable capacity. With trained norms and an adapter per task, rank 4 already equals rank 64."""
RANK_ROUTING = "routing.function=mul"
"""One function for every task and rank, the most stable one: the quickstart uses mm2 on captions, whose loss jumps at
rank 64."""
ROUTED_STEPS = 200
"""Shorter than the quickstart: these runs measure stability, not the best score."""
HIGH_RATES = ("5e-3", "1e-2")
"""Learning rates above the quickstart's 2e-3, to find where mm1 and mm2 diverge."""
HIGH_RATE_STEPS = 100
LORA = "method={name: lora, rank: 32, alpha: 32, dropout: 0.0, targets: [query, value], biases: all}"
METHOD_STEPS = 200
METHODS = {
    "frozen": "{name: frozen}",
    "bitfit": "{name: bitfit}",
    "prompt, single": "{name: prompt, num_tokens: 40, hidden_dim: 128}",
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
    "modex, share up": "{name: modex, rank: 32, shared_projection: up}",
    "full": "{name: full}",
}
"""Every method at the width of the tiny backbone, without routing: row -> its `method` section. Ranks are the
quickstart's; sharing between tasks is compared for adapters only."""
UNPOOLED = ("cross-attention",)
"""Rows whose method attends to all encoder positions itself and needs `routing.pooling=none`."""
SHARINGS = {
    "single adapter": ("method.sharing=single",),
    "adapter per task": ("method.sharing=per_task",),
    "LoRA": (LORA, "method.sharing=single"),
}
WITH_ADAPTER = (
    "plugins=[studies.synthetic_world.full_plus_adapter]",
    "method=[{name: adapter, rank: 32, activation: gelu_new, sharing: per_task, train_layer_norms: all}, "
    "{name: full_plus_adapter}]",
)
QUICKSTART, FULL = "configs/examples/quickstart.yaml", "configs/controls/full.yaml"
SINGLE_RATE = "training.backbone_lr=null"
REPEAT = "quickstart, repeated"
"""The first seed on the machine and commit of the other rows of its table; also a point of the curves over steps and
data."""
BOUNDS = {
    REPEAT: (QUICKSTART, 1, "frozen", "2e-3", ()),
    "quickstart, no routing": (QUICKSTART, 1, "frozen", "2e-3", ("routing.function=none",)),
    "full, twice the steps": (FULL, 2, "1e-4", "2e-3", ()),
    "full, higher backbone rate": (FULL, 1, "5e-4", "2e-3", ("training.backbone_lr=5e-4",)),
    "full, single rate": (FULL, 1, "5e-4", "5e-4", ("training.lr=5e-4", SINGLE_RATE)),
    "full, single rate, twice the steps": (FULL, 2, "5e-4", "5e-4", ("training.lr=5e-4", SINGLE_RATE)),
    "full, single higher rate": (FULL, 1, "1e-3", "1e-3", ("training.lr=1e-3", SINGLE_RATE)),
    "quickstart and full": (QUICKSTART, 1, "1e-4", "2e-3", (*WITH_ADAPTER, "training.backbone_lr=1e-4")),
    "quickstart and full, higher backbone rate": (
        QUICKSTART, 1, "5e-4", "2e-3", (*WITH_ADAPTER, "training.backbone_lr=5e-4"),
    ),
}  # fmt: skip
"""Full fine-tuning, in addition to the rows of the main comparison: row -> configuration, multiple of the quickstart's
steps, peak learning rate of pretrained and of new parameters, overrides."""
ABLATIONS = ("random_clip", "random_bart")
"""Rows of the main comparison that separate two effects of another row; they run last."""
COMMON = (
    "evaluation.eval_splits=[]",  # saves time and does not change the final scores
    "evaluation.eval_every_epochs=null",
    "tracking.trackers=[]",
    "training.log_steps=1",
    "training.resume=auto",
)


@dataclass(frozen=True)
class StudyRun:
    """One run of the study.

    Attributes:
        name: name of its folder, unique.
        group: the table it belongs to: main, bounds, routed, rates, steps, data, rank or methods.
        row: the row of the table; runs of one row differ in the seed only.
        config: its YAML file.
        overrides: further command-line arguments.
        train_divisor: the run trains on 1/train_divisor of the training split.
    """

    name: str
    group: str
    row: str
    config: str
    seed: int
    overrides: tuple[str, ...] = ()
    train_divisor: int = 1

    def cli_args(self, world: Path | str, out: Path | str) -> list[str]:
        """The command line after ``python``, for the given folders of the world and of the study."""
        subset = ()
        if self.train_divisor > 1:
            subset = subset_overrides(Path(out) / "subsets" / f"1_of_{self.train_divisor}")
        folders = (f"data_dir={world}", f"run_dir={out}/runs/{self.name}", f"seed={self.seed}")
        script = ["launch/train_multitask.py", "--config", self.config]
        return [*script, *folders, *COMMON, *subset, *self.overrides]

    def settings(self) -> str:
        """Everything but the code that determines the result: configuration, seed, data fraction, overrides."""
        fraction = f"train_fraction=1/{self.train_divisor}"
        return shlex.join([self.config, f"seed={self.seed}", fraction, *self.overrides])

    def command(self, world: Path | str = "data/world", out: Path | str = "runs/synthetic_world") -> str:
        """The shell command that starts the run from the project folder."""
        return shlex.join(["python", *self.cli_args(world, out)]).replace(f"={Path.cwd()}/", '="$PWD"/')


def all_runs(steps_divisor: int = 1) -> list[StudyRun]:
    """Every run of the study, the most important ones first.

    Args:
        steps_divisor: divides the number of steps of every run, to test the study itself.
    """
    main = _main(STEPS // steps_divisor)
    last = [run for run in main if run.row in ABLATIONS]
    first = [run for run in main if run.row not in ABLATIONS]
    groups = (_bounds, _methods, _curves, _routed)
    return [*first, *(run for group in groups for run in group(steps_divisor)), *last, *_rates(steps_divisor)]


def subset_overrides(folder: Path) -> tuple[str, ...]:
    """Overrides that train on the files `studies.synthetic_world.subset` wrote to ``folder`` (made absolute)."""
    folder = folder.absolute()
    return (
        f"tasks.vqa.splits.train.questions={folder}/vqa_questions.json",
        f"tasks.vqa.splits.train.annotations={folder}/vqa_annotations.json",
        f"tasks.gqa.splits.train.questions={folder}/gqa_questions.json",
        f"tasks.nlvr2.splits.train.items={folder}/nlvr2.json",
        f"tasks.coco_caption.splits.train.captions={folder}/dataset_coco.json",
    )


def _name(row: str) -> str:
    return row.replace(", ", "_").replace(" ", "_")


def _main(steps: int) -> list[StudyRun]:
    rows = {
        "quickstart": (QUICKSTART, SEEDS),
        "shuffled_images": ("configs/examples/quickstart_shuffled.yaml", SEEDS),
        "random_backbones": ("configs/controls/random_backbones.yaml", SEEDS[:1]),
        "full": (FULL, SEEDS),
        "symbolic": ("configs/controls/symbolic.yaml", SEEDS[:1]),
        "random_clip": ("configs/controls/random_clip.yaml", SEEDS[:1]),
        "random_bart": ("configs/controls/random_bart.yaml", SEEDS[:1]),
    }
    length = f"training.max_steps={steps}"
    return [
        StudyRun(f"{row}-{seed}", "main", row, config, seed, (length,))
        for row, (config, seeds) in rows.items()
        for seed in seeds
    ]


def _bounds(steps_divisor: int) -> list[StudyRun]:
    final = "evaluation.final_splits=[test]"
    return [
        StudyRun(
            name=f"{_name(row)}-{SEEDS[0]}",
            group="bounds",
            row=row,
            config=config,
            seed=SEEDS[0],
            overrides=(f"training.max_steps={times * STEPS // steps_divisor}", final, *overrides),
        )
        for row, (config, times, _, _, overrides) in BOUNDS.items()
    ]


def _routed(steps_divisor: int) -> list[StudyRun]:
    runs = []
    for seed in SEEDS:
        first = seed == SEEDS[0]  # scores of the first seed, losses of every seed
        for function in ("mm1", "mm2", *(("none",) if first else ())):
            for sharing, overrides in SHARINGS.items():
                length = f"training.max_steps={ROUTED_STEPS // steps_divisor}"
                final = f"evaluation.final_splits=[{'val' if first else ''}]"
                runs.append(
                    StudyRun(
                        name=f"{function}-{_name(sharing)}-{seed}",
                        group="routed",
                        row=f"{sharing}, {function}",
                        config=QUICKSTART,
                        seed=seed,
                        overrides=(length, final, *overrides, f"routing.function={function}"),
                    )
                )
    return runs


def _rates(steps_divisor: int) -> list[StudyRun]:
    length = (f"training.max_steps={HIGH_RATE_STEPS // steps_divisor}", "evaluation.final_splits=[val]")
    return [
        StudyRun(
            name=f"{function}_{rate}-{SEEDS[0]}",
            group="rates",
            row=f"adapter per task, {function}, rate {rate}",
            config=QUICKSTART,
            seed=SEEDS[0],
            overrides=(*length, f"routing.function={function}", f"training.lr={rate}"),
        )
        for function in ("none", "mm1", "mm2")
        for rate in HIGH_RATES
    ]


def _methods(steps_divisor: int) -> list[StudyRun]:
    runs = []
    for row, section in METHODS.items():
        pooling = ("routing.pooling=none",) if row.endswith(UNPOOLED) else ()
        rate = ("training.lr=5e-4",) if row == "full" else ()
        runs.append(
            StudyRun(
                name=f"method_{_name(row)}-{SEEDS[0]}",
                group="methods",
                row=row,
                config=QUICKSTART,
                seed=SEEDS[0],
                overrides=(
                    f"training.max_steps={METHOD_STEPS // steps_divisor}",
                    "evaluation.final_splits=[test]",
                    f"method={section}",
                    "routing.function=none",
                    *pooling,
                    *rate,
                ),
            )
        )
    return runs


def _curves(steps_divisor: int) -> list[StudyRun]:
    def run(group: str, row: str, length: int, *more: str, name: str = "", divisor: int = 1, seed: int = SEEDS[0]):
        overrides = (*more, f"training.max_steps={length // steps_divisor}", "evaluation.final_splits=[test]")
        name = f"{group}_{name or row.replace('/', '_')}-{seed}"
        return StudyRun(name, group, row, QUICKSTART, seed, overrides, divisor)

    steps = [run("steps", str(steps // steps_divisor), steps) for steps in CURVE_LENGTHS]
    data = [run("data", f"1/{divisor}", STEPS, divisor=divisor) for divisor in TRAIN_DIVISORS]
    one_adapter = (RANK_STEPS, *NO_NORMS)
    ranks = [
        run("rank", str(rank), *one_adapter, RANK_ROUTING, f"method.rank={rank}", name=f"{rank}_mul", seed=seed)
        for rank in CURVE_RANKS
        for seed in RANK_SEEDS
    ]
    # captions fail with a wide bottleneck under the quickstart's routing: these runs separate rank and function (mm2)
    top = CURVE_RANKS[-1]
    wide = (*one_adapter, f"method.rank={top}")
    ranks.append(run("rank", f"{top}, the quickstart's routing", *wide, name=str(top)))
    ranks.append(run("rank", f"{top}, no routing", *wide, "routing.function=none", name=f"{top}_no_routing"))
    return [one for turn in zip_longest(steps, ranks, data) for one in turn if one]
