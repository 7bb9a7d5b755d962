"""What can be done with a store besides filling it: python -m feature_extraction.maintenance.manage COMMAND ...

    inspect STORE                          how the features were made, how many there are
    verify STORE [--against FOLDER ...]    checksums of all rows; with folders, whether every image has a row
    stats STORE                            dead and constant rows, distribution of channels, images out of line
    merge STORE [STORE ...] TARGET         shards or several stores -> one file
    import SRC DST --config CONFIG         features in an older layout -> a store; CONFIG.clip says how they were made
    export STORE TARGET --layout LAYOUT    a store -> one file per image, or one file with a group per image
    neighbours STORE --images FOLDER ... --out SHEET.jpg    a contact sheet of pictures and their nearest neighbours

A STORE is a file, NAME.h5 for its shards NAME-00000-of-00016.h5 ..., or a URL. Exit codes: 0 fine; 1 the store has
damaged, missing, dead or unfinished rows, or some features could not be taken over; 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from feature_extraction.images.image_index import ENDINGS, index_images
from feature_extraction.maintenance import printing
from feature_extraction.maintenance.export import DTYPES, export
from feature_extraction.maintenance.import_features import Source, import_features, vouched
from feature_extraction.maintenance.inspection import describe, verify
from feature_extraction.maintenance.merge import merge
from feature_extraction.maintenance.stats import look_at
from feature_extraction.progress import watch
from multitask_vl.config import load_config
from multitask_vl.data.store.format import place
from multitask_vl.errors import InputError, exits_cleanly

EXIT_NOT_SOUND = 1


@exits_cleanly
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m feature_extraction.maintenance.manage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, says):
        one = commands.add_parser(name, help=says)
        one.set_defaults(run=run)
        return one

    one = command("inspect", _inspect, "print the manifest, size and coverage of a store")
    _store_and_json(one)
    one = command("verify", _verify, "check every row's checksum")
    _store_and_json(one)
    one.add_argument("--against", "--images", type=Path, nargs="+", default=[], metavar="FOLDER", dest="images")
    one = command("stats", _stats, "look at the numbers of a store")
    _store_and_json(one)
    one.add_argument("--sample", type=int, help="look at so many rows, drawn at random (default: all)")
    one.add_argument("--seed", type=int, default=0, help="which rows are drawn")
    one = command("merge", _merge, "turn shards or several stores into one file")
    one.add_argument("stores", type=place, nargs="+", metavar="STORE")
    one.add_argument("target", type=Path)
    one = command("import", _import, "turn features in an older layout into a store")
    one.add_argument("source", type=Path, help="folder of KEY.h5, or one .h5 with a group per image")
    one.add_argument("store", type=Path)
    one.add_argument("--config", type=Path, required=True, help="its clip section says how they were made")
    one.add_argument("overrides", nargs="*", metavar="key=value")
    one = command("export", _export, "turn a store into an older layout")
    one.add_argument("store", type=place)
    one.add_argument("target", type=Path, help="a folder (per-image) or a file (groups)")
    one.add_argument("--layout", choices=("per-image", "groups"), default="per-image")
    one.add_argument("--dtype", choices=sorted(DTYPES), default="float16", help="of the numbers; their values stay")
    one = command("neighbours", _neighbours, "make a contact sheet of nearest neighbours")
    one.add_argument("store", type=place)
    one.add_argument("--control", type=place, help="a second store of the same pictures, shown beside it")
    one.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER")
    one.add_argument("--out", type=_picture, required=True, help="the sheet; its ending says the format")
    one.add_argument("--queries", type=_positive, default=10, help="how many pictures are drawn")
    one.add_argument("--keys", nargs="+", metavar="KEY", help="these pictures instead")
    one.add_argument("--neighbours", type=_positive, default=5)
    one.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    return parser


def _store_and_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=place)
    parser.add_argument("--json", action="store_true", help="for machines")


def _inspect(arguments: argparse.Namespace) -> int:
    printing.description(describe(arguments.store), arguments.json)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    verdict = verify(arguments.store, arguments.images, watch)
    printing.verdict(arguments.store, verdict, arguments.json)
    return 0 if verdict.sound else EXIT_NOT_SOUND


def _stats(arguments: argparse.Namespace) -> int:
    if arguments.sample is not None and arguments.sample < 1:
        raise InputError(f"--sample {arguments.sample}: at least one row")
    stats = look_at(arguments.store, arguments.sample, arguments.seed, watch)
    printing.stats(arguments.store, stats, arguments.json)
    return 0 if stats.sound else EXIT_NOT_SOUND


def _merge(arguments: argparse.Namespace) -> int:
    merged = merge(arguments.stores, arguments.target, watch)
    twice = f"; {merged.twice:,} images stood in several stores with the same features" if merged.twice else ""
    print(f"{arguments.target}: {merged.done:,} of {merged.rows:,} rows done, {merged.copied:,} copied now{twice}")
    printing.listed("rows were damaged in their store (checksum) and are not done here", merged.damaged)
    if merged.done == merged.rows:
        return 0
    print(f"extract what is not done: {printing.AGAIN} features.store={arguments.target}")
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
    printing.listed("images could not be imported", [f"{key}: {reason}" for key, reason in done.failures.items()])
    return EXIT_NOT_SOUND if done.failures else 0


def _export(arguments: argparse.Namespace) -> int:
    done = export(arguments.store, arguments.target, arguments.layout, arguments.dtype, watch)
    kept = f", {done.kept:,} were there" if done.kept else ""
    print(f"{arguments.target}: {done.written + done.kept:,} of {done.rows:,} images ({done.written:,} written{kept})")
    printing.listed("rows are damaged (checksum) and were left out", done.damaged)
    printing.listed("rows are not extracted yet", done.undone)
    return EXIT_NOT_SOUND if done.damaged or done.undone else 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _picture(text: str) -> Path:
    if Path(text).suffix.lower() not in ENDINGS:  # Pillow knows .h5 too, and would empty a store named by mistake
        raise argparse.ArgumentTypeError(f"{text!r} has no ending of a picture, such as .jpg or .png")
    return Path(text)


def _neighbours(arguments: argparse.Namespace) -> int:
    from feature_extraction.maintenance.nearest_neighbors import contact_sheet, in_both, nearest, spread_out
    from multitask_vl.data.store.feature_store import FeatureStore

    names = [arguments.store, *([arguments.control] if arguments.control else [])]
    stores, paths = [FeatureStore(name) for name in names], index_images(arguments.images).paths
    among = in_both(stores, paths)
    queries = arguments.keys or spread_out(among, arguments.queries, arguments.seed)
    unknown = sorted(set(queries) - set(among))
    if unknown:
        raise InputError(
            f"--keys: {len(unknown)} of {len(queries)} have no picture with features (first: {unknown[0]})"
        )
    columns = [
        (
            f"{one.manifest.encoder}, weights {one.manifest.weights_tag}",
            nearest(one, queries, among, arguments.neighbours),
        )
        for one in stores
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet, unreadable = contact_sheet(paths, queries, columns)
    sheet.save(arguments.out, quality=80)
    for title, found in columns:
        print(f"{title}, nearest of {len(among):,}:")
        for key, neighbours in zip(queries, found, strict=True):
            print(f"  {key}: {', '.join(f'{name} {cosine:.3f}' for name, cosine in neighbours)}")
    printing.listed("pictures could not be read and are grey", [f"{key}: {why}" for key, why in unreadable.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
