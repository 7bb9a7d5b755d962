"""How is a caption cut into words before it is scored: the official Java tokenizer, or one that needs no Java."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from multitask_vl.errors import InputError

# Tokens that the official scorer drops after cutting. It lists round and curly brackets in upper case while its
# tokenizer writes lower case, so bracket tokens survive; both tokenizers here keep that habit.
DROPPED = frozenset(ptbtokenizer.PUNCTUATIONS) | {'"'}

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... "})
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


def words(captions: Sequence[str], tokenizer: str) -> list[str]:
    """Captions as words with single blanks between them: lower case, punctuation dropped.

    Args:
        captions: as written or generated; line breaks count as blanks.
        tokenizer: ``ptb`` (Stanford CoreNLP 3.4.1, the official one, needs Java) or ``python``.

    Raises:
        InputError: ``ptb`` without a working Java, or a tokenizer of another name.
    """
    # JSON can name half of a surrogate pair, which no scorer can write down; it becomes "?", which is dropped
    lines = [" ".join(caption.split()).encode(errors="replace").decode() for caption in captions]
    if tokenizer == "ptb":
        cut = _ptb(lines)
    elif tokenizer == "python":
        cut = [cut_plain(line) for line in lines]
    else:
        raise InputError(f"caption tokenizer {tokenizer!r} is not known (known: ptb, python)")
    return [" ".join(word for word in line if word not in DROPPED) for line in cut]


def cut_plain(line: str) -> list[str]:
    """Words and punctuation of one line, as Penn Treebank cuts plain sentences."""
    line = _CONTRACTION.sub(lambda found: " " + found[0], line.lower().translate(_PLAIN))
    return [_BRACKETS.get(word, word.replace(" ", "\u00a0")) for word in _WORD.findall(line)]


def _ptb(lines: Sequence[str]) -> list[list[str]]:
    # The library's own wrapper writes into its installed folder and decodes by the locale; neither is safe everywhere.
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    options = ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options]
    mend = (
        "Install Java (Debian: apt-get install default-jre-headless), or choose the tokenizer python "
        "(evaluation.caption_tokenizer=python, or --caption-tokenizer python)"
    )
    if shutil.which("java") is None:
        raise InputError(f"the caption tokenizer 'ptb' needs Java, and there is no 'java' on PATH. {mend}")
    done = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise InputError(f"the caption tokenizer 'ptb' failed: java ended with {done.returncode} {said}. {mend}")
    cut = done.stdout.decode().split("\n")[: len(lines)]
    if len(cut) < len(lines):
        raise RuntimeError(f"the PTB tokenizer gave {len(cut)} lines for {len(lines)}")
    # by single blanks: the tokenizer puts a no-break space inside "22 3/4", and ROUGE counts that as one word
    return [line.rstrip().split(" ") for line in cut]
