"""Do recorded numbers reproduce, and does the runner understand, refuse and fail where it should?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.golden.__main__ import main, run
from tests.golden.fixture import NotUnderstood, read
from tests.golden.names import methods_of
from tests.published import TASKS, Published, record, record_training

GOLDEN = Path(__file__).parent / "golden"
RECORDED = sorted(GOLDEN.rglob("*.safetensors"))
SMALL = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "vocab_size": 120,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "activation_function": "gelu",
    "feat_dim": 10,
    "n_boxes": 36,
    "n_images": 2,
    "downsample": True,
}
PLACES = {"encoder": ["attn", "ff"], "decoder": ["self_attn", "enc_attn", "ff"]}


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_recorded_numbers_reproduce(path):
    report = run(path)
    assert report.failures == []
    assert report.compared > 0
    assert report.worst < 2e-4


def test_the_formulas_written_down_here_are_the_recorded_ones():
    """The second implementation must itself agree with what was recorded, or its own files would prove nothing."""
    for name in ("plain", "single_adapter", "single_lora"):
        fixture = read(GOLDEN / f"{name}.safetensors")
        model = Published(fixture.weights, fixture.aliases, fixture.meta["config"], scale=4.0)
        outputs = model.outputs(fixture.under("input"), "vqa")
        for key, value in fixture.under("output/vqa").items():
            torch.testing.assert_close(outputs[key], value, atol=5e-5, rtol=1e-4)
        recorded = fixture.tensors["generate/vqa/greedy"]
        assert model.greedy(fixture.under("input"), "vqa", 20).tolist() == recorded.tolist()


def weights_of(config: dict, method: str, own: str, extra: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """Random tensors by the source's names, and the aliases.

    Args:
        method: adapter, lora or none.
        own: which halves every task has for itself: "down", "up", "down up" or "".
        extra: norms of the adapters, "pre" and "post".
    """
    generator = torch.Generator().manual_seed(3)
    weights, aliases = {}, {}

    def add(name: str, *shape: int, spread: float = 0.15, around: float = 0.0) -> None:
        weights[name] = (around + spread * torch.randn(*shape, generator=generator)).half().float()

    def linear(name: str, d_in: int, d_out: int) -> None:
        add(f"{name}.weight", d_out, d_in)
        add(f"{name}.bias", d_out)

    def norm(name: str) -> None:
        add(f"{name}.weight", width, around=1.0)
        add(f"{name}.bias", width)

    def per_task(pattern: str, half: str, *shape: int) -> None:
        add(pattern.format(TASKS[0]), *shape)
        for task in TASKS[1:]:
            if half in own:
                add(pattern.format(task), *shape)
            else:
                aliases[pattern.format(task)] = pattern.format(TASKS[0])

    width, inner, rank = config["d_model"], config["encoder_ffn_dim"], 5
    add("model.shared.weight", config["vocab_size"], width, spread=0.5)
    aliases["lm_head.weight"] = "model.shared.weight"
    prefix = "model.encoder.visual_embedding"
    linear(f"{prefix}.feat_embedding.0", config["feat_dim"], width)
    linear(f"{prefix}.absolute_vis_pos_embedding.0", 5, width)
    norm(f"{prefix}.feat_embedding.1")
    norm(f"{prefix}.absolute_vis_pos_embedding.1")
    add(f"{prefix}.img_order_embedding.weight", 2, width)
    for stack, places in PLACES.items():
        add(f"model.{stack}.embed_positions.weight", config["max_position_embeddings"] + 2, width)
        norm(f"model.{stack}.layernorm_embedding")
        for i in range(config[f"{stack}_layers"]):
            name = f"model.{stack}.layers.{i}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (stack == "decoder")]:
                norm(f"{name}.{attention}_layer_norm")
                for part in "kvq":
                    linear(f"{name}.{attention}.{part}_proj", width, width)
                    if method == "lora" and part != "k":
                        per_task(f"{name}.{attention}.{part}_proj.lora_As.{{}}", "down", rank, width)
                        per_task(f"{name}.{attention}.{part}_proj.lora_Bs.{{}}", "up", width, rank)
                linear(f"{name}.{attention}.out_proj", width, width)
            linear(f"{name}.fc1", width, inner)
            linear(f"{name}.fc2", inner, width)
            norm(f"{name}.final_layer_norm")
            for place in places if method == "adapter" else ():
                for which in extra:
                    norm(f"{name}.{place}_adapter.{which}_layer_norm")
                for half, d_in, d_out in (("down", width, rank), ("up", rank, width)):
                    sampler = f"{name}.{place}_adapter.adapters.{{}}.{half}_sampler"
                    per_task(f"{sampler}.weight", half, d_out, d_in)
                    per_task(f"{sampler}.bias", half, d_out)
    return weights, aliases


def inputs_of(config: dict, cells: int = 36, images: int = 1, seed: int = 0, pad: int = 1) -> dict[str, torch.Tensor]:
    """Three rows with padding in the middle of the joint sequence and unequal targets."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, config["vocab_size"], (3, 8), generator=generator)
    labels = torch.randint(3, config["vocab_size"], (3, 5), generator=generator)
    input_ids[1, 5:], input_ids[2, 7:], labels[0, 3:], labels[2, 2:] = pad, pad, -100, -100
    corners = torch.rand(3, images * cells, 4, generator=generator)
    inputs = {
        "input_ids": input_ids,
        "labels": labels,
        "vis_feats": torch.randn(3, images * cells, config["feat_dim"], generator=generator).half(),
        "boxes": corners,
        "scores": torch.tensor([1.0, 0.3, 0.6]),
    }
    if images > 1:
        inputs["img_order_ids"] = torch.arange(images).repeat_interleave(cells).expand(3, -1)
        inputs["obj_order_ids"] = torch.arange(cells).repeat(images).expand(3, -1)
    return inputs


def trained_of(weights: dict, method: str) -> list[str]:
    """Names that the source trains."""
    marks = {
        "all": ("",),
        "bitfit": ("bias",),
        "frozen": ("nothing else",),
        "lora": ("bias", "lora"),
        "adapter": ("_adapter.",),
        "adapter+norms": ("_adapter.", "layer_norm", "layernorm"),
    }[method]
    return [name for name in weights if "visual_embedding" in name or any(mark in name for mark in marks)]


VARIANTS = {
    "grid_7x7": ("none", "", "all", {}, {"cells": 49}),
    "two_images": ("none", "", "all", {}, {"images": 2}),
    "two_images_7x7": ("none", "", "frozen", {}, {"images": 2, "cells": 49}),
    "bitfit": ("none", "", "bitfit", {}, {}),
    "other_sizes": ("adapter", "", "adapter+norms", {"d_model": 32, "encoder_attention_heads": 4, "n_boxes": 25}, {}),
    "adapter_per_task": ("adapter", "down up", "adapter+norms", {}, {}),
    "adapter_shared_up": ("adapter", "down", "adapter+norms", {}, {}),
    "adapter_shared_down": ("adapter", "up", "adapter", {}, {}),
    "adapter_pre_post": ("adapter", "", "adapter+norms", {}, {}),
    "adapter_post_per_task": ("adapter", "down up", "adapter+norms", {}, {}),
    "lora_per_task": ("lora", "down up", "lora", {}, {}),
}
NORMS = {"adapter_pre_post": ("pre", "post"), "adapter_post_per_task": ("post",)}


@pytest.mark.parametrize("name", VARIANTS)
def test_files_of_kinds_that_are_not_here_are_understood(name, tmp_path):
    method, own, trained, sizes, given = VARIANTS[name]
    config = SMALL | sizes
    config["decoder_attention_heads"] = config["encoder_attention_heads"]
    weights, aliases = weights_of(config, method, own, NORMS.get(name, ()))
    model = Published(weights, aliases, config, scale=2.0)
    path = tmp_path / f"{name}.safetensors"
    tasks = TASKS[:2] if own else TASKS[:1]
    arguments = {"lora_alpha": 10, "tasks": ",".join(TASKS)}
    record(path, model, inputs_of(config, **given), trained_of(weights, trained), tasks, method_args=arguments)
    report = run(path)
    assert report.failures == []
    assert report.worst < 5e-5
    norms = read(path).under("grad_norm")
    if own:
        assert all(bool((norm == -1).any()) for norm in norms.values()), "some task's tensors must have no gradient"


def test_a_training_run_of_another_method_is_understood(tmp_path):
    weights, aliases = weights_of(SMALL, "lora", "")
    path = tmp_path / "train_lora.safetensors"
    batches = [inputs_of(SMALL, seed=seed) for seed in range(3)]
    model = Published(weights, aliases, SMALL, scale=2.0)
    record_training(path, model, batches, trained_of(weights, "lora"), method_args={"lora_alpha": 10})
    report = run(path)
    assert report.failures == []
    assert report.compared > 50


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("formula", ["x_t x_v^T x_v", "ReLU(x_t) ReLU(x_v)^T x_v"])
def test_routed_layers_of_another_size_are_understood(formula, rows, tmp_path):
    """Gradients here reach 1e5, and entries that nearly cancel carry the rounding of those."""
    torch.manual_seed(2)
    width, rank = 160, 40
    made = {"W_down": torch.randn(rank, width) / 6, "b_down": torch.randn(rank), "W_up": torch.randn(width, rank) / 6}
    made |= {"b_up": torch.randn(width), "x_h": torch.randn(2, 9, width), "x_r": torch.randn(2, rows, width)}
    own = {name: value.clone().requires_grad_() for name, value in made.items()}
    t, v = (own[name] @ own["W_down"].T + own["b_down"] for name in ("x_h", "x_r"))
    gates = (t.relu(), v.relu()) if "ReLU" in formula else (t, v)
    z = torch.bmm(torch.bmm(gates[0], gates[1].transpose(1, 2)), v)
    y = own["x_h"] + torch.nn.functional.gelu(z, approximate="tanh") @ own["W_up"].T + own["b_up"]
    y.square().sum().backward()
    made |= {"y": y.detach()} | {f"grad_{name}": value.grad for name, value in own.items()}
    path = tmp_path / "adapter.safetensors"
    save_file(made, path, {"about": json.dumps({"module": "sequential Adapter", "routing": formula})})
    report = run(path)
    assert report.failures == []
    assert report.compared == 7


def changed(path: Path, to: Path, meta: dict | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of a recorded file with other contents."""
    with safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        described = json.loads(file.metadata()["json"])
    kept |= {name.replace("__", "/"): value for name, value in tensors.items()}
    save_file(kept, to, {"json": json.dumps(described | (meta or {}))})
    return to


def test_a_wrong_number_fails_and_names_itself(tmp_path, capsys):
    source = GOLDEN / "single_adapter.safetensors"
    logits = read(source).tensors["output/vqa/logits"] + 1e-3
    wrong = changed(source, tmp_path / "wrong.safetensors", output__vqa__logits=logits)
    assert main([str(wrong), str(source)]) == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert "fail: vqa/logits: off by 0.001" in bad
    assert good.split()[-1] == "pass"


def test_what_is_trained_must_agree(tmp_path):
    source = GOLDEN / "single_adapter.safetensors"
    trained = read(source).meta["trainable"]
    other = changed(source, tmp_path / "other.safetensors", {"trainable": [*trained[:-1], "model.shared.weight"]})
    assert run(other).failures[0].startswith("trainable: ")


def test_another_backbone_is_not_understood(tmp_path, capsys):
    config = {"config": {"model_type": "rnn", "encoder_layers": 2}}
    path = changed(GOLDEN / "plain.safetensors", tmp_path / "other.safetensors", config)
    assert main([str(path)]) == 1
    assert "not understood: backbone rnn" in capsys.readouterr().out


def test_tensors_of_an_unknown_method_are_not_understood(tmp_path):
    source = GOLDEN / "single_adapter.safetensors"
    extra = {"weight__model.encoder.layers.0.attn_adapter.adapters.vqa.down_sampler.phm_rule": torch.zeros(2, 2, 2)}
    with pytest.raises(NotUnderstood, match="belongs to no method of this version"):
        run(changed(source, tmp_path / "compacter.safetensors", **extra))


def test_separate_tensors_where_the_source_has_one_are_not_accepted(tmp_path):
    """Sharing is read from the aliases and stored names; a file that contradicts itself is refused."""
    weights, aliases = weights_of(SMALL, "adapter", "down up")
    aliases["model.encoder.layers.0.ff_adapter.adapters.gqa.up_sampler.bias"] = (
        "model.encoder.layers.0.ff_adapter.adapters.vqa.up_sampler.bias"
    )
    path = tmp_path / "odd.safetensors"
    record(path, Published(weights, aliases, SMALL), inputs_of(SMALL), trained_of(weights, "adapter"), ["vqa"])
    with pytest.raises(NotUnderstood, match="one tensor there, and two here"):
        run(path)


def test_methods_are_told_from_names():
    found = {
        path.stem: methods_of(read(path))[0].name for path in GOLDEN.glob("*.safetensors") if "loss" not in path.stem
    }
    assert found == {
        "plain": "full",
        "single_adapter": "adapter",
        "single_compacter": "compacter",
        "single_lora": "lora",
        "t5_plain": "full",
        "t5_single_adapter": "adapter",
        "t5_vlpet_large": "vl_pet",
        "train_single_adapter": "adapter",
        "vlpet_large": "vl_pet",
    }


def test_beams_that_hang_on_a_library_rule_are_not_compared(tmp_path):
    """Named as the tensor, by its end, or as a tree; a row that is not named still counts."""
    source = GOLDEN / "t5_single_adapter.safetensors"
    ids = read(source).tensors["generate/vqa/beam5"].clone()
    ids[1, 1] += 1
    for listed in ({"vqa/beam5": [1]}, {"beam5": [1]}, {"vqa": {"beam5": [1, 2]}}):
        meta = {"beam_rows_depending_on_length_rule": listed}
        assert run(changed(source, tmp_path / "one.safetensors", meta, generate__vqa__beam5=ids)).failures == []
    meta = {"beam_rows_depending_on_length_rule": {"beam5": [0], "greedy": [1]}}
    report = run(changed(source, tmp_path / "two.safetensors", meta, generate__vqa__beam5=ids))
    assert [failure.split(":")[0] for failure in report.failures] == ["generate/vqa/beam5"]


def test_as_a_program(tmp_path):
    nothing = tmp_path / "nothing.safetensors"
    nothing.write_bytes(b"not a tensor file")
    command = [sys.executable, "-m", "tests.golden", str(GOLDEN / "routing" / "adapter_mul.safetensors"), str(nothing)]
    done = subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].split()[0] == "adapter_mul.safetensors"
    assert lines[0].endswith("pass")
    assert "not understood: cannot be read" in lines[1]


@pytest.mark.shared
def test_every_shared_file_of_a_later_kind_is_refused_politely(shared, capsys):
    later = ["pipelines/gpt2_lora_mm1"]
    assert main([str(shared / "golden" / f"{name}.safetensors") for name in later]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(later)
    assert all("not understood: " in line for line in lines)
