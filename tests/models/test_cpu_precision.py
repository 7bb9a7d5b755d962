"""Is somebody who chose 16 bits told where they are slower, by training, doctor and extraction alike?"""

import pytest
import torch
import yaml

from multitask_vl import doctor
from multitask_vl.models.kernels import cpu_precision
from multitask_vl.models.kernels.cpu_precision import slower_than_fp32
from tests import drawn_images, tiny_run

TOLD = "bf16 saves memory, and takes longer than float32"
BF16 = "training.mixed_precision=bf16"


@pytest.fixture
def rate(monkeypatch):
    """Sets what the measurement gives."""
    return lambda value: monkeypatch.setattr(cpu_precision, "half_rate", lambda dtype: value)


def test_only_what_is_slower_is_told(rate):
    rate(0.5)
    told = slower_than_fp32("training.mixed_precision", "bf16", "cpu")
    assert told.startswith(f"training.mixed_precision: {TOLD}")
    assert "0.5 times the speed" in told
    assert slower_than_fp32("x", "fp16", torch.device("cpu"))
    for precision, device in (("no", "cpu"), ("fp32", "cpu"), (None, "cpu"), ("bf16", "cuda")):
        assert slower_than_fp32("x", precision, device) is None
    rate(1.9)
    assert slower_than_fp32("x", "bf16", "cpu") is None


def test_the_rate_is_that_of_the_products_of_each_kind(monkeypatch):
    """By a clock that counts: a product in float32 takes 3 ticks, one in bfloat16 12."""
    linear, now = torch.nn.functional.linear, [0]

    def counted(states, weight):
        now[0] += 3 if states.dtype == torch.float32 else 12
        return linear(states, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    monkeypatch.setattr(cpu_precision.time, "perf_counter", lambda: now[0])
    assert cpu_precision.half_rate(torch.bfloat16) == 0.25


@pytest.mark.parametrize(("value", "is_told"), [(0.5, True), (2.0, False)])
def test_a_run_and_the_doctor_say_so(rate, tmp_path, capsys, value, is_told):
    rate(value)
    tiny_run.write_files(tmp_path)
    config = str(tiny_run.write_config(tmp_path, run_dir=str(tmp_path / "run")))
    words = ("training.steps=1", "evaluation.final=[]", BF16)
    assert tiny_run.launch("train_multitask", "--config", config, *words) == 0
    assert (f"training.mixed_precision: {TOLD}" in capsys.readouterr().err) == is_told
    assert doctor.main([config, BF16, "run_dir=elsewhere"]) == 0
    assert (f"remark: training.mixed_precision: {TOLD}" in capsys.readouterr().out) == is_told


def test_an_extraction_says_so(rate, tmp_path, capsys):
    rate(0.5)
    config = tmp_path / "extract.yaml"
    config.write_text(yaml.safe_dump(drawn_images.tiny_config(tmp_path, count=2).model_dump(mode="json")))
    assert tiny_run.launch("extract_features", "--config", str(config), "features.precision=bf16") == 0
    assert f"note: features.precision: {TOLD}" in capsys.readouterr().err
    assert tiny_run.launch("extract_features", "--config", str(config), "features.store=other.h5") == 0
    assert "takes longer" not in capsys.readouterr().err
