"""The `multitask-vl` command and its subcommands."""
