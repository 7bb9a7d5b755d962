"""Train, evaluate and save one run: accelerate launch launch/train_multitask.py --config CONFIG [key=value ...]

The command `multitask-vl train` as a file, for launchers that start several processes.
"""

import sys

from multitask_vl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
