#!/usr/bin/env bash
# Guess: a model that gguf-py splits into parts is the model that it writes as one file, whatever its alignment.
# Seen: it pads the data of every part by `general.alignment` but writes that key in the first part only. Readers take
# each part by itself: libllama and gguf-py's own reader start at the wrong byte of the others where the padding differs
# from that of 32, and load other weights without an error.
source "$(dirname "$0")/lib/packages.sh"
packages "${gguf[@]}" "${llama[@]}"
"$python" - <<'PYTHON'
import importlib.metadata
import os
import pathlib
import sys

import gguf
import numpy as np
import tiny_model
from libllama import Run, llama, load

work = pathlib.Path(os.environ["work"])


def logits(path):
    model = load(path)
    assert model, path
    run = Run(model, n_ctx=256, n_threads=1, n_threads_batch=1)
    result = run.decode([1, 2, 3, 4, 5])
    run.close()
    llama.llama_model_free(model)
    return result


print("version: gguf", importlib.metadata.version("gguf") + ", llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
print("seen: 3 parts of one model against one file")
right = {}
for alignment in (32, 64, 128):
    whole = work / f"whole{alignment}.gguf"
    tiny_model.write(whole, alignment)
    tiny_model.write(work / f"split{alignment}.gguf", alignment, split=7)
    parts = sorted(work.glob(f"split{alignment}-*.gguf"))
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(whole).tensors}
    read = [gguf.GGUFReader(part) for part in parts]
    same = [sum(np.array_equal(tensor.data, tensors[tensor.name]) for tensor in reader.tensors) for reader in read]
    keys = ["general.alignment" in reader.fields for reader in read]
    apart = float(np.abs(logits(whole) - logits(parts[0])).max())
    right[alignment] = same == [7, 7, 7] and apart == 0
    wrong = same == [7, 0, 0] and apart > 0.1 and keys == [True, False, False]
    print(f"  alignment {alignment:3}: key in parts {keys}, gguf-py reads {same} of 7 tensors right, "
          f"libllama's logits differ by {apart:.3f}")
    if alignment != 32 and not wrong:
        sys.exit("changed: the parts are read in another way")
sys.exit(0 if right[32] else "changed: parts with the alignment 32 differ, too")
PYTHON
