"""COCO captioning task: COCO's or Karpathy's files, one example per caption or image, caption metrics, results file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator

from multitask_vl.config.schema import DecodingConfig, DecodingMode, PositiveInt, TaskConfig
from multitask_vl.metrics.bootstrap import ConfidenceInterval, bootstrap_mean_ci
from multitask_vl.metrics.caption import SCORERS, CaptionScores, caption_scores, unavailable_scorers
from multitask_vl.metrics.caption_tokenizer import tokenize
from multitask_vl.registry import TASKS
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.tasks.base import (
    Example,
    LabelsHidden,
    Names,
    Paths,
    Scores,
    SplitConfig,
    Task,
    check_ids,
    key_template,
)
from multitask_vl.tasks.readers.formats import format_image_key
from multitask_vl.tasks.readers.json_stream import ErrorCollector, native_id, read_results, stream_json, stream_list
from multitask_vl.tasks.readers.submissions import check_results, expected_ids, strip_control_chars

ImageKey = key_template("stem", "image_id")


class CaptionSplit(SplitConfig):
    """Files of a split, in COCO's format (`images`, `annotations`) or Karpathy's (`dataset_coco.json`)."""

    captions: Paths
    """Files, folders or patterns: `captions_*.json`, `dataset_coco.json` or, without captions, `image_info_*.json`. The
    format of each file is detected by its content."""
    subset: Names | None = None
    """Karpathy's format only: which of its splits; `train` means train and restval, as in the literature. None: the
    name of the split under `splits:`."""
    unit: Literal["caption", "image"] | None = None
    """`caption`: every (image, caption) pair is an example, as published for training. `image`: one example per image
    with all its captions as references. None: `caption` for the split named train, else `image`."""
    image_key: ImageKey = "{stem}"
    """Template of an image's key in the feature store; `{stem}` is its file name up to the first dot."""


class CaptionDecoding(DecodingConfig):
    """Beam search with five beams."""

    mode: DecodingMode = "beam"
    num_beams: PositiveInt = 5
    max_length: PositiveInt = 40


class CaptionConfig(TaskConfig):
    """Published defaults (VL-Adapter, tables of sections 8.2 and 11.1), but a text over its limit is an error."""

    prompt: str = "caption: "
    max_input_tokens: PositiveInt | None = 40
    max_target_tokens: PositiveInt | None = 40
    batch_size_ratio: float = 50 / 60
    splits: dict[str, CaptionSplit] = {}
    decoding: CaptionDecoding = CaptionDecoding()
    scorers: tuple[Literal["Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE"], ...] = SCORERS
    """Metrics to compute. METEOR needs 8 s and a gigabyte for a thousand images."""

    @field_validator("scorers")
    @classmethod
    def _require_primary_metric(cls, scorers: tuple[str, ...]) -> tuple[str, ...]:
        if "CIDEr" not in scorers:
            raise ValueError("CIDEr is the primary metric and must be among the scorers")
        return scorers


@dataclass
class _Image:
    """An image of a file: fields of its key, and its captions with their ids."""

    id: int | str
    stem: str | None
    where: str
    captions: list[tuple[int | str, str]] = field(default_factory=list)


@TASKS.register("coco_caption")
class CocoCaption(Task[CaptionConfig]):
    """Captions of photographs. The input text of the model is the prompt alone."""

    Config = CaptionConfig
    primary_metric = "CIDEr"
    submission_name = "caption_results.json"
    has_text = False

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        return self.resolve_files({f"splits.{split}.captions": self.config.splits[split].captions})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.new_collector(split)
        unit = config.unit or ("caption" if split == "train" else "image")
        images: dict[int | str, _Image] = {}
        for path in self.expand_paths(config.captions):
            for image in _images(path, config, split, problems):
                if image.id in images:
                    problems.add("an image is listed twice", f"{image.where} ({image.id})")
                images[image.id] = image
        hidden = not any(image.captions for image in images.values())
        if hidden and unit == "caption" and images:
            problems.add("there are images but no captions", f"{config.captions[0]}")
        for image in images.values():
            if not image.captions and not hidden:
                problems.add("image without captions", f"{image.where} ({image.id})")
            fields = {"stem": image.stem, "image_id": image.id}
            key = format_image_key(config.image_key, fields, image.where, problems)
            if key is None:
                continue
            texts = tuple(text for _, text in image.captions)
            if unit == "image":
                yield Example(str(image.id), (key,), "", texts, (1.0,) * len(texts))
                continue
            for caption_id, text in image.captions:
                yield Example(f"{image.id}-{caption_id}", (key,), "", (text,), (1.0,))
        problems.raise_if_any()

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over all target tokens of the batch (VL-Adapter section 8.5); ``weights`` are not used."""
        return token_loss.sum(), valid.sum().to(token_loss)

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.aligned_predictions(examples, predictions)
        if not any(example.answers for example in examples):
            raise LabelsHidden(self.name)
        result = caption_scores(
            {e.id: e.answers for e in examples},
            {e.id: text for e, text in zip(examples, texts, strict=True)},
            tokenizer=options.get("caption_tokenizer", "ptb"),
            scorers=self.config.scorers,
        )
        metric = self.primary_metric
        return Scores(
            primary_metric=metric,
            metrics=result.corpus,
            per_example={id_: values[metric] for id_, values in result.per_image.items() if metric in values},
            notes=result.notes,
            version=self.version,
            intervals=_intervals(result),
        )

    def check_scoring(self, **options: Any) -> list[str]:
        # tokenizing one caption shows whether Java works, not only whether it is installed
        tokenize(["a dog"], options.get("caption_tokenizer", "ptb"))
        unavailable = unavailable_scorers(self.config.scorers)
        return [f"{scorer} will not be computed: {reason}" for scorer, reason in unavailable.items()]

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems = ErrorCollector(str(references))
        # the official toolkit processes images in the order of their list, which can matter; see caption_scores
        images = [item for key, item, _ in stream_json(references) if key == "images" and isinstance(item, dict)]
        texts = {str(image["id"]): [] for image in images if "id" in image}
        for item, where in stream_list(references, "annotations", problems):
            if (caption := _caption(item, where, problems)) is not None:
                texts.setdefault(str(caption[0]), []).append(caption[2])
        texts = {id_: captions for id_, captions in texts.items() if captions}
        problems.raise_if_any()
        results = read_results(predictions, "image_id", "caption", str(predictions))
        check_ids(texts, results, str(predictions))
        scores: CaptionScores = caption_scores(texts, results, options.get("caption_tokenizer", "ptb"))
        return {
            **scores.corpus,
            "intervals": {name: interval.as_json() for name, interval in _intervals(scores).items()},
            "notes": scores.notes,
            "images": len(results),
            "per_image": scores.per_image,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        results = [
            {"image_id": native_id(id_), "caption": strip_control_chars(text)} for id_, text in predictions.items()
        ]
        atomic_write_json(path, results)

    @classmethod
    def submission_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        """Ids of all images of COCO's own files, or of those in the option ``subset`` of Karpathy's file."""
        problems, subset = ErrorCollector(", ".join(map(str, questions))), options.get("subset")
        images = [found for path in questions for found in stream_list(path, "images", problems)]
        if subset is not None:
            images = [(item, where) for item, where in images if item.get("split") == subset]
        items = (({"id": item.get("cocoid", item.get("id"))}, where) for item, where in images)
        return expected_ids(items, "id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_results(submission, "image_id", "caption", ids)


def _intervals(scores: CaptionScores) -> dict[str, ConfidenceInterval]:
    """Interval of CIDEr, the primary metric. Resampling keeps the document frequencies of the full set."""
    if scores.corpus.get("CIDEr") is None:
        return {}
    values = [metrics["CIDEr"] for metrics in scores.per_image.values()]
    return {"CIDEr": bootstrap_mean_ci(values, "images (document frequencies stay those of the full set)")}


def _images(path: Path, config: CaptionSplit, split: str, problems: ErrorCollector) -> Iterator[_Image]:
    """Yield the images of a file that belong to the split, with their captions."""
    images: dict[int | str, _Image] = {}
    captions: list[tuple[tuple[int | str, int | str, str], str]] = []
    subsets: dict[str, int] = {}
    members = set()
    wanted = set(config.subset or (split,))
    if "train" in wanted:
        wanted.add("restval")
    for key, item, where in stream_json(path):
        members.add(key)
        if key not in ("images", "annotations"):
            continue
        if not isinstance(item, dict):
            problems.add(f"an item of '{key}' must be an object", where)
        elif key == "annotations":
            if (caption := _caption(item, where, problems)) is not None:
                captions.append((caption, where))
        elif "sentences" in item:
            if (subset := problems.require_field(item, "split", str, where)) is None:
                continue
            subsets[subset] = subsets.get(subset, 0) + 1
            if subset in wanted and (image := _karpathy_image(item, where, problems)) is not None:
                yield image
        elif (image := _official_image(item, where, problems)) is not None:
            if image.id in images:
                problems.add("an image is listed twice", f"{where} ({image.id})")
            images[image.id] = image
    if not members & {"images", "annotations"}:
        formats = "COCO's (images, annotations) or Karpathy's (images with sentences)"
        problems.add(f"the format must be {formats}", f"{path} contains {sorted(map(str, members))[:8]}")
    if subsets and not wanted & set(subsets):
        counts = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(subsets.items()))
        problems.add("the file has no image of the split", f"{path} has {counts}", "Choose with subset")
    if config.subset and images:
        problems.add("subset is for Karpathy's format only", f"{path}")
    _attach_captions(images, captions, "{stem" in config.image_key, problems)
    yield from images.values()


def _attach_captions(
    images: dict[int | str, _Image],
    captions: list[tuple[tuple[int | str, int | str, str], str]],
    needs_file_name: bool,
    problems: ErrorCollector,
) -> None:
    """Add captions to their images. An image that is not listed is added, unless its key needs the file name."""
    for (image_id, caption_id, text), where in captions:
        if image_id not in images and not needs_file_name:
            images[image_id] = _Image(image_id, None, where)
        if image_id in images:
            images[image_id].captions.append((caption_id, text))
        else:
            problems.add(
                "caption of an image that is not listed under 'images'", f"{where} (image {image_id})",
                "If the keys of the images are their ids, set image_key: '{image_id:012d}'",
            )  # fmt: skip


def _official_image(item: dict, where: str, problems: ErrorCollector) -> _Image | None:
    id_ = problems.require_field(item, "id", (int, str), where)
    name = problems.require_field(item, "file_name", str, where)
    return None if id_ is None or name is None else _Image(id_, _stem(name), where)


def _karpathy_image(item: dict, where: str, problems: ErrorCollector) -> _Image | None:
    # COCO's image id if there is one; Flickr files of this format only have a running number
    id_ = problems.require_field(item, "cocoid" if "cocoid" in item else "imgid", (int, str), where)
    name = problems.require_field(item, "filename", str, where)
    sentences = problems.require_field(item, "sentences", list, where)
    if None in (id_, name, sentences):
        return None
    image = _Image(id_, _stem(name), where)
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if isinstance(raw, str) and raw.strip():
            image.captions.append((sentence.get("sentid", number), raw.strip()))
        else:
            problems.add("a sentence must have the text 'raw', not blank", f"{where} (image {id_})")
    return image


def _caption(item: dict, where: str, problems: ErrorCollector) -> tuple[int | str, int | str, str] | None:
    """Image id, caption id and stripped text of an annotation."""
    image_id = problems.require_field(item, "image_id", (int, str), where)
    caption_id = problems.require_field(item, "id", (int, str), where)
    text = problems.require_field(item, "caption", str, where)
    if text is not None and not text.strip():
        problems.add("a caption is blank", where)
    elif None not in (image_id, caption_id, text):
        return image_id, caption_id, text.strip()
    return None


def _stem(name: str) -> str:
    return Path(name).name.split(".", 1)[0]
