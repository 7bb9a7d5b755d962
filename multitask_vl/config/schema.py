"""What may stand in a configuration file: every key, its type, its meaning and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from multitask_vl.config.base_model import Beta, Positive, Section, Share
from multitask_vl.config.vision_schema import ClipConfig, FeaturesConfig, VisualConfig
from multitask_vl.registry import METHODS, TASKS, Registry

DecodingKind = Literal["greedy", "beam", "choice", "rank"]


class BackboneConfig(Section):
    """The language model that reads text and grid cells and writes the answer."""

    family: str = "bart"
    """Which file of `multitask_vl.models` knows its layers."""
    pretrained: str | None = None
    """Hub name or local folder of the weights. None: random weights of the sizes in `config`, seeded by `seed`."""
    config: dict[str, Any] = {}
    """Sizes by their transformers names (d_model, encoder_layers, ...), used when `pretrained` is None."""
    tokenizer: str | None = None
    """Hub name or local folder of the tokenizer. None: the one of `pretrained`."""
    extra_tokens: Annotated[int, Field(ge=0, multiple_of=2)] = 200
    """Rows added to the vocabulary, half `<extra_id_i>`, half `<vis_extra_id_i>` (the grid cells' order embeddings)."""
    dropout: Share = 0.1
    """Rate of every dropout of the backbone (hidden, attention, activation)."""


class DecodingConfig(Section):
    """How a task turns decoder states into text."""

    kind: DecodingKind = "greedy"
    """`choice` compares the first-token logits of `choices` after the forced start tokens; no generation. `rank` takes
    the likeliest of `choices`, as a whole."""
    num_beams: Positive = 1
    """Beams, for kind `beam`."""
    max_length: Annotated[int, Field(ge=2)] = 20
    """Longest output in tokens, start token included."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 3
    """No n-gram of this size twice (3 is bart-base's own setting); 0 switches it off."""
    length_penalty: float = 1.0
    """Exponent of the length in beam scores."""
    early_stopping: bool = True
    """Beams end as soon as `num_beams` of them are finished (bart-base's own setting)."""
    choices_file: Path | None = None
    """Candidate answers in a file, for kind `rank`: a JSON list, or a line each."""
    rank_by: Literal["sum", "mean"] = "sum"
    """For kind `rank`: the likelihood of the whole answer, or its mean over tokens, so that long ones do not lose."""
    choices: Annotated[tuple[str, ...], Field(validate_default=True)] = ()
    """Candidate answers, for the kinds `choice` and `rank`; the first wins a tie."""

    @field_validator("choices")
    @classmethod
    def _choice_needs_choices(cls, choices: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("kind") == "choice" and not choices:
            raise ValueError("kind is choice, so the candidate answers must be listed, such as [true, false] in quotes")
        if info.data.get("kind") == "rank" and bool(choices) == (info.data.get("choices_file") is not None):
            raise ValueError(
                "kind is rank, so the candidate answers must be listed, or choices_file set; one of the two"
            )
        return choices


class TaskConfig(Section):
    """Keys that every task has. A task's file extends this with its own."""

    type: str | None = None
    """The registered task to use. None: the key under `tasks:` names it."""
    prompt: str = ""
    """Put before the text, trailing space included."""
    max_input_tokens: Positive | None = None
    """Longest input in tokens, prompt and specials included. None: no limit."""
    max_target_tokens: Positive | None = None
    """Longest target in tokens, specials included. None: no limit."""
    too_long: Literal["error", "truncate"] = "error"
    """What happens to a longer text. Published recipes truncate; the number cut is reported."""
    batch_share: Annotated[float, Field(gt=0)] = 1.0
    """This task's batch is int(training.batch_size * batch_share); the published shares are 1, 100/60, 20/60, 50/60."""
    splits: dict[str, Any] = {}
    """Split name (train, tune, report, ...) -> the files that hold it; the task's file says which keys."""
    decoding: DecodingConfig = DecodingConfig()
    """How predictions are made. Keys left out keep the task's own defaults."""

    @model_validator(mode="before")
    @classmethod
    def _decoding_over_own_default(cls, values: Any) -> Any:
        # Without this, `decoding: {max_length: 30}` would turn a captioning task's beam search into greedy decoding.
        if isinstance(values, dict) and isinstance(values.get("decoding"), dict):
            own = cls.model_fields["decoding"].default.model_dump()
            return {**values, "decoding": {**own, **values["decoding"]}}
        return values


class MethodConfig(Section):
    """Keys that every method has. A method's file extends this with its own."""

    name: str
    """The registered method."""


class RoutingConfig(Section):
    """Which function combines x_H and x_R inside the bottleneck, per task."""

    function: str | dict[str, str] = "none"
    """One routing function for all tasks, or task -> function. A task left out of the mapping is an error."""
    source: Literal["encoder_pooled", "visual_pooled"] = "encoder_pooled"
    """What x_R is: the encoder's output (decoder sites), or the projected grid cells (encoder and decoder sites)."""
    pool: Literal["all", "visual", "text", "none"] = "all"
    """Positions that are averaged, for `encoder_pooled`. `none`: every valid position is a routing row (mm1 and
    cross-attention alone are defined for several)."""
    control: Literal["none", "noise", "ones"] = "none"
    """Replace x_R by fresh standard-normal noise or by ones (routing paper, Table B2): one row of it, or with pool
    `none` a row for each grid cell."""


class MixingConfig(Section):
    """Which task a step trains."""

    strategy: Literal["proportional", "temperature", "uniform"] = "proportional"
    """Shares of the steps: by number of batches (published), by its power 1/temperature, or equal."""
    temperature: Annotated[float, Field(ge=1)] = 2.0
    """For `temperature`: 1 is proportional, large is uniform."""


class KeepBestConfig(Section):
    """Checkpoints that stay because nothing scored higher so far, however old they are."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["average"]
    """Names of tasks, by their headline scores, and `average`: of all tasks that the split scores."""
    split: str = "tune"
    """One of `evaluation.during`."""


class TrainingConfig(Section):
    """The loop: how long, how fast, how safe."""

    epochs: Annotated[float, Field(gt=0)] | None = 20
    """Passes over the mixture; exactly one of `epochs` and `steps` is set."""
    steps: Annotated[Positive | None, Field(validate_default=True)] = None
    """Optimiser steps in all. Where only this is set, `epochs` is None."""
    batch_size: Positive = 500
    """Global batch before the task's `batch_share`, over all processes."""
    micro_batch_size: Positive | None = None
    """Examples of one forward pass on one process; the rest is gradient accumulation. None: all at once. Rows of like
    length go together."""
    group_by_length: bool = False
    """Batches of rows of like length, within a task: less padding. Every row still comes once a pass, and the order is
    the same for any number of processes. Off in the published recipes."""
    on_oom: Literal["error", "halve"] = "error"
    """Out of memory: end with a message, or halve that task's micro-batch and take the step again. The global batch and
    the order of examples stay. Halving takes an all-reduce of one number a step where there are several processes."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    backbone_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the backbone's own weights, where the method trains some. None: `lr`, as published. What is new (the
    visual embedding, what a method adds) starts small and may need a rate that would harm what was pretrained."""
    warmup_ratio: Share = 0.1
    """Share of the steps with a rising rate; afterwards it falls linearly to 0."""
    optimizer: Literal["adamw", "adamw_decay_after"] = "adamw"
    """`adamw_decay_after` is the published one: transformers 4.2's AdamW, which decays after its update."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's betas."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Adam's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay."""
    decay: Literal["all_but_biases", "matrices"] = "all_but_biases"
    """What decays: everything but biases (published, norms' weights included), or only tensors of two or more axes."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Global L2 norm of the gradient is clipped here. None: no clipping."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """None leaves it to `accelerate launch`."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass (non-reentrant) to save memory."""
    compile: bool = False
    """Let torch.compile work on every layer of the language model while it trains; for GPUs. Each task and each kind of
    shape takes minutes once. Not together with `gradient_checkpointing`, whose context torch.compile cannot trace."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: Positive | None = 500
    """Steps between checkpoints. None: only at the end."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay."""
    keep_best: KeepBestConfig | None = None
    """Also keep the best ones by some scores: `checkpoints/best-average` and so on, told in `checkpoints/best.json`."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens where a loss or a gradient is not finite: the run stops, or the step is left out and told."""
    max_skips: Positive = 10
    """For `skip`: so many steps left out in a row end the run."""
    resume: str | None = None
    """`auto`: go on from the newest whole checkpoint of run_dir, or start where there is none. The path of one: go on
    from it; later ones in run_dir are removed. None: run_dir must not hold a run."""

    @model_validator(mode="before")
    @classmethod
    def _steps_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("steps") is not None and "epochs" not in values:
            return {**values, "epochs": None}
        return values

    @field_validator("compile")
    @classmethod
    def _traceable(cls, compiled: bool, info: ValidationInfo) -> bool:
        if compiled and info.data.get("gradient_checkpointing"):
            raise ValueError("not together with training.gradient_checkpointing; set one of them to false")
        return compiled

    @field_validator("steps")
    @classmethod
    def _one_length(cls, steps: int | None, info: ValidationInfo) -> int | None:
        # `epochs` comes first; it is not among the data where it is wrong itself.
        if "epochs" in info.data and (steps is None) == (info.data["epochs"] is None):
            if steps is None:
                raise ValueError("neither epochs nor steps is set; exactly one of them says how long training lasts")
            raise ValueError(f"epochs is {info.data['epochs']:g} as well; set one to null (training.epochs=null)")
        return steps


class EvaluationConfig(Section):
    """What is predicted and scored, and when."""

    during: list[str] = ["tune"]
    """Splits scored every `every_epochs`; a task without such a split is skipped and the log says so."""
    final: list[str] = ["report"]
    """Splits scored after the last step."""
    every_epochs: Annotated[float, Field(gt=0)] | None = 1
    """Epochs between evaluations. None: only the final one."""
    batch_size: Positive = 64
    """Examples a batch, over all processes."""
    limit: Positive | None = None
    """Score only the first so many examples of each split of `during`."""
    bf16_weights: bool = True
    """Where training runs in bf16: predict with all weights in bf16, rather than cast them at every use (autocast)."""
    caption_tokenizer: Literal["ptb", "python"] = "ptb"
    """`ptb` is the official Java tokenizer; `python` is close to it on plain sentences and needs no Java."""


class TrackingConfig(Section):
    """Where curves go beside metrics.jsonl."""

    trackers: list[str] = ["tensorboard"]
    """Accelerate trackers by name (tensorboard, wandb, mlflow, ...); each needs its own package."""
    project: str = "multitask_vl"
    """What trackers file the run under."""
    init: dict[str, dict[str, Any]] = {}
    """Tracker -> keyword arguments of its start, such as `{wandb: {name: run7, mode: offline}}`."""
    line_every: Positive = 50
    """Steps between progress lines where the output is a file; a terminal has a bar instead."""


class Config(Section):
    """One run: everything that decides what it does."""

    plugins: list[str] = []
    """Modules imported first, so that their decorators can register methods, tasks and routing functions."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Decides, together with the step, every random draw."""
    run_dir: Path = Path("runs/default")
    """Where the run writes."""
    data_dir: Path = Path(".")
    """Relative paths under `tasks` and `features` start here."""
    cache_dir: Path | None = None
    """Compiled examples. None: `.cache` inside `data_dir`."""
    backbone: BackboneConfig = BackboneConfig()
    visual: VisualConfig = VisualConfig()
    clip: ClipConfig = ClipConfig()
    features: FeaturesConfig = FeaturesConfig()
    tasks: dict[str, SerializeAsAny[TaskConfig]] = {}
    """Task -> its settings, in the order of reports."""
    method: list[SerializeAsAny[MethodConfig]] = []
    """The parameter-efficient method (a mapping, or its name alone), or several that combine (a list of those)."""
    routing: RoutingConfig = RoutingConfig()
    mixing: MixingConfig = MixingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_of_their_class(cls, tasks: Any) -> Any:
        # The base class does not know a task's own keys. `load` has done this already, with a place for every error.
        if not isinstance(tasks, dict):
            return tasks
        types = {name: task.get("type") or name for name, task in tasks.items() if isinstance(task, dict)}
        return {name: _section_of(TASKS, types[name], task) if name in types else task for name, task in tasks.items()}

    @field_validator("method", mode="before")
    @classmethod
    def _methods_of_their_class(cls, methods: Any) -> Any:
        methods = [methods] if isinstance(methods, dict | MethodConfig) else methods
        if not isinstance(methods, list):
            return methods
        return [_section_of(METHODS, one.get("name"), one) if isinstance(one, dict) else one for one in methods]


def _section_of(registry: Registry, name: Any, values: dict) -> Any:
    return registry.get(name).Config.model_validate(values) if name in registry.names() else values
