"""What is captioning here: COCO's or Karpathy's files, one example a caption or an image, caption metrics, results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator

from multitask_vl.config.schema import DecodingConfig, DecodingKind, Positive, TaskConfig
from multitask_vl.metrics.bootstrap import Interval, interval_of_mean
from multitask_vl.metrics.caption import SCORERS, CaptionScores, caption_scores, lacking
from multitask_vl.metrics.caption_tokenizer import words
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import (
    Example,
    HiddenAnswers,
    Names,
    Paths,
    Scores,
    SplitConfig,
    Task,
    check_ids,
    key_template,
)
from multitask_vl.tasks.readers.formats import key_of
from multitask_vl.tasks.readers.json_stream import Problems, items_of, official_id, read_results, walk, write_json
from multitask_vl.tasks.readers.submissions import check_results, ids_of, one_line

ImageKey = key_template("stem", "image_id")


class CaptionSplit(SplitConfig):
    """The files of a split, in COCO's own layout (`images`, `annotations`) or Karpathy's (`dataset_coco.json`)."""

    captions: Paths
    """Files, folders or patterns: `captions_*.json`, `dataset_coco.json` or, without captions, `image_info_*.json`;
    which of them, the content says."""
    subset: Names | None = None
    """Karpathy's layout only: which of its splits; `train` stands for train and restval, as everywhere in print. None:
    the split's own name under `splits:`."""
    one_per: Literal["caption", "image"] | None = None
    """`caption`: every (image, caption) pair is an example, as published for training. `image`: one example an image
    with all its captions as references. None: `caption` for the split named train, else `image`."""
    image_key: ImageKey = "{stem}"
    """How a picture is called in the feature store; `{stem}` is its file name up to the first dot."""


class CaptionDecoding(DecodingConfig):
    """Five beams."""

    kind: DecodingKind = "beam"
    num_beams: Positive = 5
    max_length: Positive = 40


class CaptionConfig(TaskConfig):
    """Published defaults (VL-Adapter, tables of sections 8.2 and 11.1), but a text over its limit is an error."""

    prompt: str = "caption: "
    max_input_tokens: Positive | None = 40
    max_target_tokens: Positive | None = 40
    batch_share: float = 50 / 60
    splits: dict[str, CaptionSplit] = {}
    decoding: CaptionDecoding = CaptionDecoding()
    scorers: tuple[Literal["Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE"], ...] = SCORERS
    """Which metrics are computed; METEOR takes 8 s and a gigabyte for a thousand images."""

    @field_validator("scorers")
    @classmethod
    def _with_headline(cls, scorers: tuple[str, ...]) -> tuple[str, ...]:
        if "CIDEr" not in scorers:
            raise ValueError("CIDEr stands for the task in tables and must be among the scorers")
        return scorers


@dataclass
class _Image:
    """An image of a file: what its key is made of, and its captions with their ids."""

    id: int | str
    stem: str | None
    where: str
    captions: list[tuple[int | str, str]] = field(default_factory=list)


@TASKS.register("coco_caption")
class CocoCaption(Task[CaptionConfig]):
    """Captions of photographs. The model's text is the prompt alone."""

    Config = CaptionConfig
    headline = "CIDEr"
    submission_name = "caption_results.json"
    reads_text = False

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        return self.existing({f"splits.{split}.captions": self.config.splits[split].captions})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.collected(split)
        one_per = config.one_per or ("caption" if split == "train" else "image")
        images: dict[int | str, _Image] = {}
        for path in self.files(config.captions):
            for image in _images(path, config, split, problems):
                if image.id in images:
                    problems.add("an image is listed twice", f"{image.where} ({image.id})")
                images[image.id] = image
        hidden = not any(image.captions for image in images.values())
        if hidden and one_per == "caption" and images:
            problems.add("there are images but no captions", f"{config.captions[0]}")
        for image in images.values():
            if not image.captions and not hidden:
                problems.add("image without captions", f"{image.where} ({image.id})")
            key = key_of(config.image_key, {"stem": image.stem, "image_id": image.id}, image.where, problems)
            if key is None:
                continue
            texts = tuple(text for _, text in image.captions)
            if one_per == "image":
                yield Example(str(image.id), (key,), "", texts, (1.0,) * len(texts))
                continue
            for caption_id, text in image.captions:
                yield Example(f"{image.id}-{caption_id}", (key,), "", (text,), (1.0,))
        problems.raise_any()

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over all target tokens of the batch (VL-Adapter section 8.5); weights do not enter."""
        return token_loss.sum(), valid.sum().to(token_loss)

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if not any(example.answers for example in examples):
            raise HiddenAnswers(self.name)
        found = caption_scores(
            {e.id: e.answers for e in examples},
            {e.id: text for e, text in zip(examples, texts, strict=True)},
            tokenizer=options.get("caption_tokenizer", "ptb"),
            scorers=self.config.scorers,
        )
        return Scores(
            headline=self.headline,
            metrics=found.corpus,
            per_example={
                id_: values[self.headline] for id_, values in found.per_image.items() if self.headline in values
            },
            notes=found.notes,
            version=self.version,
            intervals=_intervals(found),
        )

    def check_scoring(self, **options: Any) -> list[str]:
        # one caption tells whether Java works, not only whether it is there
        words(["a dog"], options.get("caption_tokenizer", "ptb"))
        return [f"{scorer} will not be computed: {why}" for scorer in self.config.scorers if (why := lacking(scorer))]

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems = Problems(str(references))
        # the toolkit goes through images in the order of their list, which can matter; see caption_scores
        listed = [item for key, item, _ in walk(references) if key == "images" and isinstance(item, dict)]
        texts = {str(image["id"]): [] for image in listed if "id" in image}
        for item, where in items_of(references, "annotations", problems):
            if (caption := _caption(item, where, problems)) is not None:
                texts.setdefault(str(caption[0]), []).append(caption[2])
        texts = {id_: captions for id_, captions in texts.items() if captions}
        problems.raise_any()
        results = read_results(predictions, "image_id", "caption", str(predictions))
        check_ids(texts, results, str(predictions))
        found: CaptionScores = caption_scores(texts, results, options.get("caption_tokenizer", "ptb"))
        return {
            **found.corpus,
            "intervals": {name: one.as_json() for name, one in _intervals(found).items()},
            "notes": found.notes,
            "images": len(results),
            "per_image": found.per_image,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        results = [{"image_id": official_id(id_), "caption": one_line(text)} for id_, text in predictions.items()]
        write_json(path, results)

    @classmethod
    def official_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        """Of COCO's own files all images; of Karpathy's those of the split that the option ``subset`` names."""
        problems, subset = Problems(", ".join(map(str, questions))), options.get("subset")
        listed = [found for path in questions for found in items_of(path, "images", problems)]
        if subset is not None:
            listed = [(item, where) for item, where in listed if item.get("split") == subset]
        items = (({"id": item.get("cocoid", item.get("id"))}, where) for item, where in listed)
        return ids_of(items, "id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_results(submission, "image_id", "caption", ids)


def _intervals(found: CaptionScores) -> dict[str, Interval]:
    """Of CIDEr, the only headline; a resampled set would have document frequencies of its own."""
    if found.corpus.get("CIDEr") is None:
        return {}
    values = [of_image["CIDEr"] for of_image in found.per_image.values()]
    return {"CIDEr": interval_of_mean(values, "images (document frequencies stay those of the whole set)")}


def _images(path: Path, config: CaptionSplit, split: str, problems: Problems) -> Iterator[_Image]:
    """The images of a file that belong to the split, with their captions."""
    listed: dict[int | str, _Image] = {}
    captions: list[tuple[tuple[int | str, int | str, str], str]] = []
    subsets: dict[str, int] = {}
    seen = set()
    wanted = set(config.subset or (split,))
    if "train" in wanted:
        wanted.add("restval")
    for key, item, where in walk(path):
        seen.add(key)
        if key not in ("images", "annotations"):
            continue
        if not isinstance(item, dict):
            problems.add(f"an item of '{key}' must be an object", where)
        elif key == "annotations":
            if (caption := _caption(item, where, problems)) is not None:
                captions.append((caption, where))
        elif "sentences" in item:
            if (subset := problems.field(item, "split", str, where)) is None:
                continue
            subsets[subset] = subsets.get(subset, 0) + 1
            if subset in wanted and (image := _karpathy(item, where, problems)) is not None:
                yield image
        elif (image := _official(item, where, problems)) is not None:
            if image.id in listed:
                problems.add("an image is listed twice", f"{where} ({image.id})")
            listed[image.id] = image
    if not seen & {"images", "annotations"}:
        known = "COCO's (images, annotations) or Karpathy's (images with sentences)"
        problems.add(f"a layout is expected that is {known}", f"{path} holds {sorted(map(str, seen))[:8]}")
    if subsets and not wanted & set(subsets):
        found = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(subsets.items()))
        problems.add("the file has no image of the split", f"{path} has {found}", "Choose with subset")
    if config.subset and listed:
        problems.add("subset is for Karpathy's layout only", f"{path}")
    by_name = "{stem" in config.image_key
    for (image_id, caption_id, text), where in captions:
        if image_id not in listed and not by_name:
            listed[image_id] = _Image(image_id, None, where)
        if image_id in listed:
            listed[image_id].captions.append((caption_id, text))
        else:
            problems.add(
                "caption of an image that is not listed under 'images'", f"{where} (image {image_id})",
                "If pictures are called by their id, set image_key: '{image_id:012d}'",
            )  # fmt: skip
    yield from listed.values()


def _official(item: dict, where: str, problems: Problems) -> _Image | None:
    id_ = problems.field(item, "id", (int, str), where)
    name = problems.field(item, "file_name", str, where)
    return None if id_ is None or name is None else _Image(id_, _stem(name), where)


def _karpathy(item: dict, where: str, problems: Problems) -> _Image | None:
    # COCO's own image id where there is one; the Flickr files of the same layout have only their running number
    id_ = problems.field(item, "cocoid" if "cocoid" in item else "imgid", (int, str), where)
    name = problems.field(item, "filename", str, where)
    sentences = problems.field(item, "sentences", list, where)
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


def _caption(item: dict, where: str, problems: Problems) -> tuple[int | str, int | str, str] | None:
    """Image id, caption id and stripped text of an annotation."""
    image_id = problems.field(item, "image_id", (int, str), where)
    caption_id = problems.field(item, "id", (int, str), where)
    text = problems.field(item, "caption", str, where)
    if text is not None and not text.strip():
        problems.add("a caption is blank", where)
    elif None not in (image_id, caption_id, text):
        return image_id, caption_id, text.strip()
    return None


def _stem(name: str) -> str:
    return Path(name).name.split(".", 1)[0]
