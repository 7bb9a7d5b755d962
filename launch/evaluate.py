"""Evaluate an adapter: accelerate launch launch/evaluate.py --config CONFIG --adapter ADAPTER --out DIR

The command `multitask-vl evaluate` as a file, for launchers that start several processes.
"""

import sys

from multitask_vl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
