#!/usr/bin/env bash
# Guess:    Trainer's eval_loss is the mean over all scored tokens, as its training loss is; the evaluation
#           batch size is a matter of speed and memory only.
# Happens:  eval_loss is the mean of the batches' own token means, weighted by rows. A two-token answer alone
#           in its batch weighs as much as a long caption. With another per_device_eval_batch_size, or another
#           row order, the same model on the same rows has another loss.
# Matters:  vision-language data mixes short answers and long captions. Below, of two fixed models the better
#           one by eval_loss at batch size 1 is the worse one at 16: early stopping and load_best_model_at_end
#           keep another checkpoint. The training loss of the same rows, in any split, stays the token mean.
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.14.1.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  'torch==2.14.1' 'transformers==5.24.0' 'accelerate==1.15.0'

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PY'
from importlib.metadata import version
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

for name in ("transformers", "accelerate", "torch"):
    print(name, version(name))
torch.set_num_threads(1)


def row(kind, count):
    """A prompt token that names the task, then `count` target tokens, padded to one width."""
    ids, pad = [kind] + [kind + 2] * count, 20 - count
    return {"input_ids": ids + [0] * pad, "attention_mask": [1] * len(ids) + [0] * pad,
            "labels": [-100] + ids[1:] + [-100] * pad}


answers = [row(3, 2) for _ in range(8)]
captions = [row(4, 20) for _ in range(8)]
mixed = [r for pair in zip(answers, captions) for r in pair]


def batch(rows):
    return {k: torch.tensor([r[k] for r in rows]) for k in rows[0]}


def fitted(answer_loss, caption_loss):
    """A small model brought to the wanted loss on each kind of row."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        off = (model(**batch(answers[:1])).loss - answer_loss) ** 2 + (model(**batch(captions[:1])).loss - caption_loss) ** 2
        optimizer.zero_grad()
        off.backward()
        optimizer.step()
    assert off < 1e-2, off
    return model.eval()


def trainer(model, **sizes):
    return Trainer(model, TrainingArguments(
        "out", report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no",
        max_steps=1, learning_rate=0.0, **sizes), train_dataset=mixed, eval_dataset=mixed)


models = {"good at answers": fitted(0.2, 1.5), "good at captions": fitted(2.5, 0.5)}
found = {}
for name, model in models.items():
    with torch.no_grad():
        exact = model(**batch(mixed)).loss.item()
    evaluated = {n: trainer(model, per_device_eval_batch_size=n).evaluate()["eval_loss"] for n in (1, 16)}
    trained = {n: trainer(model, per_device_train_batch_size=n, gradient_accumulation_steps=16 // n).train().training_loss
               for n in (1, 16)}
    print(f"{name:17} token mean {exact:.3f}  eval_loss at batch size 1: {evaluated[1]:.3f}, 16: {evaluated[16]:.3f}"
          f"  training loss at 1 x 16: {trained[1]:.3f}, 16 x 1: {trained[16]:.3f}")
    assert abs(evaluated[16] - exact) < 1e-3 and abs(evaluated[1] - exact) > 0.3
    assert abs(trained[1] - exact) < 1e-3 and abs(trained[16] - exact) < 1e-3
    found[name] = evaluated

best = {n: min(found, key=lambda name: found[name][n]) for n in (1, 16)}
print("best by eval_loss:", best)
assert best[1] == "good at answers" and best[16] == "good at captions"
PY
echo "behavior as described"
