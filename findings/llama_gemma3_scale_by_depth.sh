#!/usr/bin/env bash
# Guess: what a Gemma 3's attention scores are multiplied by follows from the sizes in its file, or from a key, whatever the
# depth: 1 / sqrt(head size), as in all other models.
# Seen: with 62 layers, as Gemma 3 27B has, libllama takes 1 / sqrt(embedding length / heads); with 61 or 63 layers of the same
# weights 1 / sqrt(head size). The 62nd layer adds nothing here and moves the logits all the same; scaling the first layer's
# q norm by the quotient of both takes that back. So a pruned or a deepened 27B attends by other scores, without a word.
source "$(dirname "$0")/lib/packages.sh"
packages "${gguf[@]}" "${llama[@]}"
"$python" - <<'PYTHON'
import importlib.metadata
import math
import os
import pathlib
import sys

import gguf
import numpy as np
from libllama import Run, llama, load

path = pathlib.Path(os.environ["work"]) / "model.gguf"
WIDTH, HEADS, HEAD, FF, VOCAB = 64, 4, 32, 128, 32  # width / heads is 16, half of the head size


def write(layers, q_norm):
    """Of all layers the first alone adds anything."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for add, value in ((writer.add_vocab_size, VOCAB), (writer.add_context_length, 64),
                       (writer.add_embedding_length, WIDTH), (writer.add_block_count, layers),
                       (writer.add_feed_forward_length, FF), (writer.add_head_count, HEADS),
                       (writer.add_head_count_kv, 2), (writer.add_key_length, HEAD), (writer.add_value_length, HEAD),
                       (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_tokenizer_model, "no_vocab")):
        add(value)
    random = np.random.default_rng(1)

    def add(name, *shape, value=None):
        data = random.normal(0, 0.3, shape) if value is None else np.full(shape, value)
        writer.add_tensor(name + ".weight", data.astype(np.float32))

    add("token_embd", VOCAB, WIDTH)
    add("output_norm", WIDTH, value=1)
    for i in range(layers):
        silent = None if i == 0 else 0
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(f"blk.{i}.{name}", WIDTH, value=1)
        add(f"blk.{i}.attn_q", HEADS * HEAD, WIDTH)
        add(f"blk.{i}.attn_k", 2 * HEAD, WIDTH)
        add(f"blk.{i}.attn_v", 2 * HEAD, WIDTH)
        add(f"blk.{i}.attn_q_norm", HEAD, value=q_norm)
        add(f"blk.{i}.attn_k_norm", HEAD, value=1)
        add(f"blk.{i}.attn_output", WIDTH, HEADS * HEAD, value=silent)
        add(f"blk.{i}.ffn_gate", FF, WIDTH)
        add(f"blk.{i}.ffn_up", FF, WIDTH)
        add(f"blk.{i}.ffn_down", WIDTH, FF, value=silent)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(layers, q_norm=1.0):
    write(layers, q_norm)
    model = load(path)
    run = Run(model, n_ctx=64, n_threads=1, n_threads_batch=1, type_k=0, type_v=0)
    result = run.decode([(i * i + 3 * i) % VOCAB for i in range(40)])
    run.close()
    llama.llama_model_free(model)
    return result


def apart(a, b):
    return float(np.abs(a - b).max())


print("version: llama-cpp-python", importlib.metadata.version("llama-cpp-python"))
usual = logits(61)
deeper, as_27b = apart(logits(63), usual), apart(logits(62), usual)
taken_back = apart(logits(62, math.sqrt(WIDTH / HEADS / HEAD)), usual)
print("seen: gemma3, head size 32, embedding length / heads 16, all layers but the first add nothing")
print(f"  beside 61 layers: 63 layers move logits by {deeper:.6f}, 62 by {as_27b:.3f}, "
      f"62 with its q norms times sqrt(1/2) by {taken_back:.6f}")
sys.exit(0 if deeper < 1e-4 and as_27b > 0.01 and taken_back < 1e-4 else "changed: the scale goes by something else")
PYTHON
