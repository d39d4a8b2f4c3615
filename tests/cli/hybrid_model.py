"""A small hybrid of random weights that can read: the vocabulary and chat template of another model's file."""

import array
import random
import struct

from gguf_edit import ARRAY, F32, TEXT, U32, Gguf

WIDTH, FFN, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 4, 2, 16
TAPS, DELTA_DIM, KEY_HEADS, VALUE_HEADS = 4, 16, 2, 4
_GGML_F32 = 0


class _Normal:
    """Normal numbers: cut out of one stretch at any place, since a vocabulary's matrix would take the test's time."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.numbers = array.array("f", (self.random.gauss(0, 1) for _ in range(100_003)))

    def bytes(self, count, mean, spread):
        scaled = array.array("f", (mean + spread * number for number in self.numbers))
        first = self.random.randrange(len(scaled))
        whole = scaled[first:] + scaled * (count // len(scaled) + 1)
        return whole[:count].tobytes()


def hybrid_keys(vocabulary, layers=12, interval=2, context=2048):
    """The keys of a qwen35 file: every so-manieth layer attends, the others are recurrent."""
    model = Gguf()
    model.keys = {name: value for name, value in vocabulary.keys.items() if name.startswith("tokenizer.")}
    model.set("general.architecture", TEXT, "qwen35")
    model.set("general.name", TEXT, "small hybrid")
    for name, value in {
        "block_count": layers,
        "context_length": context,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "full_attention_interval": interval,
        "ssm.conv_kernel": TAPS,
        "ssm.state_size": DELTA_DIM,
        "ssm.group_count": KEY_HEADS,
        "ssm.time_step_rank": VALUE_HEADS,
        "ssm.inner_size": VALUE_HEADS * DELTA_DIM,
        "rope.dimension_count": HEAD_DIM // 2,
    }.items():
        model.set("qwen35." + name, U32, value)
    model.set("qwen35.attention.layer_norm_rms_epsilon", F32, 1e-6)
    model.set("qwen35.rope.freq_base", F32, 10000.0)
    model.keys["qwen35.rope.dimension_sections"] = (ARRAY, struct.pack("<IQ4i", 5, 4, 2, 1, 1, 0))
    return model


def hybrid_model(vocabulary, layers=12, interval=2, context=2048, seed=1):
    """All of it. `vocabulary`: the Gguf of the model whose words it has."""
    model = hybrid_keys(vocabulary, layers, interval, context)
    kind, value = vocabulary.keys["tokenizer.ggml.tokens"]
    words = struct.unpack_from("<IQ", value)[1]
    normal = _Normal(seed)

    def matrix(name, rows, cols):
        model.tensors.append([name + ".weight", [cols, rows], _GGML_F32, normal.bytes(rows * cols, 0, cols**-0.5)])

    def vector(name, size, mean, spread=0.1):
        model.tensors.append([name, [size], _GGML_F32, normal.bytes(size, mean, spread)])

    values = VALUE_HEADS * DELTA_DIM
    mixed = 2 * KEY_HEADS * DELTA_DIM + values
    matrix("token_embd", words, WIDTH)
    vector("output_norm.weight", WIDTH, 1)
    for layer in range(layers):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight", WIDTH, 1)
        vector(block + "post_attention_norm.weight", WIDTH, 1)
        if (layer + 1) % interval == 0:
            matrix(block + "attn_q", 2 * HEADS * HEAD_DIM, WIDTH)
            matrix(block + "attn_k", KV_HEADS * HEAD_DIM, WIDTH)
            matrix(block + "attn_v", KV_HEADS * HEAD_DIM, WIDTH)
            matrix(block + "attn_output", WIDTH, HEADS * HEAD_DIM)
            vector(block + "attn_q_norm.weight", HEAD_DIM, 1)
            vector(block + "attn_k_norm.weight", HEAD_DIM, 1)
        else:
            matrix(block + "attn_qkv", mixed, WIDTH)
            matrix(block + "attn_gate", values, WIDTH)
            matrix(block + "ssm_beta", VALUE_HEADS, WIDTH)
            matrix(block + "ssm_alpha", VALUE_HEADS, WIDTH)
            matrix(block + "ssm_conv1d", mixed, TAPS)
            vector(block + "ssm_dt.bias", VALUE_HEADS, 0)
            vector(block + "ssm_a", VALUE_HEADS, -0.05, 0.01)
            vector(block + "ssm_norm.weight", DELTA_DIM, 1)
            matrix(block + "ssm_out", WIDTH, values)
        matrix(block + "ffn_gate", FFN, WIDTH)
        matrix(block + "ffn_up", FFN, WIDTH)
        matrix(block + "ffn_down", WIDTH, FFN)
    return model
