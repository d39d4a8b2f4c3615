#!/usr/bin/env bash
# Guess: greedy text of one model, one build and one machine is one text; flash attention only changes speed
# and memory, or matters for a rare tie.
# Seen: within 24 tokens many texts part from each other by it, though the distributions hardly move. Equal text is no
# test of an engine unless every setting is equal, and then it tests them too; logits are.
source "$(dirname "$0")/lib/packages.sh"
packages "${llama[@]}"
smollm2
"$python" - "$model" <<'PYTHON'
import sys

import llama_cpp
from greedy import BASE, OFF, PROMPTS, compare, prompts_of
from libllama import load

print("version: llama-cpp-python", llama_cpp.__version__)
print("seen: 10 prompts, 24 tokens, smollm2-135m; against flash attention on, n_ubatch 512, cache f16, 1 thread")
model = load(sys.argv[1])
differing = compare(model, prompts_of(model, PROMPTS), BASE, {
    "the same again": {},
    "flash attention off": dict(flash_attn_type=OFF),
})
holds = differing.pop("the same again") == 0 and min(differing.values()) > 0
sys.exit(0 if holds else "changed: a setting no longer moves the text, or the same settings do")
PYTHON
