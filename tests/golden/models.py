"""Comparison of models: outputs, losses, gradients, generated ids, and 10 training steps."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from multitask_vl.config.schema import BackboneConfig, Config, DecodingConfig, TaskConfig, TrainingConfig, VisualConfig
from multitask_vl.data.batch import Batch
from multitask_vl.models.build import build_model
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.registry import BACKBONES, TASKS
from multitask_vl.training.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from tests.golden.fixture import Fixture, Report, UnsupportedFile, read
from tests.golden.names import load_weights, methods_of, ours, part, tasks_of, used

OUR_TASK = {"vqa": "vqa", "gqa": "gqa", "nlvr": "nlvr2", "caption": "coco_caption"}
"""Task names in the source -> ours."""
DEPTH = {"bart": "encoder_layers", "t5": "num_layers"}
"""Family -> configuration key of its encoder's depth."""
LOSS_OF = {"loss_vqa_weighted": "vqa", "loss_sample_mean": "gqa", "loss_mean_over_tokens": "coco_caption"}
FINAL_ATOL = 1e-4
"""Tolerance of weights after 10 steps."""
MUST_BE = {
    "use_vis_layer_norm": True,
    "individual_vis_layer_norm": True,
    "share_vis_lang_layer_norm": False,
    "pos_dim": 4,
}


def run_model(fixture: Fixture) -> Report:
    """Compare one forward and backward pass per task, and generation."""
    report, fixture = Report(), used(fixture)
    model = build(fixture, fixture.meta["config"])
    inputs = fixture.under("input")
    check_trainable(report, model, fixture)
    _compare_positions(report, model, fixture.under("extra"))
    outputs = fixture.under("output")
    report.ignored += [f"output/{name}" for name in outputs if "/" not in name]
    for task in dict.fromkeys(name.split("/")[0] for name in outputs if "/" in name):
        batch = make_batch(model, task, inputs)
        recorded = {name.split("/", 1)[1]: value for name, value in outputs.items() if name.startswith(f"{task}/")}
        _compare_outputs(report, model, batch, recorded, task)
        _compare_gradients(report, model, batch, fixture, task)
    for key, ids in fixture.under("generate").items():
        task, _, mode = key.partition("/")
        decoding = _decoding(mode, fixture.meta.get("generation", ""))
        if decoding is None:
            report.ignored.append(f"generate/{key}")
            continue
        batch = make_batch(model, task, inputs)
        generated = model.generate(batch, decoding)
        eos = model.lm.config.eos_token_id
        undecided = _undecided(fixture.meta.get("beam_rows_depending_on_length_rule") or {}, key)
        report.same(f"generate/{key}", _up_to_end(generated, eos, undecided), _up_to_end(ids, eos, undecided))
    return report


def run_training(fixture: Fixture) -> Report:
    """Compare the recorded optimization steps with our optimizer, schedule and clipping."""
    report = Report()
    meta = fixture.meta
    model = build(fixture, _sizes(fixture))
    check_trainable(report, model, fixture)
    total = _number(r"of (\d+) steps", meta["schedule"], 20)
    settings = TrainingConfig(
        lr=meta["lr"],
        max_steps=int(total),
        epochs=None,
        optimizer="adamw_hf_legacy",
        weight_decay_on="all_but_biases",
        eps=_number(r"eps ([\d.e-]+\d)", meta["optimizer"], 1e-6),
        weight_decay=_number(r"weight decay ([\d.]+\d)", meta["optimizer"], 0.01),
        warmup_ratio=_number(r"over (\d+)%", meta["schedule"], 10) / 100,
        max_grad_norm=meta["clip_grad_norm"],
    )
    parameters = model.trainable_parameters()
    optimizer = build_optimizer(parameters, settings)
    no_decay = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names_without_decay = {name for name, parameter in parameters.items() if id(parameter) in no_decay}
    report.same(
        "tensors without decay", names_without_decay, {ours(model, name) for name in meta["no_decay_trainable"]}
    )
    losses, norms, rates = [], [], []
    for step, (task, number) in enumerate(zip(meta["task_of_step"], meta["batch_of_step"], strict=True)):
        batch = make_batch(model, task, fixture.under(f"input/{number}"))
        rates.append(learning_rate(step, settings.max_steps, settings.lr, settings.warmup_ratio))
        set_learning_rate(optimizer, rates[-1])
        loss = reduced(OUR_TASK[task], model(batch), batch.labels != -100, batch.weights)
        loss.backward()
        losses.append(loss.detach())
        norms.append(clip_gradients(parameters.values(), settings.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    outputs = fixture.under("output")
    report.close("losses", torch.stack(losses), outputs["losses"])
    report.close("gradient norms", torch.tensor(norms), outputs["grad_norms_before_clip"])
    if "lr_used" in outputs:
        report.close("learning rates", torch.tensor(rates), outputs["lr_used"])
    known = {"losses", "grad_norms_before_clip", "lr_used"}
    report.ignored += [f"output/{name}" for name in outputs if name not in known]
    for name, value in fixture.under("final").items():
        report.close(f"final/{name}", part(model, name, parameters[ours(model, name)], value), value, FINAL_ATOL)
    return report


def run_losses(fixture: Fixture) -> Report:
    """Compare the tasks' losses on given logits."""
    report = Report()
    inputs, outputs, gradients = fixture.under("input"), fixture.under("output"), fixture.under("grad")
    valid = inputs["labels"] != -100
    known = [name for name in OUR_TASK if f"{name}/loss" in outputs and f"{name}/logits" in gradients]
    report.ignored += [f"output/{key}" for key in outputs if key not in {f"{name}/loss" for name in known}]
    for name in known:
        logits = inputs["logits"].clone().requires_grad_()
        losses = torch.nn.functional.cross_entropy(logits[valid], inputs["labels"][valid], reduction="none")
        token_loss = torch.zeros(valid.shape).masked_scatter(valid, losses)
        loss = reduced(OUR_TASK[name], token_loss, valid, inputs["scores"])
        report.close(f"{name}/loss", loss, outputs[f"{name}/loss"])
        loss.backward()
        report.close(f"grad/{name}/logits", logits.grad, gradients[f"{name}/logits"])
    return report


def build(fixture: Fixture, config: dict[str, Any]) -> VLSeq2Seq:
    """Our model with the file's sizes, method and weights, in eval mode."""
    family = config.get("model_type", "bart")
    if DEPTH.get(family) not in config:
        raise UnsupportedFile(f"backbone {config.get('model_type', 'other than BART')} is not part of this version")
    wrong = [f"{key}={config[key]}" for key, value in MUST_BE.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedFile(f"the visual embedding has {', '.join(wrong)}")
    known = BACKBONES.get(family).config_class().to_dict()
    sizes = {key: value for key, value in config.items() if key in known}
    extra = config["vocab_size"] - 1 - max(config.get(f"{kind}_token_id") or 0 for kind in ("pad", "bos", "eos"))
    extra -= extra % 2
    side = math.isqrt(config.get("n_boxes", 36))
    our_config = Config(
        backbone=BackboneConfig(
            family=family, config=sizes | {"vocab_size": config["vocab_size"] - extra}, extra_tokens=extra
        ),
        visual=VisualConfig(
            feature_dim=config["feat_dim"],
            pool=(side, side) if config.get("downsample", True) else None,
            max_images=config.get("n_images", 2),
            order_embedding=config.get("use_vis_order_embedding", True),
        ),
        tasks={task: TaskConfig() for task in tasks_of(fixture)},
        method=methods_of(fixture),
    )
    model = build_model(our_config).eval()
    start = model.lm.config.decoder_start_token_id
    if config.get("decoder_start_token_id", start) != start:
        raise UnsupportedFile(f"decoding starts with {config['decoder_start_token_id']}, not with {start}")
    load_weights(model, fixture)
    return model


def make_batch(model: VLSeq2Seq, task: str, inputs: dict[str, torch.Tensor]) -> Batch:
    """A batch of the recorded inputs. Boxes and order ids, which a `Batch` lacks, go to the visual embedding."""
    features = inputs["vis_feats"]
    image, cell = inputs.get("img_order_ids"), inputs.get("obj_order_ids")
    images = 1 if image is None else int(image.max()) + 1
    if features.ndim == 3:
        features = features.unflatten(1, (images, -1))
    per_image = math.prod(model.visual.config.pool) if model.visual.config.pool else features.shape[2]

    def first_cells(rows: torch.Tensor | None, *last: int) -> torch.Tensor | None:
        """Values of the cells after pooling: as in the source, the first ``per_image`` of each image."""
        return None if rows is None else rows.reshape(len(rows), images, -1, *last)[:, :, :per_image].flatten(1, 2)

    model.visual.forward = partial(
        VisualEmbedding.forward,
        model.visual,
        boxes=first_cells(inputs.get("boxes"), 4),
        image_order=first_cells(image),
        cell_order=first_cells(cell),
    )
    ids = inputs["input_ids"]
    return Batch(
        task=task,
        ids=[str(i) for i in range(len(ids))],
        input_ids=ids,
        attention_mask=(ids != model.lm.config.pad_token_id).long(),
        features=features,
        labels=inputs.get("labels"),
        weights=inputs.get("scores"),
    )


def reduced(task: str, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The task's loss for given token losses."""
    task_class = TASKS.get(task)
    numerator, denominator = task_class.reduce(object.__new__(task_class), token_loss, valid, weights)
    return numerator / denominator


def check_trainable(report: Report, model: VLSeq2Seq, fixture: Fixture) -> None:
    """Compare the sets of trainable parameters."""
    report.same(
        "trainable", set(model.trainable_parameters()), {ours(model, name) for name in fixture.meta["trainable"]}
    )


@torch.no_grad()
def _compare_positions(report: Report, model: VLSeq2Seq, recorded: dict[str, torch.Tensor]) -> None:
    """Compare relative positions: buckets of distances around zero, and biases of the first positions."""
    for name, value in recorded.items():
        kind, _, which = name.removeprefix("relative_").partition("_")
        stack = {"bidirectional": "encoder", "causal": "decoder"}.get(which, which)
        if not name.startswith("relative_") or kind not in ("buckets", "bias") or stack not in ("encoder", "decoder"):
            report.ignored.append(f"extra/{name}")
            continue
        attention = model.lm.get_submodule(f"{stack}.block.0.layer.0.SelfAttention")
        if kind == "bias":
            report.close(f"extra/{name}", attention.compute_bias(*value.shape[-2:])[0], value)
            continue
        config, far = model.lm.config, len(value) // 2
        buckets = attention._relative_position_bucket(
            torch.arange(-far, far + 1),
            bidirectional=stack == "encoder",
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        report.same(f"extra/{name}", buckets.tolist(), value.tolist())


@torch.no_grad()
def _compare_outputs(report: Report, model: VLSeq2Seq, batch: Batch, recorded: dict, task: str) -> None:
    with model.context.task_scope(task):
        encoded = model.encode(batch)
        hidden = model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(batch.labels))
    valid = batch.labels != -100
    token_loss = model(batch)
    computed = {
        "encoder_last_hidden_state": encoded.hidden_states,
        "decoder_last_hidden_state": hidden,
        "logits": model.logits(hidden),
        "loss_per_token": token_loss,
        "loss_per_sample": token_loss.sum(1) / valid.sum(1).clamp(min=1),
    }
    computed |= {name: reduced(kind, token_loss, valid, batch.weights) for name, kind in LOSS_OF.items()}
    for name, value in recorded.items():
        if name in computed:
            report.close(f"{task}/{name}", computed[name], value)
        else:
            report.ignored.append(f"output/{task}/{name}")


def _compare_gradients(report: Report, model: VLSeq2Seq, batch: Batch, fixture: Fixture, task: str) -> None:
    norms = fixture.tensors.get(f"grad_norm/{task}")
    gradients = fixture.under(f"grad/{task}")
    if norms is None and not gradients:
        return
    model.zero_grad(set_to_none=True)
    reduced("vqa", model(batch), batch.labels != -100, batch.weights).backward()
    parameters = dict(model.named_parameters())

    def gradient_of(name: str) -> torch.Tensor | None:
        gradient = parameters[ours(model, name)].grad
        stored = fixture.weights[fixture.aliases.get(name, name)]
        return None if gradient is None else part(model, name, gradient, stored)

    for name, value in gradients.items():
        gradient = gradient_of(name)
        report.close(f"grad/{task}/{name}", torch.zeros_like(value) if gradient is None else gradient, value)
    if norms is None:
        return
    for name, value in zip(fixture.meta["trainable"], norms, strict=True):
        gradient = gradient_of(name)
        report.same(f"a gradient reaches {name} ({task})", gradient is not None, bool(value != -1))
        if gradient is not None:
            report.close(f"grad_norm/{task}/{name}", gradient.norm(), value)


def _decoding(mode: str, settings: str) -> DecodingConfig | None:
    """Settings of a recorded generation; None for an unknown mode."""
    length = int(_number(r"max_length (\d+)", settings, 20))
    if mode == "greedy":
        return DecodingConfig(mode="greedy", max_length=length, no_repeat_ngram_size=0)
    if found := re.fullmatch(r"beam(\d+)(_plain)?", mode):
        ngram = 0 if found[2] else int(_number(r"no_repeat_ngram_size (\d+)", settings, 3))
        return DecodingConfig(
            mode="beam",
            num_beams=int(found[1]),
            max_length=length,
            no_repeat_ngram_size=ngram,
            length_penalty=1.0,
            early_stopping=not found[2],
        )
    return None


def _up_to_end(ids: torch.Tensor, eos: int, undecided: set[int]) -> dict[int, list[int]]:
    """Rows up to the first end token after the start; the padding behind it depends on transformers' version."""
    rows = {}
    for i, row in enumerate(ids.tolist()):
        end = row.index(eos, 1) + 1 if eos in row[1:] else len(row)
        if i not in undecided:
            rows[i] = row[:end]
    return rows


def _undecided(listed: dict[str, Any], key: str) -> set[int]:
    """Rows whose best beam depends on how lengths are counted, listed by full names, their endings, or a tree."""
    rows: set[int] = set()
    for name, value in listed.items():
        if isinstance(value, dict):
            rows |= _undecided({f"{name}/{key_}": rows_ for key_, rows_ in value.items()}, key)
        elif f"/generate/{key}".endswith(f"/{name}"):
            rows |= set(value)
    return rows


def _sizes(fixture: Fixture) -> dict[str, Any]:
    """Sizes of a training file, which refers to the plain file for them."""
    config = fixture.meta.get("config", {})
    if "d_model" in config:
        return config
    candidates = [folder / "plain.safetensors" for folder in (fixture.path.parent, Path(__file__).parent)]
    return read(next(path for path in candidates if path.exists())).meta["config"]


def _number(pattern: str, text: str, default: float) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else default
