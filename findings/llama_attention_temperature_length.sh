#!/usr/bin/env bash
# Guess: after how many positions mistral3's queries grow (its temperature of attention) is said by the key that GGUF has for
# it, attention.temperature_length.
# Seen: libllama takes rope.scaling.original_context_length, and where that is absent the trained context_length, whatever
# temperature_length says. Without any scaling of positions that key, meant for YaRN, moves the logits from its length on;
# temperature_length moves none.
source "$(dirname "$0")/lib/packages.sh"
packages "${gguf[@]}" "${llama[@]}"
"$python" - <<'PYTHON'
import importlib.metadata
import os
import pathlib
import sys

import numpy as np
import tiny_model
from libllama import Run, llama, load

work = pathlib.Path(os.environ["work"])
tokens = [(i * i + 3 * i) % 32 for i in range(40)]


def logits(count, scale=1.0, length=None, original_context=None):
    """Behind `count` tokens."""
    path = work / "model.gguf"
    keys = {"mistral3.attention.temperature_scale": scale} if scale else {}
    if length:
        keys["mistral3.attention.temperature_length"] = length
    tiny_model.write(path, architecture="mistral3", original_context=original_context, keys=keys)
    model = load(path)
    run = Run(model, n_ctx=64, n_threads=1, n_threads_batch=1)
    result = run.decode(tokens[:count])
    run.close()
    llama.llama_model_free(model)
    return result


def apart(a, b):
    return float(np.abs(a - b).max())


print("version: llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
print("seen: mistral3, trained context 64, temperature_scale 1, positions not scaled")
without = logits(40, scale=None)
by_length = apart(logits(40, length=8), without)
by_context = apart(logits(40, original_context=8), without)
print(f"  40 tokens, beside no temperature: temperature_length 8 moves logits by {by_length:.6f}, "
      f"original_context_length 8 by {by_context:.3f}")
within = apart(logits(8, original_context=8), logits(8, scale=None))
alone = apart(logits(40, scale=None, original_context=8), without)
print(f"  original_context_length 8 on the first 8 tokens: by {within:.6f}; on 40 tokens without a temperature: by {alone:.6f}")
sys.exit(0 if by_length == 0 and by_context > 0.1 and within == 0 and alone == 0 else "changed: the length is another")
PYTHON
