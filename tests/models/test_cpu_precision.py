"""Warning about 16-bit precision on processors that are slower at it, in training, doctor and extraction."""

import pytest
import torch
import yaml

from multitask_vl.models.kernels import cpu_precision
from multitask_vl.models.kernels.cpu_precision import slow_precision_warning
from tests import drawn_images, tiny_run

WARNING = "bf16 saves memory but is slower than float32"
BF16 = "training.mixed_precision=bf16"


@pytest.fixture
def speedup(monkeypatch):
    """Sets the measured speedup."""
    return lambda value: monkeypatch.setattr(cpu_precision, "low_precision_speedup", lambda dtype: value)


def test_warning_only_for_slow_16_bit_cpu(speedup):
    speedup(0.5)
    warning = slow_precision_warning("training.mixed_precision", "bf16", "cpu")
    assert warning.startswith(f"training.mixed_precision: {WARNING}")
    assert "0.5 times the speed" in warning
    assert slow_precision_warning("x", "fp16", torch.device("cpu"))
    for precision, device in (("no", "cpu"), ("fp32", "cpu"), (None, "cpu"), ("bf16", "cuda")):
        assert slow_precision_warning("x", precision, device) is None
    speedup(1.9)
    assert slow_precision_warning("x", "bf16", "cpu") is None


def test_speedup_is_ratio_of_product_times(monkeypatch):
    """With a counting clock: a product in float32 takes 3 ticks, one in bfloat16 12."""
    linear, now = torch.nn.functional.linear, [0]

    def counted(hidden, weight):
        now[0] += 3 if hidden.dtype == torch.float32 else 12
        return linear(hidden, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    monkeypatch.setattr(cpu_precision.time, "perf_counter", lambda: now[0])
    assert cpu_precision.low_precision_speedup(torch.bfloat16) == 0.25


def test_training_and_doctor_warn(speedup, tmp_path, capsys):
    speedup(0.5)
    tiny_run.write_dataset(tmp_path)
    config = str(tiny_run.write_config(tmp_path, run_dir=str(tmp_path / "run")))
    overrides = ("training.max_steps=1", "evaluation.final_splits=[]", BF16)
    assert tiny_run.launch("train", "--config", config, *overrides) == 0
    assert f"training.mixed_precision: {WARNING}" in capsys.readouterr().err
    assert tiny_run.launch("doctor", "--no-step", config, BF16, "run_dir=elsewhere") == 0
    assert f"training.mixed_precision: {WARNING}" in capsys.readouterr().out


def test_extraction_warns(speedup, tmp_path, capsys):
    speedup(0.5)
    config = tmp_path / "extract.yaml"
    config.write_text(yaml.safe_dump(drawn_images.tiny_config(tmp_path, count=2).model_dump(mode="json")))
    assert tiny_run.launch("extract", "--config", str(config), "features.precision=bf16") == 0
    assert f"features.precision: {WARNING}" in capsys.readouterr().err
    assert tiny_run.launch("extract", "--config", str(config), "features.store=other.h5") == 0
    assert WARNING not in capsys.readouterr().err
