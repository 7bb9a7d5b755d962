"""Speed and memory of feature extraction, compared with the published script: python -m benchmarks.extraction

Writes 640 x 480 JPEGs that compress like photographs, extracts their features with RN101 (random weights) in several
ways, which alternate, and prints a Markdown table. "Published" works like VL-Adapter's script: inline decoding, one
image per forward pass of the complete encoder in float32, one HDF5 file per image. "Encoder alone" is the folded
encoder on pixels in memory. Rates are medians over rounds; loading the encoder is not counted.

--flat N instead extracts N small JPEGs with a tiny encoder and prints the resident memory during extraction.
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
from multitask_vl.config.schema import Config, VisionConfig
from multitask_vl.data.store.writer import write_store
from multitask_vl.reports.markers import replace_section

MODEL = "RN101"
TINY = """{"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": null},
 "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}}"""
PUBLISHED = "published: batch 1, inline decoding, one float32 HDF5 file per image"
Extraction = Callable[[Path], None]
"""Extracts the features of all images into the given folder."""


def main() -> None:
    """Run the comparison or the memory measurement and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    precisions = ["fp32", "bf16", "fp16"]
    parser.add_argument("--images", type=int, default=64, help="number of images (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--batch", type=int, default=16, help="batch size (default: 16)")
    parser.add_argument("--precisions", nargs="+", default=precisions[:2], choices=precisions, help="of the encoder")
    parser.add_argument("--workers", type=int, help="number of decoder processes (default: chosen by extraction)")
    parser.add_argument("--model", default=MODEL, help="another open_clip model, to test the benchmark")
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    parser.add_argument("--markdown", type=Path, help="Markdown page that receives the table between its markers")
    parser.add_argument("--flat", type=int, metavar="N", help="extract N small images and print the memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = flat(Path(folder), options.flat) if options.flat else compare(Path(folder), options)
    print(text)
    if options.markdown:
        replace_section(options.markdown, f"\n{text}\n", "memory" if options.flat else "speed")


# ---- speed


def compare(folder: Path, options: argparse.Namespace) -> str:
    """Measure all ways of extraction; return the table."""
    (folder / "images").mkdir()
    for number in range(options.images):
        (folder / "images" / f"COCO_val2014_{number:012d}.jpg").write_bytes(photograph(number))
    paths = sorted((folder / "images").iterdir())
    vision = VisionConfig(model=options.model)
    encoders = {precision: load_encoder(vision, precision, "cpu") for precision in options.precisions}
    cases: dict[str, Extraction] = {PUBLISHED: published(vision, paths)}
    for precision, encoder in encoders.items():
        cases[f"encoder alone, {precision}, batch {options.batch}"] = encoder_alone(encoder, paths, options.batch)
        cases[f"ours, {precision}"] = ours(encoder, folder, options, precision)
    manifest = next(iter(encoders.values())).manifest
    random = np.random.default_rng(0).standard_normal((options.images, manifest.cells, manifest.dim), "f4").astype("f2")
    cases["writing only, published (float32)"] = write_per_image(random)
    cases["writing only, ours"] = lambda out: write_store(
        out / "f.h5", manifest, {f"{n:06d}": one for n, one in enumerate(random)}
    )
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    peaks: dict[str, float] = dict.fromkeys(cases, 0.0)
    sizes: dict[str, int] = {}
    for turn in range(options.rounds + 1):
        for name, run in cases.items():
            with tempfile.TemporaryDirectory(dir=folder) as out, peak_memory() as peak:
                started = time.perf_counter()
                run(Path(out))
                elapsed = time.perf_counter() - started
                sizes[name] = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
            if turn:  # the first round warms caches and allocators
                seconds[name].append(elapsed)
                peaks[name] = max(peaks[name], peak[0])
            elif options.rounds == 0:
                seconds[name].append(elapsed)
    return render_table(seconds, peaks, sizes, options)


def render_table(seconds: dict, peaks: dict, sizes: dict, options: argparse.Namespace) -> str:
    """Rates, ratios, file sizes and memory as Markdown."""
    rates = {name: options.images / statistics.median(times) for name, times in seconds.items()}
    lines = [
        f"{options.images} JPEGs of 640 x 480, {options.model}, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds, torch {torch.__version__}, {processor()}",
        "",
        "| way | images/s | relative to published | relative to encoder alone | bytes per image | "
        "peak memory added, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rate in rates.items():
        encoder = name.replace("ours", "encoder alone") + f", batch {options.batch}"
        relative = f"{rate / rates[encoder]:.0%}" if encoder in rates else ""
        size = f"{sizes[name] / options.images:,.0f}" if sizes[name] else ""
        ratio = rate / rates[PUBLISHED]
        lines.append(f"| {name} | {rate:.2f} | {ratio:.2f} | {relative} | {size} | {peaks[name] / 1e6:,.0f} |")
    return "\n".join(lines)


def published(vision: VisionConfig, paths: list[Path]) -> Extraction:
    """The published script: one image at a time."""
    torch.manual_seed(vision.weights_seed)
    visual = open_clip.create_model(vision.model).visual.eval()
    grid: list[torch.Tensor] = []
    visual.layer4.register_forward_hook(lambda module, inputs, output: grid.append(output))
    bicubic = transforms.InterpolationMode.BICUBIC
    preprocess = transforms.Compose(
        [
            transforms.Resize((vision.image_size, vision.image_size), bicubic),
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )

    def run(out: Path) -> None:
        for path in paths:
            with torch.no_grad():
                visual(preprocess(Image.open(path).convert("RGB"))[None])
            features = grid.pop()[0].permute(1, 2, 0).flatten(0, 1).numpy()
            with h5py.File(out / f"{path.stem}.h5", "w") as file:
                file[f"{path.stem}/features"] = features

    return run


def write_per_image(features: np.ndarray) -> Extraction:
    """Write one file per image, as the published script does."""

    def run(out: Path) -> None:
        for number, one in enumerate(features):
            with h5py.File(out / f"{number:06d}.h5", "w") as file:
                file[f"{number:06d}/features"] = one.astype("f4")

    return run


def encoder_alone(encoder: Encoder, paths: list[Path], batch: int) -> Extraction:
    """The encoder on decoded images."""
    pending = np.ones(len(paths), bool)
    batches = ImageBatches([ImageFile(path) for path in paths], pending, batch, encoder.manifest.image_size, "squash")
    pixels = [batches[index].pixels for index in range(len(batches))]

    def run(_: Path) -> None:
        for one in pixels:
            encoder.encode(one)

    return run


def ours(encoder: Encoder, folder: Path, options: argparse.Namespace, precision: str) -> Extraction:
    """`extract` with a loaded encoder."""
    features = {"images": [folder / "images"], "batch_size": options.batch, "precision": precision}
    sections = {"vision": {"model": options.model}, "features": {**features, "num_workers": options.workers}}

    def run(out: Path) -> None:
        extraction.load_encoder = lambda *_: encoder
        try:
            config = Config.model_validate({**sections, "data_dir": out})
            assert extract(config, "cpu").complete
        finally:
            extraction.load_encoder = load_encoder

    return run


# ---- memory


def flat(folder: Path, count: int) -> str:
    """Measure resident memory while a tiny encoder extracts ``count`` small images; return the table."""
    (folder / "tiny.json").write_text(TINY)
    images = [small_image(number) for number in range(512)]
    for number in range(count):
        subfolder = folder / "images" / f"{number // 1000:03d}"
        subfolder.mkdir(parents=True, exist_ok=True)
        (subfolder / f"{number:06d}.jpg").write_bytes(images[number % len(images)])
    config = Config.model_validate(
        {
            "data_dir": folder,
            "vision": {"model": str(folder / "tiny.json"), "image_size": 64},
            "features": {"store": "f.h5", "images": ["images"]},
        }
    )
    samples: list[tuple[int, float]] = []
    write, written = extraction.StoreWriter.write, [0]

    def write_and_sample(self, rows, features) -> None:
        write(self, rows, features)
        written[0] += len(rows)
        if not samples or written[0] - samples[-1][0] >= 5000 or written[0] == count:
            samples.append((written[0], resident()))

    extraction.StoreWriter.write = write_and_sample
    try:
        summary = extract(config, "cpu")
    finally:
        extraction.StoreWriter.write = write
    first = next(memory for done, memory in samples if done >= min(5000, count))
    lines = [
        f"{count:,} images at {summary.extracted / summary.wall_s:,.0f} images/s",
        "",
        "| images | MB |",
        "| --: | --: |",
    ]
    lines += [f"| {done:,} | {memory / 1e6:,.1f} |" for done, memory in samples]
    change = f"{samples[-1][1] / first - 1:+.2%}"
    return "\n".join([*lines, "", f"at the end {change} relative to the value after the first 5,000"])


def resident() -> int:
    """Resident memory of this process in bytes, without file pages."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Peak of resident memory inside the block above that at its start, sampled every 10 ms."""
    before, peak, ended = resident(), [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], resident() - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


# ---- images


def photograph(seed: int) -> bytes:
    """A 640 x 480 JPEG of smooth shapes with grain, about the size of a COCO photograph."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    grain = rng.normal(0, 9, (480, 640, 1))
    return _jpeg(Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)), 90)


def small_image(seed: int) -> bytes:
    """A 96 x 64 JPEG."""
    return _jpeg(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)), 80)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def processor() -> str:
    """Number of cores, architecture, and whether bfloat16 products have hardware support."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    bf16 = "AVX512-BF16" if "avx512_bf16" in flags else "no AVX512-BF16"
    return f"{os.cpu_count()} cores of {platform.machine()}, {bf16}"


if __name__ == "__main__":
    main()
