"""Extract image features: torchrun launch/extract_features.py --config CONFIG [key=value ...]

The command `multitask-vl extract` as a file, for launchers that start several processes.
"""

import sys

from multitask_vl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
