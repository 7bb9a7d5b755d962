"""The files of configs/accelerate and launch options that training does not support."""

import os

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.run.build import make_accelerator
from tests import tiny_run

FOLDER = tiny_run.ROOT / "configs" / "accelerate"
KINDS = {
    "cpu": (DistributedType.NO, 1),
    "two_processes_cpu": (DistributedType.MULTI_CPU, 2),
    "one_gpu": (DistributedType.NO, 1),
    "two_gpus_ddp": (DistributedType.MULTI_GPU, 2),
    "many_gpus_ddp": (DistributedType.MULTI_GPU, 8),
    "fsdp2": (DistributedType.FSDP, 2),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 2),
}


def test_every_file_is_listed():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_file_is_read_by_accelerate(name):
    """Accelerate rejects unknown top-level keys; keys of the sections must be options of its launcher."""
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_processes) == KINDS[name]
    assert config.use_cpu == ("cpu" in name)
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options
    command = (
        "torchrun --nproc_per_node 2" if name == "two_processes_cpu" else f"--config_file configs/accelerate/{name}"
    )
    assert command in path.read_text()


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "fsdp2"])
def test_file_is_accepted_by_the_launcher(name):
    """As far as that is possible without GPUs."""
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.use_fsdp == (name == "fsdp2")
    if name == "fsdp2":
        assert args.fsdp_version == 2
        assert args.fsdp_reshard_after_forward in (True, "true")


def accelerator_with(monkeypatch, *overrides, **environment):
    """Build the accelerator under a launcher that sets these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(
        tiny_run.ROOT / "configs" / "examples" / "quickstart.yaml", ["tracking.trackers=[]", *overrides]
    )
    return make_accelerator(config)


def test_deepspeed_is_rejected_with_alternatives(monkeypatch):
    with pytest.raises(InputError, match=r"DeepSpeed .*many_gpus_ddp.*fsdp2"):
        accelerator_with(monkeypatch, ACCELERATE_USE_DEEPSPEED="true")


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        ({"FSDP_VERSION": "1"}, [], "fsdp_version: 1, but only 2 is supported"),
        ({}, [], "fsdp_version: 1, but"),  # accelerate's default
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params: true"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, [], "training.gradient_checkpointing=true"),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, [], "fsdp_reshard_after_forward: false"),
        ({"FSDP_VERSION": "2"}, ["training.on_oom=halve"], "training.on_oom: halve"),
        ({"FSDP_VERSION": "2"}, ["training.compile=true"], "training.compile: true"),
    ],
)
def test_unsupported_fsdp_option_is_rejected(monkeypatch, environment, overrides, message):
    with pytest.raises(InputError) as error:
        accelerator_with(monkeypatch, *overrides, ACCELERATE_USE_FSDP="true", **environment)
    assert len(error.value.problems) == 1
    assert message in error.value.problems[0]


def test_fsdp2_file_is_accepted(monkeypatch):
    """With the environment of its launcher; accelerate itself sees plain data parallelism."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / "fsdp2.yaml"), "script.py"])
    args, _, _ = _validate_launch_command(args)
    variables = {key: value for key, value in prepare_multi_gpu_env(args).items() if "FSDP" in key}
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    accelerator = accelerator_with(monkeypatch, **variables)
    assert accelerator.distributed_type == DistributedType.NO
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.slow
def test_torchrun_trains_on_two_processes(tmp_path):
    """The command in two_processes_cpu.yaml, in processes of its own; test_two_processes compares results."""
    tiny_run.write_dataset(tmp_path)
    config = tiny_run.write_config(tmp_path)
    done = tiny_run.run(config, "training.max_steps=2", "evaluation.final_splits=[]", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 x cpu" in done.stderr
    assert [step for step, _, _ in tiny_run.read_losses(tmp_path / "run")] == [1, 2]
