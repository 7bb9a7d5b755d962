"""Inspect, verify, merge, import or export feature stores.

A STORE is a file, NAME.h5 for its shards NAME-00000-of-00016.h5 ..., or a URL.

Exit codes: 0 success; 1 the store has corrupt, missing or all-zero rows, or some features could not be imported; 2 bad
input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multitask_vl.errors import EXIT_FAILURE, InputError

SUBCOMMANDS = {
    "inspect": "print the manifest, size and coverage of a store",
    "verify": "check the checksum of every row; with --images, whether every image has a row",
    "stats": "find all-zero and constant rows, duplicates and outliers; print channel statistics",
    "merge": "merge shards or several stores into one file",
    "import": "import features in an older format into a store",
    "export": "export a store to one HDF5 file per image, one HDF5 file with a group per image, or numpy files",
    "neighbors": "make a contact sheet of images and their nearest neighbors",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: subparsers.add_parser(name, help=text, description=text) for name, text in SUBCOMMANDS.items()}
    for name in ("inspect", "verify", "stats"):
        parsers[name].add_argument("store", type=_store, metavar="STORE", help="feature store")
        parsers[name].add_argument("--json", action="store_true", help="print JSON")
    parsers["verify"].add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="image folders that the store should cover"
    )
    parsers["stats"].add_argument("--sample", type=int, help="number of random rows to read (default: all)")
    parsers["stats"].add_argument("--seed", type=int, default=0, help="random seed of --sample (default: %(default)s)")
    parsers["merge"].add_argument("stores", type=_store, nargs="+", metavar="STORE", help="stores to merge")
    parsers["merge"].add_argument("target", type=Path, metavar="TARGET", help="store to write")
    _add_exchange_arguments(parsers["import"], parsers["export"])
    _add_neighbors_arguments(parsers["neighbors"])


def _add_exchange_arguments(importing: argparse.ArgumentParser, exporting: argparse.ArgumentParser) -> None:
    importing.add_argument("source", type=Path, help="folder of KEY.h5 files, or one .h5 file with a group per image")
    importing.add_argument("store", type=Path, metavar="STORE", help="store to write")
    importing.add_argument(
        "--config", type=Path, required=True, help="YAML file whose vision section describes how the features were made"
    )
    importing.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    exporting.add_argument("store", type=_store, metavar="STORE", help="feature store")
    exporting.add_argument(
        "target", type=Path, metavar="TARGET", help="folder (per-image, numpy) or file (groups) to write"
    )
    exporting.add_argument(
        "--layout",
        choices=("per-image", "groups", "numpy"),
        default="per-image",
        help="per-image: KEY.h5 for each image; groups: one .h5 with a group per image; numpy: features.npy and "
        "keys.txt (default: %(default)s)",
    )
    exporting.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="dtype to write (default: %(default)s)"
    )


def _add_neighbors_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=_store, metavar="STORE", help="feature store")
    parser.add_argument("--control", type=_store, metavar="STORE", help="second store of the same images to compare")
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="image folders")
    parser.add_argument("--out", type=_image_path, required=True, metavar="FILE", help="contact sheet to write")
    parser.add_argument(
        "--queries", type=_positive, default=10, help="number of random query images (default: %(default)s)"
    )
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="query images by key, instead of random ones")
    parser.add_argument("--num-neighbors", type=_positive, default=5, help="neighbors per query (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the queries (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    commands = {
        "inspect": _inspect,
        "verify": _verify,
        "stats": _stats,
        "merge": _merge,
        "import": _import,
        "export": _export,
        "neighbors": _neighbors,
    }
    return commands[args.command](args)


def _inspect(args: argparse.Namespace) -> int:
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.inspection import describe

    printing.print_manifest(describe(args.store), args.json)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.inspection import verify
    from feature_extraction.progress import progress

    verification = verify(args.store, args.images, progress)
    printing.print_verification(args.store, verification, args.json)
    return 0 if verification.ok else EXIT_FAILURE


def _stats(args: argparse.Namespace) -> int:
    if args.sample is not None and args.sample < 1:
        raise InputError(f"--sample {args.sample}: must be at least 1")
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.stats import compute_stats
    from feature_extraction.progress import progress

    stats = compute_stats(args.store, args.sample, args.seed, progress)
    printing.print_stats(args.store, stats, args.json)
    return 0 if stats.ok else EXIT_FAILURE


def _merge(args: argparse.Namespace) -> int:
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.merge import merge
    from feature_extraction.progress import progress

    result = merge(args.stores, args.target, progress)
    repeated = f"; {result.duplicates:,} images are in several stores with the same features"
    print(
        f"{args.target}: {result.done:,} of {result.rows:,} rows done, {result.copied:,} copied now"
        f"{repeated if result.duplicates else ''}"
    )
    printing.print_list("rows are corrupt in their store (checksum) and are not done here", result.corrupt)
    if result.done == result.rows:
        return 0
    print(f"extract the missing rows: {printing.EXTRACT_COMMAND} features.store={args.target}")
    return EXIT_FAILURE


def _import(args: argparse.Namespace) -> int:
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.import_features import FeatureSource, import_features, manifest_from_config
    from feature_extraction.progress import progress
    from multitask_vl.config import load_config

    source = FeatureSource(args.source)
    manifest = manifest_from_config(source, load_config(args.config, args.overrides).vision)
    result = import_features(source, args.store, manifest, progress)
    print(f"{args.store}: {result.stored:,} of {result.images:,} images of {args.source}")
    print(
        f"manifest as configured in {args.config}, not verified: {manifest.encoder} with weights "
        f"{manifest.weights_tag} at {manifest.image_size} px ({manifest.resize})"
    )
    if skipped := sorted(result.skipped_datasets.items()):
        print(f"not imported: {', '.join(f'{name} of {count:,} images' for name, count in skipped)}")
    printing.print_list("images could not be imported", [f"{key}: {reason}" for key, reason in result.failures.items()])
    return EXIT_FAILURE if result.failures else 0


def _export(args: argparse.Namespace) -> int:
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.export import export_store
    from feature_extraction.progress import progress

    result = export_store(args.store, args.target, args.layout, args.dtype, progress)
    exported = result.written + result.existing
    existing = f", {result.existing:,} existed" if result.existing else ""
    print(f"{args.target}: {exported:,} of {result.rows:,} images ({result.written:,} written{existing})")
    printing.print_list("rows are corrupt (checksum) and were skipped", result.corrupt)
    printing.print_list("rows are not extracted yet", result.missing)
    return EXIT_FAILURE if result.corrupt or result.missing else 0


def _neighbors(args: argparse.Namespace) -> int:
    from feature_extraction.images.image_index import index_images
    from feature_extraction.maintenance import printing
    from feature_extraction.maintenance.nearest_neighbors import common_keys, contact_sheet, find_neighbors, sample_keys
    from multitask_vl.data.store.feature_store import FeatureStore

    stores = [FeatureStore(name) for name in (args.store, args.control) if name]
    files = index_images(args.images).files
    candidates = common_keys(stores, files)
    queries = args.keys or sample_keys(candidates, args.queries, args.seed)
    unknown = sorted(set(queries) - set(candidates))
    if unknown:
        raise InputError(f"--keys: {len(unknown)} of {len(queries)} have no image with features (first: {unknown[0]})")
    columns = [
        (
            f"{store.manifest.encoder}, weights {store.manifest.weights_tag}",
            find_neighbors(store, queries, candidates, args.num_neighbors),
        )
        for store in stores
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet, unreadable = contact_sheet(files, queries, columns)
    sheet.save(args.out, quality=80)
    for title, rows in columns:
        print(f"{title}, nearest of {len(candidates):,}:")
        for key, neighbors in zip(queries, rows, strict=True):
            print(f"  {key}: {', '.join(f'{name} {cosine:.3f}' for name, cosine in neighbors)}")
    printing.print_list(
        "images could not be read and are gray", [f"{key}: {reason}" for key, reason in unreadable.items()]
    )
    return 0


def _store(text: str) -> Path | str:
    from multitask_vl.data.store.format import path_or_url

    return path_or_url(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _image_path(text: str) -> Path:
    from feature_extraction.images.image_index import IMAGE_EXTENSIONS

    # Pillow writes .h5 too, and would overwrite a store named by mistake
    if Path(text).suffix.lower() not in IMAGE_EXTENSIONS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end like an image file, such as .jpg or .png")
    return Path(text)
