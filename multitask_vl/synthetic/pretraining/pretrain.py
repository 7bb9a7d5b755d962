"""How are the embedded backbones rebuilt: ``python -m multitask_vl.synthetic.pretraining.pretrain {clip,bart} [...]``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from multitask_vl.errors import InputError, exits_cleanly

RECIPES = {
    "clip": "multitask_vl.synthetic.pretraining.clip_pretrain",
    "bart": "multitask_vl.synthetic.pretraining.bart_pretrain",
}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int | None:
    """Hand over to the recipe that the first word names."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] not in RECIPES:
        got = f"got {argv[0]!r}" if argv else "nothing was named"
        raise InputError(
            f"which backbone? {got}; try: python -m multitask_vl.synthetic.pretraining.pretrain clip --help (or bart)"
        )
    return importlib.import_module(RECIPES[argv[0]]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
