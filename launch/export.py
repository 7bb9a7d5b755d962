"""Give an adapter away: python launch/export.py --to {merged,peft,hub} ADAPTER OUT

merged  the library's language model with the method folded in, and the visual embedding beside it
peft    a plain LoRA in the layout of the library peft (its language-model half)
hub     the adapter as it is, or a merged model, as the repository OUT (owner/name) of the Hugging Face hub
"""

import argparse
from pathlib import Path

from multitask_vl.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", choices=("merged", "peft", "hub"), required=True)
    parser.add_argument("adapter", help="a run's folder or its adapter/, or the name of an adapter on the hub")
    parser.add_argument("out", help="a new folder; for hub, owner/name")
    parser.add_argument(
        "--backbone", help="hub name or folder of the frozen weights, where they are not where they were"
    )
    parser.add_argument("--tokenizer", help="hub name or folder of the tokenizer, likewise")
    parser.add_argument("--private", action="store_true", help="for hub: make the repository a private one")
    args = parser.parse_args()
    if args.to == "hub":
        from multitask_vl.methods.artifact.adapter_io import find_adapter, read_record
        from multitask_vl.methods.artifact.hub import fetch, push

        folder = find_adapter(fetch(args.adapter))
        # a merged model's adapter is nothing without the weights around it
        whole = folder.parent if read_record(folder).get("merged") else folder
        print(push(whole, args.out, private=args.private or None))
        return
    from multitask_vl.methods.artifact.peft_export import export_peft
    from multitask_vl.models.from_pretrained import from_pretrained

    model, _ = from_pretrained(args.adapter, backbone=args.backbone, tokenizer=args.tokenizer)
    if args.to == "merged":
        model.save_merged(args.out)
    else:
        export_peft(model, Path(args.out))
    print(f"written: {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
