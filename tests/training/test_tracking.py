"""Progress lines and experiment trackers."""

from multitask_vl.config import load_config
from multitask_vl.training.tracking import Progress, start_trackers
from tests import tiny_run


def test_progress_logs_a_line_every_print_steps(capsys):
    progress = Progress(total=5, done=0, active=True, print_steps=2)
    for _ in range(5):
        progress.update("vqa loss 1.000")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert "min left, vqa loss 1.000" in lines[0]
    silent = Progress(total=1, done=0, active=False, print_steps=1)
    silent.update("vqa")
    assert capsys.readouterr().err == ""


def test_start_trackers_flattens_the_config():
    overrides = ["tracking.project=mine", "tracking.init_kwargs={wandb: {name: run7, mode: offline}}"]
    config = load_config(tiny_run.ROOT / "configs" / "examples" / "quickstart.yaml", overrides)
    given = []

    class Accelerator:
        def init_trackers(self, *arguments):
            given.extend(arguments)

    start_trackers(Accelerator(), config)
    project, settings, init_kwargs = given
    assert (project, init_kwargs["wandb"]) == ("mine", {"name": "run7", "mode": "offline"})
    assert settings["training.lr"] == 2e-3
    assert all(isinstance(value, str | int | float | bool) for value in settings.values())
