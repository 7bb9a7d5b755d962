"""`python -m multitask_vl`, the same as the command `multitask-vl`."""

from multitask_vl.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
