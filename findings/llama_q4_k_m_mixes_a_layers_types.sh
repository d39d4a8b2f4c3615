#!/usr/bin/env bash
# Guess: in a Q4_K_M file q, k and v of a layer have one type, so that they can be multiplied as one matrix, as one can
# that was trained as one; the "M" is about which layers, or about the output matrix.
# Seen: llama.cpp quantises v to another type than q and k in half of the layers (the first and the last eighth, and
# every third between), beside the same for down. And where a matrix' columns are no multiple of 256, which is usual
# in small models, there is no q4_K at all: q and k become q5_0, v of the better layers q8_0.
source "$(dirname "$0")/lib/packages.sh"
packages "${gguf[@]}" "${llama[@]}"
"$python" - <<'PYTHON'
import ctypes
import importlib.metadata
import os
import pathlib
import sys

import gguf
import tiny_model
from libllama import llama

work = pathlib.Path(os.environ["work"])


def types(width):
    source, quantised = work / f"{width}.gguf", work / f"{width}-q4_k_m.gguf"
    tiny_model.write(source, width=width, layers=16)
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_K_M
    code = llama.llama_model_quantize(str(source).encode(), str(quantised).encode(), ctypes.byref(parameters))
    assert code == 0, "not quantised"
    of = {t.name: t.tensor_type.name for t in gguf.GGUFReader(quantised).tensors}
    return [tuple(of[f"blk.{i}.attn_{part}.weight"] for part in "qkv") for i in range(16)]


print("version: llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
print("seen: types of q, k, v in the 16 layers of a Q4_K_M file")
seen = {width: types(width) for width in (256, 288)}
for width, layers in seen.items():
    print(f"  width {width}:")
    for kinds in sorted(set(layers)):
        print(f"    {' '.join(kinds):20} layers", *(i for i, own in enumerate(layers) if own == kinds))
mixed = [i for i, own in enumerate(seen[256]) if own[2] != own[0]]
holds = all(own[0] == own[1] == "Q4_K" for own in seen[256]) and mixed == [0, 1, 4, 7, 10, 13, 14, 15]
holds &= all(own[:2] == ("Q5_0", "Q5_0") for own in seen[288]) and any(own[2] == "Q8_0" for own in seen[288])
sys.exit(0 if holds else "changed: q, k and v of a layer have one type, or other layers are the better ones")
PYTHON
