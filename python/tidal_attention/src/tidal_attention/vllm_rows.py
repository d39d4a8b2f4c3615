"""Which tokens of a pass of vLLM are sparse and which are dense."""

import os
from dataclasses import dataclass
from functools import cache

import torch
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder

from tidal_attention.attention import Attention
from tidal_attention.library import BLOCK
from tidal_attention.vllm_flash import runs_of, to_device
from tidal_attention.vllm_prompts import FAR


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

    tokens: slice | torch.Tensor  # [rows] int64, of the pass
    contexts: torch.Tensor  # [rows] int32
    block_table: torch.Tensor  # [rows, blocks] int32


@dataclass
class TidalMetadata:
    dense: list  # of DensePiece on the CPU, of vllm_flash.DenseRun on a GPU
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

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
        """The first runner replays graphs for the last tokens of prompts, too."""
        if not getattr(vllm_config, "use_v2_model_runner", False):
            return AttentionCGSupport.NEVER
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def build_for_cudagraph_capture(self, common_attn_metadata):
        return self._decoding(common_attn_metadata)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common = common_attn_metadata
        if common.max_query_len == 1 and self.device.type != "cpu" and not bool(common.is_prefilling.any()):
            return self._decoding(common)
        starts = common.query_start_loc_cpu.tolist()
        contexts = self._contexts(common)
        pieces, tokens, own_contexts, rows = [], [], [], []
        for row, prompt in enumerate(self._prompts(common)):
            first, last = starts[row], starts[row + 1]
            position = contexts[row] - (last - first)
            # Tokens of the pass that are the prompt's: at least none, at most all.
            of_prompt = max(0, min(prompt - position, last - first))
            if of_prompt:
                pieces.append((first, first + of_prompt, position + of_prompt, row))
            for i in range(of_prompt, last - first):
                tokens.append(first + i)
                own_contexts.append(position + i + 1)
                rows.append(row)
        return TidalMetadata(self._dense(pieces, common), self._sparse(tokens, own_contexts, rows, common))

    def _decoding(self, common):
        """Of a pass in which every row writes one token; tensors are the runner's own, which a graph reads where they are."""
        rows = slice(0, common.num_reqs)
        return TidalMetadata([], SparseRows(rows, common.seq_lens[rows], common.block_table_tensor[rows]))

    def _contexts(self, common):
        """Exact on a GPU, too: there are no drafts that might be refused."""
        lengths = common.seq_lens if self.device.type == "cpu" else common.seq_lens_cpu_upper_bound
        return lengths[: common.num_reqs].tolist()

    def _dense(self, pieces, common):
        table = common.block_table_tensor
        if self.device.type != "cpu":
            return runs_of(pieces, table, self.device)
        return [DensePiece(*piece[:3], table[piece[3], : -(-piece[2] // BLOCK)]) for piece in pieces]

    def _sparse(self, tokens, contexts, rows, common):
        if not rows:
            return None
        table, count = common.block_table_tensor, len(rows)
        table = table[:count] if rows == list(range(count)) else table[to_device(rows, torch.int64, self.device)]
        follow = tokens == list(range(tokens[0], tokens[0] + count))
        places = slice(tokens[0], tokens[0] + count) if follow else to_device(tokens, torch.int64, self.device)
        return SparseRows(places, to_device(contexts, torch.int32, self.device), table)

    def _prompts(self, common):
        """Where each row's prompt ends; far away where all of a pass is prompt."""
        if self.prompt_lengths is not None:
            return self.prompt_lengths(common).tolist()
        return [FAR if prefilling else 0 for prefilling in common.is_prefilling.tolist()]
