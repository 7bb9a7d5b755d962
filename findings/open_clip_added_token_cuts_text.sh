#!/usr/bin/env bash
# Guess:    SimpleTokenizer(additional_special_tokens=["<obj>"]) adds a token that a CLIP text tower, with one more
#           row in its vocabulary, reads like any other; the rest of the caption keeps its influence.
# Happens:  the text feature is taken at the position of the highest token id, by design the end-of-text
#           token. Added tokens get higher ids than that. The feature is then read at the added token, and
#           because the tower is causal, every word after it is ignored: the features are equal bit by bit.
# Matters:  "<obj> on the left" and "<obj> on the right" get the same embedding, so tuning on region, concept
#           or task tokens cannot learn from what follows them; no error, no warning, and training runs.
#           text_cfg pool_type="eos" with eos_id=49407 cures it (eos_id alone does nothing; its default is 2).
# Versions: open_clip_torch 3.3.0, torch 2.14.1.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  'torch==2.14.1' 'torchvision==0.29.1' 'open_clip_torch==3.3.0' 'timm==1.0.31'

CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer

print("open_clip_torch", version("open_clip_torch"), "torch", version("torch"))
torch.set_num_threads(1)
tokenizer = SimpleTokenizer(context_length=16, additional_special_tokens=["<obj>"])
vision = dict(image_size=32, layers=1, width=64, head_width=32, patch_size=8)


def model(**pooling):
    torch.manual_seed(0)
    text = dict(context_length=16, vocab_size=tokenizer.vocab_size, width=64, heads=2, layers=2, **pooling)
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()


def distance(clip, first, second):
    with torch.no_grad():
        a, b = clip.encode_text(tokenizer([first, second]))
    return (a - b).abs().max().item()


ids = tokenizer(["a photo of <obj> on the left"])[0].tolist()
obj, end = tokenizer.encoder["<obj>"], tokenizer.eot_token_id
print("ids", ids, " <obj> is", obj, " end of text is", end)
assert obj in ids and end in ids and obj > end

default = model()
pairs = {
    "a photo of a dog ...": ("a photo of a dog on the left", "a photo of a dog asleep under a big tree"),
    "a photo of <obj> ...": ("a photo of <obj> on the left", "a photo of <obj> asleep under a big tree"),
    "the dog ... <obj>": ("a dog on the left <obj>", "a cat on the left <obj>"),
}
for name, pair in pairs.items():
    print(f"default pooling, {name:22} largest difference of the two features {distance(default, *pair):.4f}")
assert distance(default, *pairs["a photo of a dog ..."]) > 0.1
assert distance(default, *pairs["a photo of <obj> ..."]) == 0.0
assert distance(default, *pairs["the dog ... <obj>"]) > 0.1            # words before the token still count

pair = pairs["a photo of <obj> ..."]
only_id = distance(model(eos_id=end), *pair)
cured = distance(model(pool_type="eos", eos_id=end), *pair)
print(f"eos_id={end} alone {only_id:.4f}; pool_type='eos' and eos_id={end} {cured:.4f}")
assert only_id == 0.0 and cured > 0.1
PY
echo "behavior as described"
