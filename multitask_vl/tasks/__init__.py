"""What can be trained: one file a task (data, prompt, target, loss, score, submission), found by `registry.TASKS`."""
