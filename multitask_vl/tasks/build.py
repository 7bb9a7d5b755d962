"""Which tasks does a configuration ask for, as objects."""

from __future__ import annotations

from pydantic import ValidationError

from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Task


def build_tasks(config: Config) -> dict[str, Task]:
    """Tasks by their key under ``tasks:``, in its order.

    Raises:
        InputError: unknown tasks, or settings that a task does not take; all of them.
    """
    tasks, problems = {}, []
    for name, settings in config.tasks.items():
        try:
            kind: type[Task] = TASKS.get(settings.type or name)
            if not isinstance(settings, kind.Config):
                # a configuration made in Python may hold plain settings
                settings = kind.Config.model_validate(settings.model_dump(exclude_unset=True))
            tasks[name] = kind(name, settings, config.data_dir)
        except InputError as error:
            problems += [f"tasks.{name}: {problem}" for problem in error.problems]
        except ValidationError as error:
            problems += [f"tasks.{name}.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    if problems:
        raise InputError(problems)
    return tasks
