"""Score a saved adapter: python launch/evaluate.py --config RUN/resolved.yaml --adapter RUN/adapter --out DIR"""

import argparse
from pathlib import Path

from multitask_vl.config import load
from multitask_vl.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's resolved.yaml, or any YAML that fits")
    parser.add_argument("--adapter", type=Path, required=True, help="folder with adapter_model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="where predictions, scores and submissions go")
    parser.add_argument("--split", action="append", help="a split to score, repeatable (default: evaluation.final)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    loaded = load(args.config, args.overrides)
    from multitask_vl.evaluation.evaluate_adapter import score_adapter

    score_adapter(loaded.config, args.adapter, args.out, args.split or loaded.config.evaluation.final)


if __name__ == "__main__":
    raise SystemExit(main())
