"""Caption tokenizers for scoring: the official Java one (PTB) and one in Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from multitask_vl.errors import InputError

# Tokens that the official scorer drops after tokenizing. It lists round and curly brackets in upper case while its
# tokenizer writes lower case, so bracket tokens are kept; both tokenizers here reproduce that.
PTB_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS) | {'"'}

_TO_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... "})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|prof|vs|etc|mt|ft|ave|blvd|rd|inc|co|corp|ltd|jan|feb|aug|sept?|oct|nov|dec|gen|lt"
)
# don't -> do n't, dog's -> dog 's, cannot -> can not
_CONTRACTION = re.compile(
    r"(?<=[a-z])n't\b|(?<=\w)'(?:s|m|d|re|ve|ll)\b|(?<=\bcan)not\b|(?<=\bgon|\bwan)na\b|(?<=\bgot)ta\b"
)
_WORD = re.compile(
    rf"""
    \d+\ \d+/\d+\b                                          # 22 3/4 is one word, see _ptb
  | (?:[a-z]\.)+[a-z]\b(?!\.) | (?:[a-z]\.){{2,}} | [a-z]\.(?=\ \w)   # u.s. and initials
  | \b(?:{_ABBREVIATIONS})\.                                  # mr. keeps its period
  | '(?:s|m|d|re|ve|ll|n')(?!\w) | n't\b | '\d0s\b
  | \d+(?:[.,:]\d+)+(?!\w) | [#@]?\w+(?:(?:[-/.&]|(?<=[a-z])'(?=[a-z]))\w+)*  # 1,000 10:30 e-mail o'clock
  | \.\.\. | --+ | [!?]+ | \S
    """,
    re.VERBOSE,
)


def tokenize(captions: Sequence[str], tokenizer: str) -> list[str]:
    """Tokenize captions for scoring: lower case, without punctuation, tokens separated by single spaces.

    Args:
        captions: human or generated captions; line breaks count as spaces.
        tokenizer: ``ptb`` (Stanford CoreNLP 3.4.1, the official one, needs Java) or ``python``.

    Raises:
        InputError: ``ptb`` without a working Java, or an unknown tokenizer.
    """
    # JSON can contain a lone surrogate, which no scorer can encode; it becomes "?", which is dropped
    lines = [" ".join(caption.split()).encode(errors="replace").decode() for caption in captions]
    if tokenizer == "ptb":
        tokens = _ptb(lines)
    elif tokenizer == "python":
        tokens = [simple_tokenize(line) for line in lines]
    else:
        raise InputError(f"caption tokenizer {tokenizer!r} is not known (known: ptb, python)")
    return [" ".join(token for token in line if token not in PTB_PUNCTUATION) for line in tokens]


def simple_tokenize(line: str) -> list[str]:
    """Split one line into words and punctuation by the Penn Treebank rules for plain sentences."""
    line = _CONTRACTION.sub(lambda match: " " + match[0], line.lower().translate(_TO_ASCII))
    return [_BRACKETS.get(token, token.replace(" ", "\u00a0")) for token in _WORD.findall(line)]


def _ptb(lines: Sequence[str]) -> list[list[str]]:
    # pycocoevalcap's wrapper writes into its installed folder and decodes with the locale; neither is safe everywhere
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    options = ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options]
    fix = (
        "Install Java (Debian: apt-get install default-jre-headless), or choose the tokenizer python "
        "(evaluation.caption_tokenizer=python, or --caption-tokenizer python)"
    )
    if shutil.which("java") is None:
        raise InputError(f"the caption tokenizer 'ptb' needs Java, and there is no 'java' on PATH. {fix}")
    process = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    if process.returncode != 0:
        message = process.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise InputError(
            f"the caption tokenizer 'ptb' failed: java exited with code {process.returncode} {message}. {fix}"
        )
    tokenized = process.stdout.decode().split("\n")[: len(lines)]
    if len(tokenized) < len(lines):
        raise RuntimeError(f"the PTB tokenizer returned {len(tokenized)} lines for {len(lines)}")
    # split at single spaces: the tokenizer puts a no-break space inside "22 3/4", and ROUGE counts that as one word
    return [line.rstrip().split(" ") for line in tokenized]
