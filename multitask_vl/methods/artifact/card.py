"""Model card of a saved adapter: how to load it, parameters, settings, data, scores and training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

LIBRARY = "multitask-vl"
YAML_SECTIONS = ("plugins", "seed", "backbone", "visual", "vision")
"""Sections that the card shows as YAML; the others have tables."""
LENGTHS = ("max_length", "no_repeat_ngram_size")
DECODING_KEYS = {
    "greedy": LENGTHS,
    "beam": ("num_beams", *LENGTHS, "length_penalty", "early_stopping"),
    "classify": ("choices",),
    "rank": ("choices", "choices_file", "length_normalize"),
}
"""Decoding mode -> the settings that affect it."""

USE = """\
```python
import multitask_vl as mvl

model, tokenizer = mvl.from_pretrained("FOLDER_OR_HUB_NAME")  # backbone="PATH" if the base weights have moved
print("%d of %d parameters are trainable" % model.parameter_counts())
```

Score it on a split:

```bash
multitask-vl evaluate --config RUN/resolved.yaml --adapter FOLDER --out DIR
```

Merge it into its language model, if the method allows it:

```bash
multitask-vl export --to merged FOLDER OUT
```"""


def card(record: Mapping[str, Any]) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        record: content of adapter_config.json; see `multitask_vl.methods.artifact.adapter_io.save_adapter`.
    """
    config, run, merged = record["config"], record["run"], record["merged"]
    methods = merged["method"] if merged else [method["name"] for method in config["method"]]
    pretrained = (merged or config["backbone"])["pretrained"]
    tags = [*methods, *config["tasks"], config["backbone"]["family"], *(["merged"] if merged else [])]
    sections = [
        _front_matter(pretrained, tags),
        f"# {', '.join(methods)} for {', '.join(config['tasks'])}",
        _summary(record, pretrained),
        *_section("Usage", [USE]),
        *_section("Parameters", [_parameters(record["parameters"])]),
        *_section("Method", [_table(("setting", "value"), _settings(method)) for method in config["method"]]),
        *_section("Routing", [_routing(config["routing"])]),
        *_section("Tasks", [_tasks(config["tasks"])]),
        *_section("Data", _data(run.get("data"))),
        *_section("Scores", _scores(run.get("scores"))),
        *_section("Training", _training(run.get("training"))),
        *_section("Configuration", [f"```yaml\n{_yaml({key: config[key] for key in YAML_SECTIONS})}```"]),
    ]
    return "\n\n".join(sections) + "\n"


def hub_name(pretrained: str | None) -> str | None:
    """The hub name of base weights, or None for a path, bundled weights (``bundled:``) and random weights."""
    if pretrained is None or ":" in pretrained or pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        return None
    return None if Path(pretrained).is_dir() else pretrained


def _front_matter(pretrained: str | None, tags: Iterable[str]) -> str:
    tags = list(dict.fromkeys([LIBRARY, "vision-language", "parameter-efficient", *tags]))
    data = ModelCardData(library_name=LIBRARY, base_model=hub_name(pretrained), tags=tags)
    return f"---\n{data.to_yaml().strip()}\n---"


def _summary(record: Mapping[str, Any], pretrained: str | None) -> str:
    config, vision = record["config"], record["config"]["vision"]
    base = f"{config['backbone']['family']} ({pretrained or 'random weights'})"
    kind = "Merged model" if record["merged"] else "Adapter"
    merged = ""
    if record["merged"]:
        merged = " The method is merged into the language model, which is saved in the format of transformers."
    return (
        f"{kind} for multitask vision-language learning on {base}.{merged} It reads text and image features of "
        f"{vision['model']} ({vision['pretrained'] or 'random weights'}) with {config['visual']['feature_dim']} "
        "channels per grid cell."
    )


def _parameters(counts: Mapping[str, Any]) -> str:
    rows = [(name, f"{part['trainable']:,}", f"{part['total']:,}") for name, part in counts["components"].items()]
    trainable, total = counts["trainable"], counts["total"]
    rows.append(("all", f"{trainable:,} ({100 * trainable / total:.2f} %)", f"{total:,}"))
    return _table(("component", "trainable", "total"), rows)


def _settings(section: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((key, _inline(value)) for key, value in section.items())


def _routing(routing: Mapping[str, Any]) -> str:
    function = routing["function"]
    if isinstance(function, str):
        function = {"every task": function}
    rows = {**{f"function, {task}": name for task, name in function.items()}, **routing}
    del rows["function"]
    return _table(("setting", "value"), _settings(rows))


def _tasks(tasks: Mapping[str, Any]) -> str:
    rows = []
    for name, task in tasks.items():
        decoding = task["decoding"]
        settings = _inline({key: decoding[key] for key in DECODING_KEYS[decoding["mode"]]})
        rows.append((name, task["type"] or name, f"`{task['prompt']}`", f"{decoding['mode']}: {settings}"))
    return _table(("task", "type", "prompt", "decoding"), rows)


def _data(data: Mapping[str, Any] | None) -> list[str]:
    rows = [
        (task, split, f"{one['examples']:,}", ", ".join(f"{name} `{sha[:12]}`" for name, sha in one["files"].items()))
        for task, splits in (data or {}).items()
        for split, one in splits.items()
    ]
    return [_table(("task", "split", "examples", "files (first 12 digits of the SHA-256)"), rows)] if rows else []


def _scores(splits: Mapping[str, Any] | None) -> list[str]:
    rows = [
        (split, task, score["primary_metric"], f"{score['value']:.2f}", f"{score['count']:,}", score["version"])
        for split, scores in (splits or {}).items()
        for task, score in scores.items()
    ]
    note = "Scores of the full split on a scale of 0-100 (CIDEr x 100)."
    table = _table(("split", "task", "metric", "score", "examples", "task version"), rows)
    return [note, table] if rows else ["Not evaluated yet."]


def _training(training: Mapping[str, Any] | None) -> list[str]:
    return [_table(("setting", "value"), _settings(training))] if training else []


def _section(title: str, paragraphs: list[str]) -> list[str]:
    """A heading with its paragraphs; nothing if there are none."""
    return [f"## {title}", *paragraphs] if paragraphs else []


def _table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _inline(value: Any) -> str:
    """A value in one line of YAML; the pairs of a mapping without braces."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
