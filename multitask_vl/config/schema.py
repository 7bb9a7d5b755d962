"""Schema of the configuration: every key with its type, default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from multitask_vl.config.base_model import AdamBeta, PositiveFloat, PositiveInt, Section, UnitInterval
from multitask_vl.config.reproduces_schema import ReproducesConfig
from multitask_vl.config.vision_schema import FeaturesConfig, VisionConfig, VisualConfig
from multitask_vl.registry import METHODS, TASKS, Registry

DecodingMode = Literal["greedy", "beam", "classify", "rank"]


class BackboneConfig(Section):
    """The language model, which reads text and visual tokens and generates the answer."""

    family: str = "bart"
    """Backbone family: `bart`, `t5`, ... (`multitask-vl ls backbones`)."""
    pretrained: str | None = None
    """Hub name or local folder of the weights. Null: random weights with the sizes in `config`, seeded by `seed`."""
    config: dict[str, Any] = {}
    """Settings of the transformers configuration (d_model, encoder_layers, ...), used if `pretrained` is null."""
    tokenizer: str | None = None
    """Hub name or local folder of the tokenizer. Null: the tokenizer of `pretrained`."""
    extra_tokens: Annotated[int, Field(ge=0, multiple_of=2)] = 200
    """Tokens added to the vocabulary: one half `<extra_id_i>`, the other half `<vis_extra_id_i>`, whose embeddings mark
    the position of visual tokens."""
    dropout: UnitInterval = 0.1
    """Dropout probability of the backbone (hidden states, attention, activations)."""


class DecodingConfig(Section):
    """How predictions are decoded."""

    mode: DecodingMode = "greedy"
    """`greedy` and `beam` generate text. `classify` picks the choice whose first token has the highest logit after the
    forced start tokens. `rank` picks the choice with the highest log-likelihood of all its tokens."""
    num_beams: PositiveInt = 1
    """Number of beams, for mode `beam`."""
    max_length: Annotated[int, Field(ge=2)] = 20
    """Maximum length of the output in tokens, including the start token."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 3
    """N-grams of this size occur at most once (the configuration of bart-base has 3). 0: no restriction."""
    length_penalty: float = 1.0
    """Exponent of the length in beam scores, as in transformers."""
    early_stopping: bool = True
    """Stop when `num_beams` hypotheses are finished (the configuration of bart-base has true)."""
    choices_file: Path | None = None
    """File of candidate answers, for mode `rank`: a JSON list, or one answer per line."""
    length_normalize: bool = False
    """For mode `rank`: rank by the mean log-likelihood per token instead of the sum, so that long answers are not
    penalized."""
    choices: Annotated[tuple[str, ...], Field(validate_default=True)] = ()
    """Candidate answers, for the modes `classify` and `rank`; the first wins a tie."""

    @field_validator("choices")
    @classmethod
    def _choice_needs_choices(cls, choices: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("mode") == "classify" and not choices:
            raise ValueError('mode is classify, so the candidate answers must be listed, such as ["true", "false"]')
        if info.data.get("mode") == "rank" and bool(choices) == (info.data.get("choices_file") is not None):
            raise ValueError("mode is rank, so set either choices or choices_file, not both")
        return choices


class TaskConfig(Section):
    """Keys common to all tasks; each task adds its own."""

    type: str | None = None
    """Name of the registered task. Null: the key under `tasks:` is the name."""
    prompt: str = ""
    """Text before the input, including its trailing space."""
    max_input_tokens: PositiveInt | None = None
    """Maximum length of the input in tokens, including prompt and special tokens. Null: no limit."""
    max_target_tokens: PositiveInt | None = None
    """Maximum length of the target in tokens, including special tokens. Null: no limit."""
    overflow: Literal["error", "truncate"] = "error"
    """Handling of longer texts: `error`, or `truncate` as in the published recipes (the number of truncated texts is
    logged)."""
    batch_size_ratio: PositiveFloat = 1.0
    """Batch size of this task relative to `training.batch_size`: a batch has int(batch_size * batch_size_ratio)
    examples. The published ratios are 1 (VQA), 100/60 (GQA), 20/60 (NLVR2) and 50/60 (captions)."""
    splits: dict[str, Any] = {}
    """Split name (train, val, test, ...) -> its files; the keys depend on the task."""
    decoding: DecodingConfig = DecodingConfig()
    """How predictions are decoded. Keys that are not given keep the defaults of the task."""

    @model_validator(mode="before")
    @classmethod
    def _merge_decoding_defaults(cls, values: Any) -> Any:
        # otherwise `decoding: {max_length: 30}` would replace the beam search of a captioning task by greedy decoding
        if isinstance(values, dict) and isinstance(values.get("decoding"), dict):
            own = cls.model_fields["decoding"].default.model_dump()
            return {**values, "decoding": {**own, **values["decoding"]}}
        return values


class MethodConfig(Section):
    """Keys common to all methods; each method adds its own."""

    name: str
    """Name of the registered method."""


class RoutingConfig(Section):
    """Which function combines x_H and x_R inside the bottleneck, per task."""

    function: str | dict[str, str] = "none"
    """One routing function for all tasks, or task -> function. A task missing from the mapping is an error."""
    source: Literal["encoder", "visual"] = "encoder"
    """Where x_R comes from: `encoder`, the encoder's output (routes decoder sites); `visual`, the projected visual
    tokens (route encoder and decoder sites)."""
    pooling: Literal["mean", "none"] = "mean"
    """`mean`: x_R is one row, the average over `tokens`. `none`: every valid position is a row of x_R, which `mm1`, its
    variants and cross-attention accept."""
    tokens: Literal["all", "visual", "text"] = "all"
    """Positions of the encoder's output that `pooling: mean` averages, for source `encoder`."""
    control: Literal["none", "noise", "ones"] = "none"
    """Replace x_R with standard-normal noise or with ones (routing paper, Table B2): one row, or with `pooling: none`
    one row per visual token."""

    @field_validator("tokens")
    @classmethod
    def _tokens_are_averaged(cls, tokens: str, info: ValidationInfo) -> str:
        if tokens != "all" and info.data.get("pooling") == "none":
            raise ValueError("selects what pooling: mean averages, and routing.pooling is none; remove one of them")
        return tokens


class SamplingConfig(Section):
    """How tasks are sampled: which task each step trains."""

    strategy: Literal["proportional", "temperature", "uniform"] = "proportional"
    """Steps per task: `proportional` to its number of batches (published), to that number to the power 1/temperature,
    or equal for all tasks."""
    temperature: Annotated[float, Field(ge=1)] = 2.0
    """For strategy `temperature`: 1 is proportional; large values approach uniform."""


class KeepBestConfig(Section):
    """The best checkpoints by validation score, which are kept regardless of `max_checkpoints`."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["average"]
    """Names of tasks (by their primary metric), or `average`: the mean over all tasks with this split."""
    split: str = "val"
    """Split of the scores, one of `evaluation.eval_splits`."""


class TrainingConfig(Section):
    """Length of training, batch size, optimizer, precision, checkpoints."""

    epochs: PositiveFloat | None = 20
    """Passes over the task mixture. Set either `epochs` or `max_steps`."""
    max_steps: Annotated[PositiveInt | None, Field(validate_default=True)] = None
    """Total number of optimizer steps. If this is set and `epochs` is not, `epochs` is null."""
    batch_size: PositiveInt = 500
    """Global batch size over all processes, before the task's `batch_size_ratio`."""
    micro_batch_size: PositiveInt | None = None
    """Examples per forward pass and process; a batch is processed with gradient accumulation, examples of similar
    length together. Null: no accumulation."""
    group_by_length: bool = False
    """Batch examples of similar length (within a task) to reduce padding. Every example still occurs once per epoch, in
    the same order for any number of processes. Off in the published recipes."""
    on_oom: Literal["error", "halve"] = "error"
    """Handling of out-of-memory errors: `error` ends the run; `halve` halves the micro-batch of the task and repeats
    the step. The global batch and the order of examples do not change. With several processes, `halve` needs an
    all-reduce of one number per step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    backbone_lr: PositiveFloat | None = None
    """Peak learning rate of pretrained backbone weights, if the method trains any. Null: `lr`, as published. New
    modules (visual embedding, adapters) may need a learning rate that is too high for pretrained weights."""
    warmup_ratio: UnitInterval = 0.1
    """Fraction of the steps with linear warmup; the learning rate then decays linearly to 0."""
    optimizer: Literal["adamw", "adamw_hf_legacy"] = "adamw"
    """`adamw` is PyTorch's; `adamw_hf_legacy` (published) is that of transformers 4.2, which applies weight decay after
    the update."""
    betas: tuple[AdamBeta, AdamBeta] = (0.9, 0.999)
    """Betas of AdamW."""
    eps: PositiveFloat = 1e-6
    """Epsilon of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    weight_decay_on: Literal["all_but_biases", "matrices"] = "all_but_biases"
    """Parameters with weight decay: all but biases (published; includes the weights of layer norms), or only tensors of
    two or more dimensions."""
    max_grad_norm: PositiveFloat | None = 5.0
    """Maximum L2 norm of the gradient; larger gradients are clipped. Null: no clipping."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of training. Null: as set by `accelerate launch`."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass to save memory."""
    compile: bool = False
    """Compile the layers of the language model for training with torch.compile; for GPUs. Compilation takes minutes for
    each task and kind of shape. Cannot be combined with `gradient_checkpointing`."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Number of data-loading processes."""
    log_steps: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    checkpoint_steps: PositiveInt | None = 500
    """Steps between checkpoints. Null: only at the end."""
    max_checkpoints: PositiveInt = 2
    """Number of most recent checkpoints to keep."""
    keep_best: KeepBestConfig | None = None
    """Also keep the best checkpoints by the given metrics, as links `checkpoints/best-average` and so on, listed in
    `checkpoints/best.json`."""
    on_nonfinite: Literal["raise", "skip"] = "raise"
    """Handling of a loss or gradient that is NaN or infinite: `raise` ends the run; `skip` skips the step and logs
    it."""
    max_consecutive_skips: PositiveInt = 10
    """For `skip`: the run ends after this number of consecutive skipped steps."""
    resume: str | None = None
    """`auto`: resume from the latest valid checkpoint in run_dir, or start from scratch if there is none. Path of a
    checkpoint: resume from it; later checkpoints in run_dir are deleted. Null: run_dir must not contain a run."""

    @model_validator(mode="before")
    @classmethod
    def _max_steps_without_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("max_steps") is not None and "epochs" not in values:
            return {**values, "epochs": None}
        return values

    @field_validator("compile")
    @classmethod
    def _no_checkpointing(cls, compiled: bool, info: ValidationInfo) -> bool:
        if compiled and info.data.get("gradient_checkpointing"):
            raise ValueError("cannot be combined with training.gradient_checkpointing; set one of them to false")
        return compiled

    @field_validator("max_steps")
    @classmethod
    def _epochs_or_max_steps(cls, steps: int | None, info: ValidationInfo) -> int | None:
        # `epochs` is validated first; it is missing from the data if it is invalid
        if "epochs" in info.data and (steps is None) == (info.data["epochs"] is None):
            if steps is None:
                raise ValueError("neither epochs nor max_steps is set; set one of them")
            raise ValueError(f"epochs is {info.data['epochs']:g} as well; set one to null (training.epochs=null)")
        return steps


class EvaluationConfig(Section):
    """Evaluation: splits, frequency and batch size."""

    eval_splits: list[str] = ["val"]
    """Splits evaluated during training, every `eval_every_epochs`; tasks without such a split are skipped with a log
    message."""
    final_splits: list[str] = ["test"]
    """Splits evaluated after the last step."""
    eval_every_epochs: PositiveFloat | None = 1
    """Epochs between evaluations. Null: final evaluation only."""
    batch_size: PositiveInt = 64
    """Examples per batch over all processes."""
    max_examples: PositiveInt | None = None
    """Maximum number of examples per task for `eval_splits`; the first ones are used. `final_splits` are always
    complete."""
    cast_weights_bf16: bool = True
    """With bf16 training: cast all weights to bf16 once for prediction, instead of at every use (autocast)."""
    caption_tokenizer: Literal["ptb", "python"] = "ptb"
    """Tokenizer of caption metrics: `ptb` is the official one (needs Java); `python` gives nearly the same tokens on
    plain sentences."""


class TrackingConfig(Section):
    """Experiment trackers, in addition to metrics.jsonl, and progress output."""

    trackers: list[str] = ["tensorboard"]
    """Names of accelerate trackers (tensorboard, wandb, mlflow, ...); each needs its package."""
    project: str = "multitask_vl"
    """Project name in the trackers."""
    init_kwargs: dict[str, dict[str, Any]] = {}
    """Tracker -> keyword arguments of its initialization, such as `{wandb: {name: run7, mode: offline}}`."""
    print_steps: PositiveInt = 50
    """Steps between progress lines if the output is not a terminal; a terminal shows a progress bar."""


class Config(Section):
    """The configuration of a run."""

    plugins: list[str] = []
    """Python modules to import first; they register custom methods, tasks, routing functions and backbones."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of all randomness, together with the step number."""
    run_dir: Path = Path("runs/default")
    """Output folder of the run."""
    data_dir: Path = Path(".")
    """Base folder of relative paths under `tasks` and `features`."""
    cache_dir: Path | None = None
    """Folder of cached example tables. Null: `.cache` in `data_dir`."""
    backbone: BackboneConfig = BackboneConfig()
    visual: VisualConfig = VisualConfig()
    vision: VisionConfig = VisionConfig()
    features: FeaturesConfig = FeaturesConfig()
    tasks: dict[str, SerializeAsAny[TaskConfig]] = {}
    """Task -> its settings; reports list tasks in this order."""
    method: list[SerializeAsAny[MethodConfig]] = []
    """The parameter-efficient method (a mapping, or just its name), or a list of methods to combine."""
    routing: RoutingConfig = RoutingConfig()
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    reproduces: ReproducesConfig | None = None
    """The published row that this file reproduces. Files that compose this one do not inherit it."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _task_configs(cls, tasks: Any) -> Any:
        # the base class does not define the keys of a task; `load` has validated them, with the origin of each error
        if not isinstance(tasks, dict):
            return tasks
        types = {name: task.get("type") or name for name, task in tasks.items() if isinstance(task, dict)}
        return {name: _section(TASKS, types[name], task) if name in types else task for name, task in tasks.items()}

    @field_validator("method", mode="before")
    @classmethod
    def _method_configs(cls, methods: Any) -> Any:
        methods = [methods] if isinstance(methods, dict | MethodConfig) else methods
        if not isinstance(methods, list):
            return methods
        return [_section(METHODS, item.get("name"), item) if isinstance(item, dict) else item for item in methods]


def _section(registry: Registry, name: Any, values: dict) -> Any:
    return registry.get(name).Config.model_validate(values) if name in registry.names() else values
