#!/usr/bin/env bash
# Guess: LongRoPE's two sets of factors (phi3 files: rope_factors_short and rope_factors_long) go by how long the text is:
# a prompt that fits into the original context gets the short ones, as the paper has it and transformers does.
# Seen: libllama takes them by the size of the context that it was asked for, once for all positions. The same short
# prompt gets other logits with a larger n_ctx, all of it by the long factors; a comparison has to say its n_ctx.
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


def logits(short, long, n_ctx):
    path = work / "model.gguf"
    tiny_model.write(path, architecture="phi3", original_context=256,
                     extra={"rope_factors_short.weight": [short] * 8, "rope_factors_long.weight": [long] * 8})
    model = load(path)
    run = Run(model, n_ctx=n_ctx, n_threads=1, n_threads_batch=1)
    result = run.decode(tokens)
    run.close()
    llama.llama_model_free(model)
    return result


print("version: llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
print("seen: 40 tokens, original context 256, short factors 1, long factors 4")
small, large = logits(1, 4, 256), logits(1, 4, 512)
apart = float(np.abs(small - large).max())
print(f"  n_ctx 512 beside n_ctx 256: logits differ by {apart:.3f}")
# What n_ctx alone changes, and whether the large context is the long factors' throughout.
alone = float(np.abs(logits(1, 1, 256) - logits(1, 1, 512)).max())
as_long = float(np.abs(large - logits(4, 4, 256)).max())
print(f"  with both sets alike: by {alone:.6f}; n_ctx 512 beside a file with long factors only: by {as_long:.6f}")
sys.exit(0 if apart > 0.1 and alone < 1e-4 and as_long < 1e-4 else "changed: the factors go by something else")
PYTHON
