"""The command `multitask-vl` and the public surface of the package."""

import argparse
import os
import re
import subprocess
import sys

import pytest

import multitask_vl
from multitask_vl import __version__
from multitask_vl.cli.main import COMMANDS, build_parser, load_command, main
from multitask_vl.errors import EXIT_FAILURE, InputError, cli_errors
from tests import tiny_run

HEAVY = ("torch", "transformers", "numpy", "h5py", "pydantic", "PIL", "matplotlib")
"""Libraries that no help needs."""


def run_python(code: str) -> str:
    command, env = [sys.executable, "-c", code], tiny_run.environment()
    return subprocess.run(command, cwd=tiny_run.ROOT, env=env, capture_output=True, text=True, check=True).stdout


def test_help_imports_no_heavy_library():
    code = f"""
import contextlib, io, sys
from multitask_vl.cli.main import COMMANDS, main
for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    assert not loaded, (arguments, loaded)
print("done")
"""
    assert run_python(code) == "done\n"


def test_import_is_lazy():
    code = f"""
import sys
import multitask_vl as mvl
assert set(mvl.__all__) <= set(dir(mvl))
mvl.METHODS, mvl.TASKS, mvl.ROUTING, mvl.BACKBONES
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_python(code) == "[]\n"


def test_public_names_resolve():
    from multitask_vl import config, inference, registry
    from multitask_vl.models import build, from_pretrained

    modules = (build, config, from_pretrained, inference, registry)
    for name in multitask_vl.__all__:
        value = getattr(multitask_vl, name)
        assert value in [getattr(module, name, None) for module in modules], name
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="'multitask_vl' has no attribute 'Pipelines'"):
        multitask_vl.Pipelines  # noqa: B018


def test_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  ([\w-]+)  +[A-Z]", out, re.M) == list(COMMANDS)
    assert main([]) == 2
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_help(name):
    parser = build_parser(name, load_command(name))
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
        else:
            assert action.help, action
    for nested in parsers[1:]:
        assert all(action.help for action in nested._actions), nested.prog
    assert f"usage: multitask-vl {name} " in parser.format_help()


def test_version_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"multitask-vl {__version__}\n"
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean 'train'" in capsys.readouterr().err


def test_overrides_may_stand_between_options(tmp_path, capsys):
    assert main(["train", "training.lr=1", "--config", str(tmp_path / "absent.yaml"), "seed=2"]) == 2
    assert "absent.yaml: file not found" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["train", "extract", "evaluate"])
def test_launch_program_is_its_command(name):
    (path,) = (tiny_run.ROOT / "launch").glob(f"{name}*.py")
    assert f'main(["{name}", *sys.argv[1:]])' in path.read_text()


def test_closed_pipe_ends_without_traceback():
    command = f"{sys.executable} -m multitask_vl ls experiments | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(3):  # the reader may end before or after the writer
        env = tiny_run.environment(PYTHONUNBUFFERED="1")
        done = subprocess.run(["bash", "-c", command], cwd=tiny_run.ROOT, env=env, capture_output=True, check=False)
        assert done.stderr == b""
        assert done.returncode in (0, EXIT_FAILURE)


def test_broken_pipe_elsewhere_is_not_hidden():
    @cli_errors
    def command():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        command()


def test_errors_become_exit_codes(capsys):
    def failing(error):
        @cli_errors
        def command():
            raise error

        return command

    assert failing(InputError(["first problem", "second problem"]))() == 2
    assert capsys.readouterr().err == "error: first problem\nerror: second problem\n"
    assert failing(OSError(28, os.strerror(28), "out/file"))() == 2
    assert "error: out/file: No space left on device. Free some space" in capsys.readouterr().err
    assert failing(RuntimeError("[gloo] Connection closed by peer"))() == 1
    assert "another process of this run has ended" in capsys.readouterr().err
    for error in (OSError(5, "I/O error"), RuntimeError("shape mismatch")):
        with pytest.raises(type(error)):
            failing(error)()
    with pytest.raises(ValueError, match="at least one problem"):
        InputError([])
