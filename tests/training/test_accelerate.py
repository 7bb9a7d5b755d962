"""The files of configs/accelerate: read by accelerate's own classes, taken by its launcher, refused where need be."""

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


def test_every_file_is_known_here():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_what_accelerate_reads(name):
    """Its class refuses unknown keys at the top; those of the sections must be options of its launcher."""
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
def test_a_file_is_taken_by_the_launcher(name):
    """As far as it goes without GPUs: what it would hand to the processes."""
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.use_fsdp == (name == "fsdp2")
    if name == "fsdp2":
        assert args.fsdp_version == 2
        assert args.fsdp_reshard_after_forward in (True, "true")


def made(monkeypatch, *words, **environment):
    """The accelerator of a launcher that sets these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(tiny_run.ROOT / "configs" / "quickstart.yaml", ["tracking.trackers=[]", *words])
    return make_accelerator(config)


def test_deepspeed_is_refused_with_a_way_out(monkeypatch):
    with pytest.raises(InputError, match=r"DeepSpeed .*many_gpus_ddp.*fsdp2"):
        made(monkeypatch, ACCELERATE_USE_DEEPSPEED="true")


@pytest.mark.parametrize(
    ("environment", "words", "told"),
    [
        ({"FSDP_VERSION": "1"}, [], "fsdp_version: 1, but only 2 is supported"),
        ({}, [], "fsdp_version: 1, but"),  # what accelerate takes where nothing is said
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params: true"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, [], "training.gradient_checkpointing=true"),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, [], "fsdp_reshard_after_forward: false"),
        ({"FSDP_VERSION": "2"}, ["training.on_oom=halve"], "training.on_oom: halve"),
        ({"FSDP_VERSION": "2"}, ["training.compile=true"], "training.compile: true"),
    ],
)
def test_what_fsdp_is_asked_for_and_training_does_not_do_is_refused(monkeypatch, environment, words, told):
    with pytest.raises(InputError) as error:
        made(monkeypatch, *words, ACCELERATE_USE_FSDP="true", **environment)
    assert len(error.value.problems) == 1
    assert told in error.value.problems[0]


def test_the_settings_of_fsdp2_yaml_are_taken(monkeypatch):
    """As its launcher hands them over; accelerate itself sees plain data parallelism."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / "fsdp2.yaml"), "script.py"])
    args, _, _ = _validate_launch_command(args)
    handed = {key: value for key, value in prepare_multi_gpu_env(args).items() if "FSDP" in key}
    assert handed["ACCELERATE_USE_FSDP"] == "true"
    accelerator = made(monkeypatch, **handed)
    assert accelerator.distributed_type == DistributedType.NO
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
