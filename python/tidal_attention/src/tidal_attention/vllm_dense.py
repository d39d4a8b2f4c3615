"""Dense attention of the tokens of a prompt on the CPU, over pages."""

import torch
from torch.nn.functional import scaled_dot_product_attention

_ROWS = 512  # of a mask at a time


def attend_dense(piece, query, key, value, pages, scale, out):
    """Tokens [first, last) of a pass, one sequence's, the last of which sees piece.context positions."""
    first, last, context = piece.first, piece.last, piece.context
    if context == last - first:
        out[first:last] = _attend(query[first:last], key[first:last], value[first:last], scale, is_causal=True)
        return
    rows = pages.rows()[piece.block_table].transpose(1, 2).flatten(0, 1)[:context]  # [positions, KV heads, K | V]
    keys, values = rows[..., : pages.head_dim], rows[..., pages.head_dim :]
    positions = torch.arange(context, device=query.device)
    for begin in range(first, last, _ROWS):
        end = min(begin + _ROWS, last)
        seen = context - (last - end)  # by the last of these
        own = torch.arange(context - (last - begin), seen, device=query.device)
        mask = positions[:seen] <= own[:, None]
        out[begin:end] = _attend(query[begin:end], keys[:seen], values[:seen], scale, attn_mask=mask)


def _attend(query, key, value, scale, **masked):
    """All [tokens, heads, head_dim]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1], **masked)[0].transpose(0, 1)
