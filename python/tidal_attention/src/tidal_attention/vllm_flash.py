"""Dense attention of the tokens of prompts on a GPU: vLLM's FlashAttention, over the rows [K | V] of the pages."""

from dataclasses import dataclass

import torch

from tidal_attention.library import BLOCK


@dataclass
class DenseRun:
    """Tokens [first, last) of a pass: those of some prompts, one behind the other."""

    first: int
    last: int
    starts: torch.Tensor  # [prompts + 1] int32, of their tokens from `first` on
    contexts: torch.Tensor  # [prompts] int32, positions that the last token of each sees
    block_table: torch.Tensor  # [prompts, blocks] int32
    longest: int  # most tokens of a prompt
    longest_context: int


def runs_of(pieces, table, device):
    """`pieces`: (first token, last, context, row of `table`) of the prompts of a pass, in order."""
    runs = []
    for piece in pieces:
        if runs and runs[-1][-1][1] == piece[0]:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [_run(run, table, device) for run in runs]


def _run(pieces, table, device):
    first, last = pieces[0][0], pieces[-1][1]
    starts = [piece[0] - first for piece in pieces] + [last - first]
    contexts = [piece[2] for piece in pieces]
    rows = [piece[3] for piece in pieces]
    follow = rows == list(range(rows[0], rows[0] + len(rows)))
    return DenseRun(
        first,
        last,
        to_device(starts, torch.int32, device),
        to_device(contexts, torch.int32, device),
        table[rows[0] : rows[0] + len(rows)] if follow else table[to_device(rows, torch.int64, device)],
        max(piece[1] - piece[0] for piece in pieces),
        max(contexts),
    )


def to_device(values, dtype, device):
    """A tensor of a list, without waiting for the device."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def attend_run(run, query, pages, scale, out):
    """query and out [tokens of the pass, heads, head_dim]; the tokens' own K and V are in the pages already."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func, get_flash_attn_version

    keys, values = _views(pages)
    flash_attn_varlen_func(
        q=query[run.first : run.last],
        k=keys,
        v=values,
        out=out[run.first : run.last],
        cu_seqlens_q=run.starts,
        max_seqlen_q=run.longest,
        seqused_k=run.contexts,
        max_seqlen_k=run.longest_context,
        softmax_scale=scale,
        causal=True,
        block_table=run.block_table,
        fa_version=get_flash_attn_version(head_size=pages.head_dim),
    )


def _views(pages):
    """K and V, [blocks, 64, kv_heads, head_dim] each, where they lie."""
    elements = pages.memory.view(-1).view(pages.dtype)
    page, row = elements.numel() // (pages.blocks * pages.kv_heads), 2 * pages.head_dim
    shape = (pages.blocks, BLOCK, pages.kv_heads, pages.head_dim)
    strides = (pages.kv_heads * page, row, page, 1)
    return tuple(elements.as_strided(shape, strides, offset + elements.storage_offset()) for offset in (0, pages.head_dim))
