#!/usr/bin/env bash
# Guess:    LoraConfig(target_modules=["out_proj", ...]) trains the attention's output projection of a CLIP
#           from open_clip, as it does in transformers' CLIP, whose layer has the same name; or peft refuses.
# Happens:  peft wraps it and counts its parameters as trainable, but open_clip's attention is
#           nn.MultiheadAttention, which reads out_proj.weight and never calls the wrapper. The adapter gets
#           no gradient and changes nothing; "all-linear" includes it too. Once merged, the same adapter does count.
# Matters:  part of the adapter stays at its initial value without a word, and an adapter that holds other
#           values gives one model before merge_and_unload and another one after.
#           Target the whole attention ("attn"): peft has a wrapper for nn.MultiheadAttention that works.
# Versions: peft 0.21.2, open_clip_torch 3.3.0, torch 2.14.1, transformers 5.24.0.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  'torch==2.14.1' 'torchvision==0.29.1' 'open_clip_torch==3.3.0' 'timm==1.0.31' 'peft==0.21.2' 'transformers==5.24.0'

CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PY'
import warnings
from importlib.metadata import version
import open_clip
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel

for name in ("peft", "open_clip_torch", "torch", "transformers"):
    print(name, version(name))
torch.set_num_threads(1)
images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
vision = dict(image_size=32, layers=2, width=64, head_width=32, patch_size=8)
text = dict(context_length=16, vocab_size=100, width=64, heads=2, layers=2)


def open_clip_model():
    torch.manual_seed(0)
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).visual


def transformers_model():
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8))


def pooled(model):
    out = model(images)
    return out if torch.is_tensor(out) else out.pooler_output


def train(base, targets):
    """Ten AdamW steps; which LoRA B matrices (zero at the start) have moved?"""
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(10):
        pooled(model).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n: bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n}


def report(name, moved, wanted):
    out = [v for n, v in moved.items() if "out_proj" in n]
    rest = [v for n, v in moved.items() if "out_proj" not in n]
    print(f"{name:42} out_proj moved {sum(out)} of {len(out)}, others {sum(rest)} of {len(rest)}")
    assert len(out) == 2 and sum(out) == wanted and all(rest)


with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    report('transformers, ["out_proj", "fc1", "fc2"]', train(transformers_model(), ["out_proj", "fc1", "fc2"]), 2)
    report('open_clip, ["out_proj", "c_fc", "c_proj"]', train(open_clip_model(), ["out_proj", "c_fc", "c_proj"]), 0)
    report('open_clip, "all-linear"', train(open_clip_model(), "all-linear"), 0)
    report('open_clip, ["attn", "c_fc", "c_proj"]', train(open_clip_model(), ["attn", "c_fc", "c_proj"]), 2)
told = [str(w.message) for w in seen if "out_proj" in str(w.message) or "MultiheadAttention" in str(w.message)]
print("warnings that name it:", told)
assert not told

model = get_peft_model(open_clip_model(), LoraConfig(r=4, target_modules=["out_proj"], init_lora_weights=False)).eval()
model.print_trainable_parameters()
assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
with torch.no_grad():
    with model.disable_adapter():
        base = pooled(model)
    active = pooled(model)
    merged = pooled(model.merge_and_unload())
print("adapter with nonzero weights, largest change of the output: active", (active - base).abs().max().item(),
      " merged", round((merged - base).abs().max().item(), 3))
assert torch.equal(active, base) and not torch.allclose(merged, base, atol=1e-2)
PY
echo "behavior as described"
