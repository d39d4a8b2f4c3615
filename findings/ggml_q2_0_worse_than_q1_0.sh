#!/usr/bin/env bash
# Guess: of two formats of one family, the one with twice the bits has the smaller error; Q2_0 is a better Q1_0.
# Seen: on ordinary (normal) weights ggml's Q2_0 has the larger error: its scale is the block's largest weight, so four
# of five weights round to zero. It is a container for weights that are ternary already, which it keeps exactly and
# Q1_0 does not.
source "$(dirname "$0")/lib/packages.sh"
packages "${llama[@]}"
"$python" - <<'PYTHON'
import sys

import llama_cpp
import numpy as np
from libggml import bits, there_and_back

print("version: llama-cpp-python", llama_cpp.__version__)
random = np.random.default_rng(1)
kinds = {"normal": random.normal(0, 0.02, (64, 1024)), "ternary": random.integers(-1, 2, (64, 1024)) * 0.0625}
print("seen: RMS error by the RMS of the weights")
error = {}
for kind, weights in kinds.items():
    weights = weights.astype(np.float32)
    for name, number in (("q1_0", 41), ("q2_0", 42), ("q2_K", 10)):
        back = there_and_back(number, weights)
        error[kind, name] = float(np.sqrt(((weights - back) ** 2).mean() / (weights**2).mean()))
        print(f"  {kind:8} {name} ({bits(number):.3f} bits): {error[kind, name]:.3f}, zeros {100 * (back == 0).mean():.1f} %")
holds = error["normal", "q2_0"] > error["normal", "q1_0"] and error["ternary", "q2_0"] == 0 < error["ternary", "q1_0"]
sys.exit(0 if holds else "changed: Q2_0 is no longer worse than Q1_0 on normal weights, or not exact on ternary ones")
PYTHON
