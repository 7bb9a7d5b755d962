#!/usr/bin/env bash
# Guess:    a caption that ends in a Windows line end ("\r\n") is scored like the same caption without
#           it; at worst that one caption is affected.
# Happens:  pycocoevalcap's PTB tokenizer sends all captions to Java one a line. It replaces "\n" inside
#           a caption but not "\r", which Java also reads as a line end. Every later line then belongs to the
#           wrong image and the last is dropped. Same keys, same counts, no warning.
# Matters:  captions read from a text file made on Windows, or one stray "\r" in a generated caption, move
#           all captions after it by one image: here perfect captions fall from CIDEr 10 to 4.
#           " ".join(caption.split()) before the tokenizer cures it. A "\r" at the very end, without "\n", is harmless.
# Versions: pycocoevalcap 1.2, numpy 2.4.6, Java 17. Needs `java`.
set -euo pipefail
command -v java >/dev/null || { echo "this script needs java" >&2; exit 2; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pycocoevalcap==1.2' 'numpy==2.4.6'

"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

print("pycocoevalcap", version("pycocoevalcap"))
captions = [
    "a brown dog runs on the beach",
    "two cats sleep on a red couch",
    "a man rides a horse near a lake",
    "a blue bus stops at the station",
    "a child eats an apple in a park",
]


def tokenized(texts):
    return PTBTokenizer().tokenize({i: [{"caption": t}] for i, t in enumerate(texts)})


def scores(references, predictions):
    bleu, _ = Bleu(4).compute_score(references, predictions, verbose=0)
    cider, _ = Cider().compute_score(references, predictions)
    return round(float(bleu[3]), 3), round(float(cider), 3)


predictions = tokenized(captions)
clean = scores(tokenized(captions), predictions)
print("all clean:                 BLEU-4, CIDEr =", clean)
assert clean == (1.0, 10.0)

for name, text in (("ends in CR LF", captions[1] + "\r\n"), ("CR inside", captions[1].replace(" on", "\r on"))):
    references = tokenized([captions[0], text, *captions[2:]])
    got = scores(references, predictions)
    print(f"reference 1 {name}: BLEU-4, CIDEr = {got}")
    for image, lines in references.items():
        print("   image", image, lines)
    assert sorted(references) == list(range(5)) and all(len(v) == 1 for v in references.values())
    assert references[3] == [captions[2]] and references[4] == [captions[3]]       # shifted by one
    assert captions[4] not in [line for v in references.values() for line in v]    # the last is lost
    assert got[0] < 0.6 and got[1] < 6

cured = tokenized([captions[0], " ".join((captions[1] + "\r\n").split()), *captions[2:]])
assert scores(cured, predictions) == clean
print("white space joined first:  BLEU-4, CIDEr =", scores(cured, predictions))
PY
echo "behavior as described"
