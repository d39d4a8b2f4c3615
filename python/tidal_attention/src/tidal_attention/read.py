"""What a layer's sparse attention did, for those who watch."""

from dataclasses import dataclass

import torch

from tidal_attention.attention import Pages


@dataclass
class Read:
    """Of one token each of some sequences."""

    query: torch.Tensor  # [rows, heads, head_dim]
    pages: Pages
    block_table: torch.Tensor  # [rows, blocks] int32
    contexts: torch.Tensor  # [rows] int32, the token's own position included
    positions: torch.Tensor  # [rows, kv_heads, most] int32, ascending
    counts: torch.Tensor  # [rows, kv_heads] int32; 0: the whole context was read


def room_for_sets(attention, query):
    """Zeros for `positions` and `counts`."""
    kind = {"dtype": torch.int32, "device": query.device}
    shape = (query.shape[0], attention.kv_heads)
    return torch.zeros((*shape, attention.most_selected), **kind), torch.zeros(shape, **kind)
