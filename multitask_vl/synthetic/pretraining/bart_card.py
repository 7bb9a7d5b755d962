"""What does the card of the tiny BART say: what it read, how long, with which losses, what it can do and what not."""

from __future__ import annotations

from collections.abc import Mapping

from multitask_vl.synthetic.pretraining.bart_probe import REQUIRED

TEXT = """# Tiny BART of the embedded world

`BartForConditionalGeneration` of transformers from a small config ({sizes}; {parameters:,} parameters, weights in
float16), with a byte-level BPE of its own ({vocabulary} entries: every word of the world is one token at the start of a
text and after a blank; then `<extra_id_99..0>` and `<vis_extra_id_99..0>`, `<vis_extra_id_i>` having id V-1-i). The 200
extra tokens are part of the vocabulary already, so that `extra_tokens: 200` (the default) adds none:

    backbone: {{family: bart, pretrained: "embedded:bart"}}

## What it was trained on

Only text, made by `documents*.py` from random streams of its own: no picture, no item of the fine-tuning tasks, no
held-out combination of colour and shape, none of the wordings marked as held out. A document is a question or a
statement with its prompt, the objects it is about, and the answer, in one of two forms:

- *plain*: the objects follow the question in words ("there is a large striped red star upper leftmost.");
- *collapsed*: every grid cell is ONE vector behind the question: the normalised sum of the embeddings of its words
  (of "nothing" where it is empty), plus the row `<vis_extra_id_i>` of its cell i in a 4x4 grid, plus a row for its
  picture (`<extra_id_0>` first or only, `<extra_id_1>` second), with noise of spread {noise}. It has no position row
  and does not pass the embedding LayerNorm: the form in which the multitask model hands over a visual token.

Prompts are varied (`vqa: `, `gqa: `, `gpa: ` for questions, `nlvr: `, `caption: `, now and then none), and in {garbled}
of the questions some filler words ("is", "there", "can", "you", "show", ...) are left out or exchanged for others, or
the first words are moved to the end. So the words of the held-out wordings occur here and there; the wordings do not.

Besides: captions of collapsed scenes, and denoising (words of the world's sentences masked, the whole text written).

## What loss

**Not standard denoising pretraining.** Denoising as in BART is {denoising}. The rest is reading comprehension with
four losses: cross-entropy of the answer (weight 1 on its words, 0.1 on `<s>` and `</s>`); the same answer read off the
encoder's first position through the word embedding; which objects the question speaks of, read off the encoder at each
object by a throw-away linear layer; in the plain form, which attributes each object has, likewise. A template gets more
objects (2 to 5) as it is mastered, and comes up less often; look-up and existence come first.

## How long

{how_long}

Rebuild: `python -m multitask_vl.synthetic.pretraining.pretrain bart`. Check: `python -m multitask_vl.synthetic.pretraining.probe bart`.

## What it can do

Share of answers exactly right (greedy, first word to `</s>`), scenes of probe seed {seed} with 2-5 objects a picture
and every cell present, held-out wordings, {per_skill} documents a skill. Yes/no and true/false have a chance level of
50.

| skill | collapsed | required | plain | required |
|---|---|---|---|---|
{skills}

By template, with the collapsed form in the wordings of training beside it:

| template | collapsed | collapsed, seen wordings | plain |
|---|---|---|---|
{templates}

## Limits

One world, one language of {words} words; the rows of cells 16 to 99 are untrained (grids other than 4x4 need the box
branch of the visual embedding to tell cells apart). Where the held-out wording scores far below the
seen ones, it is taken for another template's: "number of" for counting, "or" between two things for a choice.
"""


def card(
    found: Mapping[str, Mapping[str, float]],
    seen: Mapping[str, float],
    skills: list[str],
    facts: Mapping[str, object],
) -> str:
    """The card as markdown.

    Args:
        found: result of `bart_probe.probe`.
        seen: the collapsed part of its result for the wordings of training.
        skills: the rows of ``found`` that are skills; the others are templates.
        facts: what `TEXT` asks for besides the two tables.
    """

    def asked(form: str, skill: str) -> str:
        target = REQUIRED.get((form, skill))
        if target is None:
            return "-"
        return f">= {target:g}" + ("" if found[form][skill] >= target else " (missed)")

    def row(*cells: object) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    collapsed, plain = found["collapsed"], found["plain"]
    return TEXT.format(
        skills="\n".join(
            row(name, f"{collapsed[name]:.1f}", asked("collapsed", name), f"{plain[name]:.1f}", asked("plain", name))
            for name in skills
        ),
        templates="\n".join(
            row(name, f"{collapsed[name]:.1f}", f"{seen[name]:.1f}", f"{plain[name]:.1f}")
            for name in collapsed
            if name not in skills or name == "count"
        ),
        **facts,
    )
