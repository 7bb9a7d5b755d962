"""What does the README.md of a saved adapter say: its parameters, settings, data and scores, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

LIBRARY = "multitask-vl"
EXCERPT = ("plugins", "seed", "backbone", "visual", "clip")
"""Sections that the card shows as YAML; the others have tables."""
LENGTHS = ("max_length", "no_repeat_ngram_size")
DECODING = {
    "greedy": LENGTHS,
    "beam": ("num_beams", *LENGTHS, "length_penalty", "early_stopping"),
    "choice": ("choices",),
    "rank": ("choices", "choices_file", "rank_by"),
}
"""Settings that play a part, by kind of decoding."""


def card(record: Mapping[str, Any]) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        record: the content of adapter_config.json; see `multitask_vl.methods.artifact.adapter_io.save_adapter`.
    """
    config, run, merged = record["config"], record["run"], record["merged"]
    methods = merged["method"] if merged else [one["name"] for one in config["method"]]
    pretrained = (merged or config["backbone"])["pretrained"]
    words = [*methods, *config["tasks"], config["backbone"]["family"], *(["merged"] if merged else [])]
    parts = [
        _front_matter(pretrained, words),
        f"# {', '.join(methods)} for {', '.join(config['tasks'])}",
        _what(record, pretrained),
        *_section("Use", [USE]),
        *_section("Parameters", [_parameters(record["parameters"])]),
        *_section("Method", [_table(("setting", "value"), _settings(one)) for one in config["method"]]),
        *_section("Routing", [_routing(config["routing"])]),
        *_section("Tasks", [_tasks(config["tasks"])]),
        *_section("Data", _data(run.get("data"))),
        *_section("Scores", _scores(run.get("scores"))),
        *_section("Training", _training(run.get("training"))),
        *_section("Configuration", [f"```yaml\n{_yaml({key: config[key] for key in EXCERPT})}```"]),
    ]
    return "\n\n".join(parts) + "\n"


USE = """\
```python
from multitask_vl.models.from_pretrained import from_pretrained

model, tokenizer = from_pretrained("FOLDER_OR_HUB_NAME")  # backbone="PATH" if its weights lie elsewhere here
print("%d of %d parameters trained" % model.parameter_counts())
```

From the command line, `python launch/evaluate.py --config RUN/resolved.yaml --adapter FOLDER --out DIR` scores it and \
`python launch/export.py --to merged FOLDER OUT` folds it into its language model where the method allows that."""


def hub_name(pretrained: str | None) -> str | None:
    """The name of weights on the hub, or None for a path, what ships with the project, and random weights."""
    if pretrained is None or ":" in pretrained or pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        return None
    return None if Path(pretrained).is_dir() else pretrained


def _front_matter(pretrained: str | None, words: Iterable[str]) -> str:
    tags = list(dict.fromkeys([LIBRARY, "vision-language", "parameter-efficient", *words]))
    data = ModelCardData(library_name=LIBRARY, base_model=hub_name(pretrained), tags=tags)
    return f"---\n{data.to_yaml().strip()}\n---"


def _what(record: Mapping[str, Any], pretrained: str | None) -> str:
    config, clip = record["config"], record["config"]["clip"]
    merged = "Folded into its language model, which is here as the library's own. " if record["merged"] else ""
    return (
        f"Trained tensors of a multitask vision-language model on {config['backbone']['family']} "
        f"({pretrained or 'random weights'}). {merged}It reads grid features of {clip['model']} "
        f"({clip['pretrained'] or 'random weights'}) with {config['visual']['feature_dim']} channels."
    )


def _parameters(counts: Mapping[str, Any]) -> str:
    rows = [(name, f"{one['trainable']:,}", f"{one['total']:,}") for name, one in counts["components"].items()]
    trainable, total = counts["trainable"], counts["total"]
    rows.append(("all", f"{trainable:,} ({100 * trainable / total:.2f} %)", f"{total:,}"))
    return _table(("component", "trainable", "total"), rows)


def _settings(section: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((key, _plain(value)) for key, value in section.items())


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
        told = _plain({key: decoding[key] for key in DECODING[decoding["kind"]]})
        rows.append((name, task["type"] or name, f"`{task['prompt']}`", f"{decoding['kind']}: {told}"))
    return _table(("task", "type", "prompt", "decoding"), rows)


def _data(data: Mapping[str, Any] | None) -> list[str]:
    rows = [
        (task, split, f"{one['examples']:,}", ", ".join(f"{name} `{sum_[:12]}`" for name, sum_ in one["files"].items()))
        for task, splits in (data or {}).items()
        for split, one in splits.items()
    ]
    return [_table(("task", "split", "examples", "files and the start of their SHA-256"), rows)] if rows else []


def _scores(splits: Mapping[str, Any] | None) -> list[str]:
    rows = [
        (split, task, one["headline"], f"{one['value']:.2f}", f"{one['count']:,}", one["version"])
        for split, scores in (splits or {}).items()
        for task, one in scores.items()
    ]
    told = "Of the whole split, on the scale 0-100 (CIDEr x 100)."
    table = _table(("split", "task", "metric", "score", "examples", "task's version"), rows)
    return [told, table] if rows else ["None yet."]


def _training(training: Mapping[str, Any] | None) -> list[str]:
    return [_table(("setting", "value"), _settings(training))] if training else []


def _section(title: str, parts: list[str]) -> list[str]:
    """A heading with what stands under it; nothing where nothing does."""
    return [f"## {title}", *parts] if parts else []


def _table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _plain(value: Any) -> str:
    """A value as one reads it in a line of YAML."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
