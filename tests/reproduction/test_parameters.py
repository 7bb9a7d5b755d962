"""Parameter counts of the published experiments (VL-Adapter, Tables 1 and 7; VL-PET, Tables 2 to 9)."""

from __future__ import annotations

import json
import shutil

import pytest

from multitask_vl.cli.main import main
from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.reports.markers import markers
from multitask_vl.reproduction.experiments import Experiment, find_experiment
from multitask_vl.reproduction.parameters import (
    PARAMETERS_SECTION,
    count_parameters,
    parameter_rows,
    rows_as_markdown,
    rows_as_text,
)
from tests import tiny_run

BEGIN, END = markers(PARAMETERS_SECTION)
COUNTS = {
    "full": (141_156_864, 141_156_864),
    "adapter_single": (6_081_600, 145_606_464),
    "adapter_per_task": (19_430_400, 158_955_264),
    "adapter_shared_up": (12_725_760, 152_250_624),
    "adapter_shared_down": (12_786_240, 152_311_104),
    "lora_single": (8_786_688, 148_234_752),
    "lora_per_task": (30_020_352, 169_468_416),
    "lora_cross_attention": (5_444_352, 144_892_416),
    "lora_split": (6_968_064, 146_416_128),
    "compacter_single": (3_870_240, 143_395_104),
    "compacter_per_task": (10_584_960, 150_109_824),
    # 30 sites with L, R and b in both projections
    "low_rank_adapter_single": (1_632_000 + 30 * 2_592, 141_156_864 + 30 * 2_592),
    "parallel_adapter": (7_557_120, 147_081_984),
    "parallel_adapter_cross_attention": (8_730_624, 148_255_488),
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
"""Id -> trainable and total, with 200 added tokens (T5: 32,200 rows), 2048 channels and four tasks."""


@pytest.fixture(scope="module")
def rows():
    """The rows of all experiments with an id; counting them checks each block against its model."""
    return parameter_rows()


def test_rows_have_published_counts(rows):
    assert {row.name: (row.trainable, row.total) for row in rows} == COUNTS
    for row in rows:
        assert row.trainable == row.language_model + row.visual_embedding + row.added
        # the two norms of T5 have no biases
        assert row.visual_embedding == (1_581_312 if "t5" in row.backbone else 1_582_848)


def test_rows_match_published_percentages(rows):
    assert [row.name for row in rows if row.matches_published is False] == []
    assert sum(row.matches_published is True for row in rows) == 33


def test_documentation_table_is_current(rows):
    pages = (tiny_run.ROOT / "docs").glob("*.md")
    (page,) = (path for path in pages if BEGIN in path.read_text())
    table = page.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert table == rows_as_markdown(rows), f"run: multitask-vl count-params --markdown {page}"


def test_rows_report_differing_figures():
    experiment = find_experiment("bitfit")
    block = experiment.reproduces.model_copy(
        update={"trained_percent": type(experiment.reproduces.trained_percent)("1.20")}
    )
    config = experiment.config.model_copy(update={"reproduces": block})
    (row,) = found = parameter_rows([Experiment(experiment.name, experiment.path, config)])
    assert row.matches_published is False
    assert rows_as_text(found).splitlines()[1].endswith("1.20 (differs)  VL-PET, Table 2")
    assert "| 1.20 (differs) | VL-PET, Table 2 |" in rows_as_markdown(found)
    wrong = config.model_copy(update={"reproduces": block.model_copy(update={"total": 5})})
    with pytest.raises(InputError, match=r"bitfit\.yaml: reproduces: 1,708,800 of 5 parameters; the model trains"):
        parameter_rows([Experiment(experiment.name, experiment.path, wrong)])


@pytest.mark.parametrize("id_", ["adapter_per_task", "lora_single"])
@pytest.mark.parametrize("function", ["mul", "add", "mm1", "mm2", "mm1_relu"])
def test_routing_adds_no_parameters(id_, function):
    report = count_parameters(id_, [f"routing.function={function}"])
    assert (report["trainable"], report["total"]) == COUNTS[id_]


def test_count_parameters_accepts_id_name_and_path():
    path = tiny_run.ROOT / "configs" / "experiments" / "vl_adapter" / "single_lora.yaml"
    reports = [count_parameters(one) for one in ("lora_single", "vl_adapter/single_lora", path)]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["components"]["lora"] == {"trainable": 7_077_888, "total": 7_077_888}
    for key in ("trainable", "total"):
        assert sum(part[key] for part in reports[0]["components"].values()) == reports[0][key]
    with pytest.raises(InputError, match="unknown experiment 'lora_singel'; did you mean 'lora_single'"):
        count_parameters("lora_singel")
    # a backbone of another name keeps its own sizes
    small = load_config(tiny_run.ROOT / "configs" / "examples" / "quickstart.yaml").backbone.pretrained
    assert count_parameters("frozen", [f"backbone.pretrained={small}"])["total"] < 3_000_000


class TestCountParamsCommand:
    """multitask-vl count-params."""

    def test_count_params_prints_json_and_table(self, capsys):
        assert not main(["count-params", "lora_single", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (report["trainable"], report["total"]) == COUNTS["lora_single"]
        assert not main(["count-params", "frozen"])
        table = capsys.readouterr().out.splitlines()
        assert table[-1].split() == ["all", "1,582,848", "141,156,864", "1.12%"]

    def test_count_params_lists_all_rows(self, rows, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr("multitask_vl.reproduction.parameters.parameter_rows", lambda: rows[:3])
        assert not main(["count-params"])
        assert len(capsys.readouterr().out.splitlines()) == 4
        assert not main(["count-params", "--json"])
        first = json.loads(capsys.readouterr().out)[0]
        assert {"name", "method", "backbone", "trainable", "total", "percent", "trained", "published"} <= first.keys()
        page = tmp_path / "page.md"
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        for _ in range(2):  # the second time changes nothing
            assert not main(["count-params", "--markdown", str(page)])
            assert page.read_text() == f"before\n{BEGIN}\n{rows_as_markdown(rows[:3])}\n{END}\nafter\n"

    def test_count_params_reports_bad_input(self, rows, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr("multitask_vl.reproduction.parameters.parameter_rows", lambda: rows[:1])
        page = tmp_path / "page.md"
        shutil.copy(tiny_run.ROOT / "LICENSE", page)
        for arguments, message in (
            (["--markdown", str(page)], "needs the line '<!-- parameters: begin -->' once"),
            (["--markdown", str(tmp_path / "absent.md")], "--markdown: file not found"),
            ([str(tmp_path / "absent.yaml")], "absent.yaml"),
            (["nothing_like_it"], "unknown experiment 'nothing_like_it'"),
            ([str(tiny_run.ROOT / "configs" / "base.yaml")], "method: none given"),
            (["bitfit", "routing.function=mul"], "method bitfit has no bottleneck"),
        ):
            assert main(["count-params", *arguments]) == 2
            output = capsys.readouterr().err
            assert message in output
            assert "Traceback" not in output
        assert page.read_bytes() == (tiny_run.ROOT / "LICENSE").read_bytes()
