"""A small llama (or phi3, mistral3) model with random weights and no vocabulary, written by gguf-py."""
import gguf
import numpy as np


def write(path, alignment=None, split=0, extra=None, architecture="llama", original_context=None,
          width=64, layers=2, keys=None):
    """`split`: most tensors of a part (0: one file); `extra`: tensors by name that are added; `keys`: numbers by name."""
    ff, vocab = 2 * width, 32
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    if alignment:
        writer.add_custom_alignment(alignment)
    for add, value in ((writer.add_vocab_size, vocab), (writer.add_context_length, 64),
                       (writer.add_embedding_length, width), (writer.add_block_count, layers),
                       (writer.add_feed_forward_length, ff), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_tokenizer_model, "no_vocab")):
        add(value)
    if original_context:
        writer.add_rope_scaling_orig_ctx_len(original_context)
    for name, value in (keys or {}).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    fused = architecture == "phi3"  # gate and up
    shapes = {"token_embd": (vocab, width), "output_norm": (width,), "output": (vocab, width)}
    for i in range(layers):
        for name, shape in (("attn_norm", (width,)), ("attn_q", (width, width)), ("attn_k", (width // 2, width)),
                            ("attn_v", (width // 2, width)), ("attn_output", (width, width)), ("ffn_norm", (width,)),
                            ("ffn_gate", (ff, width)), ("ffn_up", (2 * ff if fused else ff, width)),
                            ("ffn_down", (width, ff))):
            if not fused or name != "ffn_gate":
                shapes[f"blk.{i}.{name}"] = shape
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", random.normal(0, 0.3, shape).astype(np.float32))
    for name, data in (extra or {}).items():
        writer.add_tensor(name, np.array(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
