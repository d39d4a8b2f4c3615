#!/usr/bin/env bash
# Guess: ggml's NVFP4 has a scale for every 16 weights, so like any block format it loses the same share of a large and
# of a small tensor.
# Seen: the scale is an unsigned 8-bit float whose least step is 2^-9, and ggml's quantiser makes no second scale for the
# tensor. Below a standard deviation of about 0.02 the error grows, and at 0.002 nearly all weights become zero,
# without a message. Whoever writes NVFP4 has to scale the tensor first, and store that scale beside it.
source "$(dirname "$0")/lib/packages.sh"
packages "${llama[@]}"
"$python" - <<'PYTHON'
import sys

import llama_cpp
import numpy as np
from libggml import there_and_back

Q4_0, MXFP4, NVFP4 = 2, 39, 40
print("version: llama-cpp-python", llama_cpp.__version__)
print("seen: RMS error by the RMS of 65536 normal weights (share of zeros)")
error, zeros = {}, {}
for deviation in (1, 0.02, 0.005, 0.002):
    weights = np.random.default_rng(1).normal(0, deviation, (64, 1024)).astype(np.float32)
    cells = []
    for name, number in (("q4_0", Q4_0), ("mxfp4", MXFP4), ("nvfp4", NVFP4)):
        back = there_and_back(number, weights)
        error[name, deviation] = float(np.sqrt(((weights - back) ** 2).mean() / (weights**2).mean()))
        zeros[name, deviation] = float((back == 0).mean())
        cells.append(f"{name} {error[name, deviation]:.3f} ({100 * zeros[name, deviation]:4.1f} %)")
    print(f"  standard deviation {deviation:5}: " + ", ".join(cells))
holds = error["nvfp4", 1] < 0.11 and error["nvfp4", 0.005] > 0.13 and zeros["nvfp4", 0.002] > 0.9
holds &= all(abs(error[name, 0.002] / error[name, 1] - 1) < 0.05 for name in ("q4_0", "mxfp4"))
sys.exit(0 if holds else "changed: NVFP4 no longer loses small tensors alone")
PYTHON
