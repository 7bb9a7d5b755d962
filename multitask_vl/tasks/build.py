"""Build the tasks of a configuration."""

from __future__ import annotations

from pydantic import ValidationError

from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Task


def build_tasks(config: Config) -> dict[str, Task]:
    """Build tasks by their key under ``tasks:``, in its order.

    Raises:
        InputError: unknown tasks, or settings that a task does not have; all of them.
    """
    tasks, problems = {}, []
    for name, settings in config.tasks.items():
        try:
            task_class: type[Task] = TASKS.get(settings.type or name)
            if not isinstance(settings, task_class.Config):
                # a configuration built in Python may have a plain TaskConfig
                settings = task_class.Config.model_validate(settings.model_dump(exclude_unset=True))
            tasks[name] = task_class(name, settings, config.data_dir)
        except InputError as error:
            problems += [f"tasks.{name}: {problem}" for problem in error.problems]
        except ValidationError as error:
            problems += [f"tasks.{name}.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    if problems:
        raise InputError(problems)
    return tasks
