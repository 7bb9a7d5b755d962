"""Export an adapter: merged model, peft format, or the hub.

    multitask-vl export --to {merged,peft,hub} ADAPTER OUT

merged  language model of transformers with the method merged into its weights, and the visual embedding
peft    plain LoRA in the format of the library peft (language-model part only)
hub     the adapter, or a merged model, as the repository OUT (owner/name) of the Hugging Face hub
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--to", choices=("merged", "peft", "hub"), required=True, help="format of the export")
    parser.add_argument("adapter", help="run folder, adapter folder, or name on the hub")
    parser.add_argument("out", help="new folder; with --to hub, owner/name")
    parser.add_argument("--backbone", metavar="PATH", help="frozen language model, if it has moved since training")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer, if it has moved since training")
    parser.add_argument("--private", action="store_true", help="with --to hub: create a private repository")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.to == "hub":
        print(_push(args))
        return
    from multitask_vl.methods.artifact.peft_export import export_peft
    from multitask_vl.models.from_pretrained import from_pretrained

    model, _ = from_pretrained(args.adapter, backbone=args.backbone, tokenizer=args.tokenizer)
    if args.to == "merged":
        model.save_merged(args.out)
    else:
        export_peft(model, Path(args.out))
    print(f"written: {args.out}")


def _push(args: argparse.Namespace) -> str:
    from multitask_vl.methods.artifact.adapter_io import find_adapter, read_record
    from multitask_vl.methods.artifact.hub import push_folder, resolve_artifact

    folder = find_adapter(resolve_artifact(args.adapter))
    # the adapter of a merged model needs the weights in the folder above it
    folder = folder.parent if read_record(folder).get("merged") else folder
    return push_folder(folder, args.out, private=args.private or None)
