"""Are the parameter counts, as integers, those of the published methods (VL-Adapter, Tables 1 and 7)?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multitask_vl.config import load_config
from multitask_vl.doctor import main, parameter_report

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "parameters"
PUBLISHED = {
    "full": (141_156_864, 141_156_864),
    "adapter_single": (6_081_600, 145_606_464),
    "adapter_per_task": (19_430_400, 158_955_264),
    "adapter_shared_up": (12_725_760, 152_250_624),
    "adapter_shared_down": (12_786_240, 152_311_104),
    "lora_single": (8_786_688, 148_234_752),
    "lora_per_task": (30_020_352, 169_468_416),
    "compacter_single": (3_870_240, 143_395_104),
    "compacter_per_task": (10_584_960, 150_109_824),
    # no published figure: 30 places of L, R and b in both halves
    "low_rank_adapter_single": (1_632_000 + 30 * 2_592, 141_156_864 + 30 * 2_592),
    "hyperformer": (8_579_088, 148_103_952),
    "prompt_single": (2_843_936, 142_417_952),
    "prompt_per_task": (6_627_200, 146_201_216),
    "bitfit": (1_708_800, 141_156_864),
    "frozen": (1_582_848, 141_156_864),
    "t5_full": (224_540_160, 224_540_160),
    "t5_adapter_single_96": (10_480_512, 233_439_360),
    "t5_adapter_single_96_norms": (10_528_128, 233_439_360),
    "t5_adapter_single_192": (19_333_632, 242_292_480),
    "t5_prompt_single": (2_842_400, 225_801_248),
    "t5_lora_single_150": (18_170_880, 241_128_960),
    "vl_pet_large": (6_052_416, 145_606_464),
    "vl_pet_middleX": (4_281_804, 143_835_852),
    "vl_pet_middleY": (4_281_792, 143_835_840),
    "vl_pet_small": (4_291_020, 143_845_068),
    "vl_pet_none": (4_272_576, 143_826_624),
    "vl_adapter_lw_large": (6_052_416, 145_606_464),
    "vl_adapter_lw_middleX": (4_281_804, 143_835_852),
    "vl_adapter_lw_middleY": (4_281_792, 143_835_840),
    "vl_adapter_lw_small": (4_291_020, 143_845_068),
    "t5_vl_pet_large": (17_582_208, 240_521_856),
    "t5_vl_pet_middleX": (10_499_736, 233_439_384),
    "t5_vl_pet_middleY": (10_499_712, 233_439_360),
    "t5_vl_pet_small": (10_518_168, 233_457_816),
    "compacter_lw_large": (4_725_600, 144_279_648),
    "compacter_lw_middleX": (2_954_988, 142_509_036),
    "compacter_lw_middleY": (2_954_976, 142_509_024),
    "compacter_lw_small": (2_964_204, 142_518_252),
    "modex": (3_074_856, 142_599_720),
    "modex_52": (6_061_920, 145_586_784),
    "modex_96": (9_712_776, 149_237_640),
}
"""BART-base with 200 added tokens, or T5-base with 32,200 (t5_*), 2048 channels, four tasks: trainable, total."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
    config = load_config(FOLDER / f"{name}.yaml")
    report = parameter_report(config)
    assert (report["trainable"], report["total"]) == PUBLISHED[name]
    parts = report["components"].values()
    assert tuple(sum(part[key] for part in parts) for key in ("trainable", "total")) == PUBLISHED[name]
    # T5's two norms have no biases
    visual = 1_581_312 if config.backbone.family == "t5" else 1_582_848
    assert report["components"]["visual_embedding"] == {"trainable": visual, "total": visual}


@pytest.mark.parametrize("name", ["adapter_per_task", "lora_single"])
@pytest.mark.parametrize("function", ["mul", "add", "mm1", "mm2", "mm1_relu"])
def test_routing_adds_none(name, function):
    report = parameter_report(load_config(FOLDER / f"{name}.yaml", [f"routing.function={function}"]))
    assert (report["trainable"], report["total"]) == PUBLISHED[name]


def test_as_a_command(capsys):
    assert main(["--params", "--json", str(FOLDER / "lora_single.yaml")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["components"]["lora"] == {"trainable": 7_077_888, "total": 7_077_888}
    assert main(["--params", str(FOLDER / "frozen.yaml")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[-1].split() == ["all", "1,582,848", "141,156,864", "1.12%"]


def test_a_method_without_bottleneck_refuses_routing(capsys):
    assert main(["--params", str(FOLDER / "bitfit.yaml"), "routing.function=mul"]) == 2
    assert "method bitfit has no bottleneck in which to route" in capsys.readouterr().err
