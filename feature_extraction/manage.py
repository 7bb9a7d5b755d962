"""What can be done with a store besides filling it: python -m feature_extraction.manage inspect | verify | import.

    inspect STORE                          how the features were made, how many there are
    verify STORE [--images FOLDER ...]     checksums of all rows; with folders, whether every image has a row
    import SRC DST --config CONFIG         features in an older layout -> a store; CONFIG.clip says how they were made

Exit codes: 0 fine; 1 the store has damaged, missing or unfinished rows, or some features could not be imported; 2 bad
input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from feature_extraction.imports import Source, import_features, vouched
from feature_extraction.inspection import describe, verify
from feature_extraction.progress import watch
from multitask_vl.config import load_config
from multitask_vl.errors import exits_cleanly

EXIT_NOT_SOUND = 1
SHOWN = 10
AGAIN = "python launch/extract_features.py --config CONFIG"


@exits_cleanly
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m feature_extraction.manage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspecting = commands.add_parser("inspect", help="print the manifest and the size of a store")
    verifying = commands.add_parser("verify", help="check every row's checksum")
    importing = commands.add_parser("import", help="turn features in an older layout into a store")
    for one in (inspecting, verifying):
        one.add_argument("store", type=Path)
    verifying.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="look for images here")
    importing.add_argument("source", type=Path, help="folder of KEY.h5, or one .h5 with a group per image")
    importing.add_argument("store", type=Path)
    importing.add_argument("--config", type=Path, required=True, help="its clip section says how they were made")
    importing.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    return {"inspect": _inspect, "verify": _verify, "import": _import}[arguments.command](arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    for name, value in describe(arguments.store):
        print(f"{name:<16}{value}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    verdict = verify(arguments.store, arguments.images, watch)
    print(f"{arguments.store}: {verdict.good:,} of {verdict.rows:,} rows are good")
    for what, keys in (
        ("rows are damaged (checksum)", verdict.damaged),
        ("rows are not extracted yet", verdict.undone),
        ("images have no row", verdict.absent),
    ):
        _list(what, keys)
    if verdict.beyond:
        print(f"{verdict.beyond:,} rows belong to images that are not in these folders")
    if verdict.sound:
        return 0
    print(f"mend all of this by: {AGAIN}")
    return EXIT_NOT_SOUND


def _import(arguments: argparse.Namespace) -> int:
    source = Source(arguments.source)
    manifest = vouched(source, load_config(arguments.config, arguments.overrides).clip)
    done = import_features(source, arguments.store, manifest, watch)
    print(f"{arguments.store}: {done.stored:,} of {done.images:,} images of {arguments.source}")
    print(
        f"taken on the word of {arguments.config}: made by {manifest.encoder} with weights {manifest.weights_tag} at "
        f"{manifest.image_size} px ({manifest.resize})"
    )
    if done.left:
        print(f"left behind: {', '.join(f'{name} of {count:,} images' for name, count in sorted(done.left.items()))}")
    _list("images could not be imported", [f"{key}: {reason}" for key, reason in done.failures.items()])
    return EXIT_NOT_SOUND if done.failures else 0


def _list(what: str, entries: Iterable[str]) -> None:
    entries = list(entries)
    if entries:
        print(f"{len(entries):,} {what}:")
        for entry in entries[:SHOWN]:
            print(f"  {entry}")
        if len(entries) > SHOWN:
            print(f"  ... and {len(entries) - SHOWN:,} more")


if __name__ == "__main__":
    sys.exit(main())
