"""Small random models, and the engine's own sets beside those that Python got."""

import copy
import os
import struct
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

torch.set_num_threads(2)


def small_config(layers, heads):
    """Of two KV heads."""
    return Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
    )


CONFIG = small_config(3, 8)
CONFIG.initializer_range = 0.2


def random_model(attention, dtype=torch.float32):
    """The same weights every time."""
    torch.manual_seed(1)
    config = copy.deepcopy(CONFIG)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def random_tokens(batch, length, seed=2):
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def engine_sets(tmp_path):
    """A function of (backend, options, read): [(positions of one set)] of every row and KV head, by the program that
    TIDAL_ENGINE_SETS names."""
    program = os.environ.get("TIDAL_ENGINE_SETS")
    if not program:
        pytest.skip("TIDAL_ENGINE_SETS names no program, expected build/release/tests/engine_sets")

    def run(backend, options, read):
        rows, heads, head_dim = read.query.shape
        pages = read.pages
        most = options.budget + 63
        header = struct.pack(
            "10i",
            0 if pages.dtype == torch.bfloat16 else 1,
            heads,
            pages.kv_heads,
            head_dim,
            options.sketch_bits,
            options.budget,
            max(int(read.contexts.max()), 1),
            pages.blocks,
            rows,
            read.block_table.shape[1],
        )
        parts = [pages.memory, read.query, read.block_table, read.contexts]
        given, got = tmp_path / "given", tmp_path / "got"
        given.write_bytes(
            header + b"".join(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for part in parts)
        )
        subprocess.run([program, backend, str(given), str(got)], check=True, timeout=120)
        numbers = torch.frombuffer(bytearray(got.read_bytes()), dtype=torch.int32)
        sets = rows * pages.kv_heads
        counts, positions = numbers[:sets], numbers[sets:].view(sets, most)
        return [positions[i, : counts[i]].tolist() for i in range(sets)]

    return run


def own_sets(read):
    """The same of what Python got."""
    counts = read.counts.flatten().tolist()
    positions = read.positions.flatten(0, 1)
    return [positions[i, :count].tolist() for i, count in enumerate(counts)]
