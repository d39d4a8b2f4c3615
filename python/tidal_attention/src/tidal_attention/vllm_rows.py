"""Which tokens of a pass of vLLM are sparse and which are dense."""

import os
from dataclasses import dataclass
from functools import cache

import torch
from vllm.v1.attention.backend import AttentionMetadataBuilder

from tidal_attention.attention import Attention
from tidal_attention.library import BLOCK


@dataclass
class DensePiece:
    """Tokens [first, last) of the pass, of one prompt, whose last token sees `context` positions."""

    first: int
    last: int
    context: int
    block_table: torch.Tensor  # the blocks of these positions


@dataclass
class SparseRows:
    """Tokens that were written one by one."""

    tokens: torch.Tensor  # [rows] int64, of the pass
    contexts: torch.Tensor  # [rows] int32
    block_table: torch.Tensor  # [rows, blocks] int32


@dataclass
class TidalMetadata:
    dense: list
    sparse: SparseRows | None


@cache
def handle(options, device, dtype, shape, max_context, max_rows):
    """One for all layers of a shape: (heads, KV heads, head size, scale). Made in the process that uses it, behind vLLM's
    binding of threads to cores."""
    heads, kv_heads, head_dim, scale = shape
    if not options.threads:
        options = type(options)(options.budget, options.sketch_bits, len(os.sched_getaffinity(0)))
    return Attention(
        options,
        device=device,
        dtype=dtype,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_context=max_context,
        max_rows=max_rows,
        scale=scale,
    )


class TidalMetadataBuilder(AttentionMetadataBuilder):
    """A request's prompt is dense. What it has written since is sparse, token by token, whether it is written now or, after a
    preemption, computed once more with the prompt: where the prompt ends is what `prompt_lengths` says, by row; without it
    (None), all that is computed before the first new token counts as prompt."""

    prompt_lengths = None

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common = common_attn_metadata
        starts = common.query_start_loc_cpu.tolist()
        contexts = common.seq_lens[: common.num_reqs].tolist()
        prompts = self._prompts(common)
        dense, tokens, own_contexts, rows = [], [], [], []
        for row in range(common.num_reqs):
            first, last = starts[row], starts[row + 1]
            position = contexts[row] - (last - first)
            # Tokens of the pass that are the prompt's: at least none, at most all.
            of_prompt = max(0, min(prompts[row] - position, last - first))
            if of_prompt:
                context = position + of_prompt
                blocks = common.block_table_tensor[row, : -(-context // BLOCK)]
                dense.append(DensePiece(first, first + of_prompt, context, blocks))
            for i in range(of_prompt, last - first):
                tokens.append(first + i)
                own_contexts.append(position + i + 1)
                rows.append(row)
        if not rows:
            return TidalMetadata(dense, None)
        table = common.block_table_tensor
        table = table[: len(rows)] if rows == list(range(len(rows))) else table[torch.tensor(rows)]
        sparse = SparseRows(
            torch.tensor(tokens), torch.tensor(own_contexts, dtype=torch.int32), table
        )
        return TidalMetadata(dense, sparse)

    def _prompts(self, common):
        """Where each row's prompt ends; far away where all of a pass is prompt."""
        if self.prompt_lengths is not None:
            return self.prompt_lengths(common).tolist()
        return [1 << 30 if prefilling else 0 for prefilling in common.is_prefilling.tolist()]
