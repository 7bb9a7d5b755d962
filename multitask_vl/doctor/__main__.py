"""What does ``python -m multitask_vl.doctor CONFIG`` do: the command of the package."""

from multitask_vl.doctor.command import main

if __name__ == "__main__":
    raise SystemExit(main())
