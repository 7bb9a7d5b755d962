"""How fast is extraction beside the published way, and does its memory stay flat? python benchmarks/extraction.py

Writes 640 x 480 JPEGs that compress like photographs, then takes features of them with RN101 (random weights) in every
way, the ways taking turns, and prints one Markdown table. The published way is VL-Adapter's script in our words: decode
in line, one image a forward pass of the whole tower in float32, one HDF5 file an image. The bare trunk is the folded
trunk alone on pixels that are in memory. Rates are medians over rounds; loading the trunk is not counted.

`--flat N` instead extracts N small JPEGs with a tiny trunk and prints resident memory along the way.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import open_clip
import torch
from PIL import Image
from torchvision import transforms

from feature_extraction import extract as extraction
from feature_extraction.encoder import Encoder, load_encoder
from feature_extraction.extract import extract
from feature_extraction.images.decode import ImageBatches
from feature_extraction.images.image_sources import ImageFile
from multitask_vl.config.schema import ClipConfig, Config
from multitask_vl.data.store.writer import write_store
from multitask_vl.reproduction.parameters import put_between_markers

MODEL = "RN101"
TINY = """{"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": null},
 "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}}"""
PUBLISHED = "published way: batch 1, decode in line, a float32 HDF5 file an image"
Way = Callable[[Path], None]
"""Takes features of all images once and writes them below the folder it is given."""


def main() -> None:
    """Run the comparison or the long run and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--workers", type=int, help="processes that decode; default: as extraction chooses")
    parser.add_argument("--model", default=MODEL, help="another open_clip model, to try the benchmark itself")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--markdown", type=Path, help="also write the table between its marks in this page")
    parser.add_argument("--flat", type=int, metavar="N", help="extract N small images and watch the memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = flat(Path(folder), arguments.flat) if arguments.flat else compare(Path(folder), arguments)
    print(found)
    if arguments.markdown:
        put_between_markers(arguments.markdown, f"\n{found}\n", "memory" if arguments.flat else "speed")


# ---- speed


def compare(folder: Path, arguments: argparse.Namespace) -> str:
    """The table of all ways."""
    (folder / "images").mkdir()
    for number in range(arguments.images):
        (folder / "images" / f"COCO_val2014_{number:012d}.jpg").write_bytes(photograph(number))
    paths = sorted((folder / "images").iterdir())
    clip = ClipConfig(model=arguments.model)
    encoders = {precision: load_encoder(clip, precision, "cpu") for precision in arguments.precisions}
    ways: dict[str, Way] = {PUBLISHED: published(clip, paths)}
    for precision, encoder in encoders.items():
        ways[f"bare trunk, {precision}, batch {arguments.batch}"] = bare(encoder, paths, arguments.batch)
        ways[f"ours, {precision}"] = ours(encoder, folder, arguments, precision)
    grid = next(iter(encoders.values())).manifest
    random = np.random.default_rng(0).standard_normal((arguments.images, grid.cells, grid.dim), "f4").astype("f2")
    ways["writing alone, published (float32)"] = write_per_image(random)
    ways["writing alone, ours"] = lambda out: write_store(
        out / "f.h5", grid, {f"{n:06d}": one for n, one in enumerate(random)}
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = dict.fromkeys(ways, 0.0)
    sizes: dict[str, int] = {}
    for turn in range(arguments.rounds + 1):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=folder) as out, peak_memory() as peak:
                started = time.perf_counter()
                way(Path(out))
                took = time.perf_counter() - started
                sizes[name] = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
            if turn:  # the first round warms caches and allocators
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak[0])
            elif arguments.rounds == 0:
                seconds[name].append(took)
    return table(seconds, peaks, sizes, arguments)


def table(seconds: dict, peaks: dict, sizes: dict, arguments: argparse.Namespace) -> str:
    """Markdown: rates, ratios, bytes, memory."""
    rates = {name: arguments.images / statistics.median(times) for name, times in seconds.items()}
    lines = [
        f"{arguments.images} JPEGs of 640 x 480, {arguments.model}, {torch.get_num_threads()} threads, "
        f"{arguments.rounds} rounds, torch {torch.__version__}, {processor()}",
        "",
        "| way | images/s | of the published way | of the bare trunk | bytes an image | peak memory added, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rate in rates.items():
        bare_name = name.replace("ours", "bare trunk") + f", batch {arguments.batch}"
        of_bare = f"{rate / rates[bare_name]:.0%}" if bare_name in rates else ""
        size = f"{sizes[name] / arguments.images:,.0f}" if sizes[name] else ""
        ratio = rate / rates[PUBLISHED]
        lines.append(f"| {name} | {rate:.2f} | {ratio:.2f} | {of_bare} | {size} | {peaks[name] / 1e6:,.0f} |")
    return "\n".join(lines)


def published(clip: ClipConfig, paths: list[Path]) -> Way:
    """The script people have, one image after the other."""
    torch.manual_seed(clip.weights_seed)
    visual = open_clip.create_model(clip.model).visual.eval()
    grid: list[torch.Tensor] = []
    visual.layer4.register_forward_hook(lambda module, inputs, output: grid.append(output))
    bicubic = transforms.InterpolationMode.BICUBIC
    prepare = transforms.Compose(
        [
            transforms.Resize((clip.image_size, clip.image_size), bicubic),
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )

    def way(out: Path) -> None:
        for path in paths:
            with torch.no_grad():
                visual(prepare(Image.open(path).convert("RGB"))[None])
            features = grid.pop()[0].permute(1, 2, 0).flatten(0, 1).numpy()
            with h5py.File(out / f"{path.stem}.h5", "w") as file:
                file[f"{path.stem}/features"] = features

    return way


def write_per_image(features: np.ndarray) -> Way:
    """A file an image, as the script leaves them."""

    def way(out: Path) -> None:
        for number, one in enumerate(features):
            with h5py.File(out / f"{number:06d}.h5", "w") as file:
                file[f"{number:06d}/features"] = one.astype("f4")

    return way


def bare(encoder: Encoder, paths: list[Path], batch: int) -> Way:
    """The trunk alone."""
    pending = np.ones(len(paths), bool)
    batches = ImageBatches([ImageFile(path) for path in paths], pending, batch, encoder.manifest.image_size, "squash")
    pixels = [batches[index].pixels for index in range(len(batches))]

    def way(_: Path) -> None:
        for one in pixels:
            encoder.encode(one)

    return way


def ours(encoder: Encoder, folder: Path, arguments: argparse.Namespace, precision: str) -> Way:
    """The command itself, with a trunk that is loaded already."""
    features = {"images": [folder / "images"], "batch_size": arguments.batch, "precision": precision}
    config = {"clip": {"model": arguments.model}, "features": {**features, "workers": arguments.workers}}

    def way(out: Path) -> None:
        extraction.load_encoder = lambda *_: encoder
        try:
            made = Config.model_validate({**config, "data_dir": out})
            assert extract(made, "cpu").complete
        finally:
            extraction.load_encoder = load_encoder

    return way


# ---- memory


def flat(folder: Path, count: int) -> str:
    """Resident memory while `count` small images go through a tiny trunk."""
    (folder / "tiny.json").write_text(TINY)
    blocks = [small(number) for number in range(512)]
    for number in range(count):
        place = folder / "images" / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.jpg").write_bytes(blocks[number % len(blocks)])
    config = Config.model_validate(
        {
            "data_dir": folder,
            "clip": {"model": str(folder / "tiny.json"), "image_size": 64},
            "features": {"store": "f.h5", "images": ["images"]},
        }
    )
    seen: list[tuple[int, float]] = []
    write, at = extraction.StoreWriter.write, [0]

    def watched(self, rows, features) -> None:
        write(self, rows, features)
        at[0] += len(rows)
        if not seen or at[0] - seen[-1][0] >= 5000 or at[0] == count:
            seen.append((at[0], resident()))

    extraction.StoreWriter.write = watched
    try:
        summary = extract(config, "cpu")
    finally:
        extraction.StoreWriter.write = write
    first = next(memory for done, memory in seen if done >= min(5000, count))
    lines = [
        f"{count:,} images at {summary.extracted / summary.wall_s:,.0f} images/s",
        "",
        "| images | MB |",
        "| --: | --: |",
    ]
    lines += [f"| {done:,} | {memory / 1e6:,.1f} |" for done, memory in seen]
    return "\n".join([*lines, "", f"at the end {seen[-1][1] / first - 1:+.2%} of that after the first 5,000"])


def resident() -> int:
    """Bytes of this process in memory, pages of files not counted."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Largest resident memory inside the block beyond that at its start, looked at every 10 ms."""
    before, peak, over = resident(), [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], resident() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


# ---- pictures


def photograph(seed: int) -> bytes:
    """A 640 x 480 JPEG of smooth shapes with grain: about as many bytes as a photograph of COCO."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    grain = rng.normal(0, 9, (480, 640, 1))
    return _jpeg(Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)), 90)


def small(seed: int) -> bytes:
    """A 96 x 64 JPEG."""
    return _jpeg(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)), 80)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def processor() -> str:
    """The machine, as far as it matters here."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    wide = "AVX512-BF16" if "avx512_bf16" in flags else "no AVX512-BF16"
    return f"{os.cpu_count()} cores of {platform.machine()}, {wide}"


if __name__ == "__main__":
    main()
