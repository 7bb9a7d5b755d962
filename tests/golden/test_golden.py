"""Recorded numbers reproduce, and the runner rejects what it cannot compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.golden.__main__ import main, run
from tests.golden.fixture import Report, UnsupportedFile, read
from tests.golden.models import run_model
from tests.golden.names import methods_of
from tests.golden.sources import hyperformer, prompt

GOLDEN = Path(__file__).parent
VARIANTS = GOLDEN / "variants"
"""Further kinds of files, in small sizes, recorded with an independent implementation of the published formulas."""
RECORDED = sorted(GOLDEN.rglob("*.safetensors"))


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_golden_numbers_reproduce(path):
    report = run(path)
    assert report.failures == []
    assert report.ignored == []
    assert report.compared > 0
    assert report.worst < (5e-5 if path.parent == VARIANTS else 2e-4)


@pytest.mark.parametrize("name", ["lora_per_task", "hyperformer_norms", "t5_prompt_per_task_two_images"])
def test_golden_per_task_tensors_lack_other_gradients(name):
    norms = read(VARIANTS / f"{name}.safetensors").under("grad_norm")
    assert all(bool((norm == -1).any()) for norm in norms.values())


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("plain", "full", {}),
        ("single_adapter", "adapter", {"sharing": "single"}),
        ("single_compacter", "compacter", {}),
        ("single_lora", "lora", {"sharing": "single"}),
        ("t5_plain", "full", {}),
        ("t5_single_adapter", "adapter", {}),
        ("t5_vlpet_large", "vl_pet", {"granularity": "large", "gate_scale": 0.3, "num_heads": 4}),
        ("train_single_adapter", "adapter", {}),
        ("vlpet_large", "vl_pet", {"granularity": "large", "gate_scale": 1.0}),
        ("variants/adapter_shared_up_pre_post", "adapter", {"sharing": "shared_up", "pre_norm": True}),
        (
            "variants/compacter_rule_over_tasks_shared_up",
            "compacter",
            {"sharing": "shared_up", "phm_rule": "shared_over_tasks"},
        ),
        (
            "variants/compacter_shared_rule_factorized_per_task",
            "compacter",
            {"sharing": "per_task", "phm_rule": "shared", "factorized_phm": True, "factor_rank": 1, "phm_dim": 3},
        ),
        ("variants/low_rank_adapter_per_task", "low_rank_adapter", {"factor_rank": 2, "rank": 6}),
        (
            "variants/hyperformer_efficient_norms",
            "hyperformer",
            {"generator": "efficient", "task_dim": 10, "hidden_dim": 7, "projected_dim": 4},
        ),
        ("variants/hyperformer_norms", "hyperformer", {"generator": "unique", "pre_norm": True, "rank": 6}),
        ("variants/prompt", "prompt", {"sharing": "single", "num_tokens": 5, "hidden_dim": 9}),
        ("variants/t5_prompt_per_task_two_images", "prompt", {"sharing": "per_task"}),
        ("variants/t5_vlpet_middle_x", "vl_pet", {"granularity": "middleX", "mean_over_padding": False}),
        ("variants/vlpet_middle_y", "vl_pet", {"granularity": "middleY"}),
        ("variants/vlpet_small", "vl_pet", {"granularity": "small", "mean_over_padding": True}),
    ],
)
def test_golden_method_is_read_from_tensors(name, method, settings):
    (config,) = methods_of(read(GOLDEN / f"{name}.safetensors"))
    assert config.name == method
    assert config.model_dump().items() >= settings.items()


@pytest.mark.parametrize(
    ("source", "name"),
    [(hyperformer, "hyperformer_norms"), (hyperformer, "hyperformer_efficient_norms"), (prompt, "prompt")],
)
def test_golden_t5_names_lack_model_prefix(source, name):
    names = [name for name in read(VARIANTS / f"{name}.safetensors").weights if list(source.names(name))]
    assert names
    assert all(list(source.names(name)) == list(source.names(name.removeprefix("model."))) for name in names)


def changed(path: Path, to: Path, meta: dict | None = None, drop: str | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of a recorded file with other contents; ``__`` in a tensor's keyword stands for a slash."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys() if not drop or drop not in name}  # noqa: SIM118
    key = "json" if "json" in metadata else "about"
    stored |= {name.replace("__", "/"): value.clone() for name, value in tensors.items()}
    save_file(stored, to, {key: json.dumps(json.loads(metadata[key]) | (meta or {}))})
    return to


def test_golden_wrong_number_fails_by_name(tmp_path, capsys):
    source = GOLDEN / "single_adapter.safetensors"
    logits = read(source).tensors["output/vqa/logits"] + 1e-3
    wrong = changed(source, tmp_path / "wrong.safetensors", output__vqa__logits=logits)
    assert main([str(wrong)]) == 1
    assert "fail: vqa/logits: off by 0.001" in capsys.readouterr().out


def test_golden_tolerance_scales_with_largest_entry():
    """Entries that nearly cancel carry the rounding error of those that do not."""
    recorded = torch.tensor([1e5, 0.0])
    near, far = Report(), Report()
    near.close("y", recorded + torch.tensor([0.0, 0.09]), recorded)
    far.close("y", recorded + torch.tensor([0.0, 0.11]), recorded)
    assert (near.failures, far.failures) == ([], ["y: off by 0.11"])


def test_golden_trainable_sets_must_agree(tmp_path):
    source = GOLDEN / "single_adapter.safetensors"
    trained = read(source).meta["trainable"]
    other = changed(source, tmp_path / "other.safetensors", {"trainable": [*trained[:-1], "model.shared.weight"]})
    assert run(other).failures[0].startswith("trainable: ")


def test_golden_unknown_outputs_are_ignored_and_named(tmp_path, capsys):
    one = torch.ones(2)
    paths = [
        changed(
            GOLDEN / "plain.safetensors",
            tmp_path / "model.safetensors",
            output__vqa__attentions=one,
            output__summary=one,
            generate__vqa__sampled=one,
            extra__other=one,
        ),
        changed(GOLDEN / "task_losses.safetensors", tmp_path / "losses.safetensors", output__snli__loss=one),
        changed(VARIANTS / "train_lora.safetensors", tmp_path / "training.safetensors", output__accuracy=one),
        changed(GOLDEN / "routing" / "adapter_mul.safetensors", tmp_path / "layer.safetensors", grad_other=one),
        changed(VARIANTS / "clip_modified_resnet.safetensors", tmp_path / "encoder.safetensors", output__text=one),
    ]
    assert main([str(path) for path in paths]) == 0
    ignored = [line.partition("  (ignored: ")[2].rstrip(")") for line in capsys.readouterr().out.splitlines()]
    assert set(ignored[0].split(", ")) == {
        "output/vqa/attentions",
        "output/summary",
        "generate/vqa/sampled",
        "extra/other",
    }
    assert ignored[1:] == ["output/snli/loss", "output/accuracy", "grad_other", "output/text"]


def test_golden_unsupported_files_state_the_reason(tmp_path, capsys):
    nothing = tmp_path / "nothing.safetensors"
    nothing.write_bytes(b"not a tensor file")
    config = {"config": {"model_type": "rnn", "encoder_layers": 2}}
    other = changed(GOLDEN / "plain.safetensors", tmp_path / "other.safetensors", config)
    known = GOLDEN / "routing" / "adapter_mul.safetensors"
    assert main([str(known), str(nothing), str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("adapter_mul.safetensors ")
    assert lines[0].endswith("pass")
    assert "unsupported: cannot be read" in lines[1]
    assert "unsupported: backbone rnn" in lines[2]
    assert main([]) == 2


def test_golden_unknown_tensors_are_unsupported(tmp_path):
    source = GOLDEN / "single_adapter.safetensors"
    extra = {"weight__model.encoder.layers.0.attn_adapter.adapters.vqa.down_sampler.phm_rule": torch.zeros(2, 2, 2)}
    with pytest.raises(UnsupportedFile, match="belongs to no method of this version"):
        run(changed(source, tmp_path / "compacter.safetensors", **extra))
    path = changed(GOLDEN / "vlpet_large.safetensors", tmp_path / "less.safetensors", drop="multihead_down.2.")
    with pytest.raises(UnsupportedFile, match="nothing recorded for"):
        run(path)


def test_golden_contradictory_sharing_is_unsupported(tmp_path):
    """Sharing is read from aliases and stored names, which must agree."""
    source = VARIANTS / "lora_per_task.safetensors"
    pattern = "model.encoder.layers.0.self_attn.q_proj.lora_As.{}"
    aliases = read(source).aliases | {pattern.format("gqa"): pattern.format("vqa")}
    with pytest.raises(UnsupportedFile, match="one tensor in the file but two here"):
        run(changed(source, tmp_path / "odd.safetensors", {"aliases": aliases}))


def test_golden_unused_tensor_with_gradient_is_unsupported():
    fixture = read(VARIANTS / "hyperformer_norms.safetensors")
    idle = next(name for name in fixture.meta["trainable"] if "encoder.adapter" in name and "cross_attention" in name)
    fixture.tensors["grad_norm/vqa"][fixture.meta["trainable"].index(idle)] = 0.5
    with pytest.raises(UnsupportedFile, match="assumed to be unused"):
        run_model(fixture)


def test_golden_undecided_beams_are_not_compared(tmp_path):
    """Rows listed by tensor name, by its ending, or as a tree; other rows are compared."""
    source = GOLDEN / "t5_single_adapter.safetensors"
    ids = read(source).tensors["generate/vqa/beam5"].clone()
    ids[1, 1] += 1
    for listed in ({"vqa/beam5": [1]}, {"vqa": {"beam5": [1, 2]}}):
        meta = {"beam_rows_depending_on_length_rule": listed}
        assert run(changed(source, tmp_path / "one.safetensors", meta, generate__vqa__beam5=ids)).failures == []
    meta = {"beam_rows_depending_on_length_rule": {"beam5": [0], "greedy": [1]}}
    report = run(changed(source, tmp_path / "two.safetensors", meta, generate__vqa__beam5=ids))
    assert [failure.split(":")[0] for failure in report.failures] == ["generate/vqa/beam5"]


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("weight/visual.layer4.0.conv3.weight", lambda value: value * 1.01),
        ("input/images_uint8", lambda value: value.flip(-1)),
        ("output/features49", lambda value: value.unflatten(1, (7, 7)).transpose(1, 2).flatten(1, 2)),
        ("output/features36", lambda value: value.roll(1, 1)),
    ],
)
def test_golden_altered_encoder_file_fails(tmp_path, name, alter):
    source = VARIANTS / "clip_modified_resnet.safetensors"
    with safe_open(source, "pt") as file:
        value = alter(file.get_tensor(name)).contiguous()
    assert run(changed(source, tmp_path / "other.safetensors", **{name.replace("/", "__"): value})).failures


def test_golden_encoder_names_without_prefix(tmp_path):
    """Weights may lack the ``visual.`` prefix and be in half precision."""
    source = VARIANTS / "clip_modified_resnet.safetensors"
    weights = read(source).weights
    bare = {
        f"weight__{name.removeprefix('visual.')}": value.half() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    assert run(changed(source, tmp_path / "bare.safetensors", drop="weight/", **bare)).failures == []
    config = {"config": {"layers": [1, 2, 1, 1], "width": 4}}
    with pytest.raises(UnsupportedFile, match="does not fit"):
        run(changed(source, tmp_path / "other.safetensors", config))


@pytest.mark.shared
def test_golden_later_kinds_are_unsupported(shared, capsys):
    assert main([str(shared / "golden" / "pipelines" / "gpt2_lora_mm1.safetensors")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "unsupported: " in line
