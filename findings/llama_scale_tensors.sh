#!/usr/bin/env bash
# Guess: `.scale` tensors belong to NVFP4 weights. Beside others they are either refused, as libllama refuses tensors
# it does not know, or have no effect.
# Seen: libllama multiplies the product of any weight of a layer by them, float32 ones included, while `.input_scale` is
# accepted and changes nothing, and `output.scale` (like any other name it does not know) makes the file fail, though only
# by the count of tensors: the message names none of them. A reader that skips unknown tensors gets other logits.
source "$(dirname "$0")/lib/packages.sh"
packages "${gguf[@]}" "${llama[@]}"
"$python" - <<'PYTHON'
import importlib.metadata
import os
import pathlib
import sys

import numpy as np
import tiny_model
from libllama import Run, llama, load, messages

work = pathlib.Path(os.environ["work"])


def logits(name, value):
    path = work / "model.gguf"
    tiny_model.write(path, extra={name: [value]} if name else None)
    model = load(path)
    if not model:
        return None
    run = Run(model, n_ctx=256, n_threads=1, n_threads_batch=1)
    result = run.decode([1, 2, 3, 4, 5])
    run.close()
    llama.llama_model_free(model)
    return result


print("version: llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
print("seen: a llama model of float32 weights with one tensor [2.0] more")
plain, seen = logits(None, 0), {}
for name in ("blk.0.attn_q.scale", "blk.0.attn_output.scale", "blk.0.ffn_down.scale", "blk.0.attn_q.input_scale",
             "output.scale", "blk.0.attn_norm.scale"):
    other = logits(name, 2.0)
    seen[name] = None if other is None else float(np.abs(other - plain).max())
    print(f"  {name:25}", messages[0] if other is None else f"logits differ by {seen[name]:.3f}")
names = list(seen)
holds = all(seen[name] and seen[name] > 0.1 for name in names[:3]) and seen[names[3]] == 0
holds &= all(seen[name] is None for name in names[4:])
sys.exit(0 if holds else "changed: another set of scales is used, ignored or refused")
PYTHON
