"""One layer of a TidalCache: pages of the library, as many for each sequence of the batch."""

import torch
from transformers.cache_utils import CacheLayerMixin

from tidal_attention.attention import Attention, Pages, page_bytes
from tidal_attention.errors import Refused
from tidal_attention.library import BLOCK
from tidal_attention.read import Read, room_for_sets


class TidalLayer(CacheLayerMixin):
    """Sequence b has the blocks from b * `blocks` on. Padding on the left is left out: a sequence's first token is at
    position 0 of its own. `length` counts as transformers does, padding included."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, cache, index):
        super().__init__()
        self.cache, self.index = cache, index
        self.length = 0
        self.blocks = 0  # of each sequence
        self.memory = None  # [batch, blocks, kv_heads, bytes] uint8
        self.pending = False  # update() has keys that no attention function has taken in

    # What transformers asks of a layer.

    def lazy_initialization(self, key_states, value_states):
        if key_states.shape != value_states.shape:
            raise Refused(f"value: shape {list(value_states.shape)}, expected {list(key_states.shape)}, that of the keys")
        batch, self.kv_heads, _, self.head_dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.bytes = page_bytes(self.head_dim, self.dtype, self.cache.options.sketch_bits)
        self.memory = torch.zeros((batch, 0, self.kv_heads, self.bytes), dtype=torch.uint8, device=self.device)
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Takes nothing in yet: the attention function knows of padding. Returns the new keys and values alone, with this
        layer as their attribute."""
        if self.pending:
            raise Refused("past_key_values: keys were changed on their way to the attention, or another attention has them")
        batch = key_states.shape[0]
        if self.is_initialized and self.length > 0 and batch != self.batch_size:
            raise Refused(f"past_key_values: {batch} sequences, expected {self.batch_size}, as many as before")
        if not self.is_initialized or batch != self.batch_size:
            self.blocks = 0
            self.lazy_initialization(key_states, value_states)
        self.pending = True
        self.length += key_states.shape[2]
        self._grow()
        key_states.tidal_layer = self
        return key_states, value_states

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return -1

    def crop(self, tokens_to_remove):
        """Below 0: removes so many tokens; above: keeps so many."""
        kept = min(tokens_to_remove, self.length) if tokens_to_remove > 0 else self.length + tokens_to_remove
        self.length = max(kept, 0)

    def reset(self):
        self.length = 0
        self.pending = False

    def offload(self):
        raise Refused("offloading: this cache stays on its device, expected no offloading")

    def reorder_cache(self, beam_idx):
        self._pick(lambda memory: memory.index_select(0, beam_idx.to(memory.device)))

    def batch_repeat_interleave(self, repeats):
        self._pick(lambda memory: memory.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices):
        self._pick(lambda memory: memory[indices])

    # What the attention function asks.

    def append_and_read(self, key, value, mask):
        """Takes several new tokens in; returns K and V of all, [batch, kv_heads, length, head_dim], zeros for padding."""
        start = self.length - key.shape[2]
        self._find_padding(mask, start)
        self._append(key, value, start)
        if start == 0:
            return key, value
        rows = self._pages.rows().view(-1, self.blocks, self.kv_heads, BLOCK, 2 * self.head_dim)
        rows = rows.transpose(1, 2).flatten(2, 3)  # [batch, kv_heads, positions, K | V]
        padding = self._padding()
        if padding is None:
            rows = rows[:, :, : self.length]
        else:
            own = torch.arange(self.length, device=self.device) - padding[:, None]
            index = own.clamp(min=0)[:, None, :, None].expand(-1, self.kv_heads, -1, 2 * self.head_dim)
            rows = torch.where(own[:, None, :, None] >= 0, rows.gather(2, index), 0)
        return rows[..., : self.head_dim].contiguous(), rows[..., self.head_dim :].contiguous()

    def decode(self, query, key, value, mask, scaling):
        """Takes one new token in; returns its attention, [batch, 1, heads, head_dim]."""
        batch, heads = query.shape[:2]
        start = self.length - 1
        self._find_padding(mask, start)
        contexts = torch.full((batch,), self.length, dtype=torch.int32, device=self.device)
        padding = self._padding()
        if padding is not None:
            contexts -= padding.to(torch.int32)
        if mask is not None and mask.dtype.is_floating_point:
            mask = mask >= 0
        if mask is not None and self.index == 0 and bool((mask[:, 0, -1].sum(-1) != contexts).any()):
            raise Refused("attention_mask: leaves out other tokens than before, expected padding on the left alone")
        contexts.clamp_(min=1)  # one that has had nothing but padding yet: of no use
        self._append(key, value, start)
        attention = self._attention(heads, scaling or self.head_dim**-0.5, self.blocks * BLOCK, batch)
        table = torch.arange(batch * self.blocks, dtype=torch.int32, device=self.device).view(batch, self.blocks)
        own = query[:, :, 0].contiguous()
        out = torch.empty_like(own)
        sets = room_for_sets(attention, own) if self.cache.watch else None
        attention.attend(self._pages, own, table, contexts, out, sets)
        if sets:
            self.cache.watch(self.index, Read(own, self._pages, table, contexts, *sets))
        return out[:, None]

    def _find_padding(self, mask, start):
        """By the mask of this pass, whose first token is at `start`: where it is the first pass, or those before were
        shorter than some sequence's padding."""
        before = self.cache.padding
        if self.index > 0 or (start > 0 and (before is None or not bool((before >= start).any()))):
            return
        found = find_padding(mask, self.batch_size, self.length)
        if start > 0:
            found = torch.zeros_like(before) if found is None else found
            if bool(((found != before) & (before < start)).any()):
                raise Refused("attention_mask: leaves out other tokens than before, expected padding on the left alone")
        self.cache.padding = found

    def _padding(self):
        """The cache's, on this layer's device."""
        return None if self.cache.padding is None else self.cache.padding.to(self.device)

    # Its memory.

    @property
    def batch_size(self):
        return -1 if self.memory is None else self.memory.shape[0]

    def _grow(self):
        """Room for `length` positions and half as many again, so that a token is copied a few times in all."""
        needed = -(-self.length // BLOCK)
        if needed <= self.blocks:
            return
        self.blocks = max(needed + 1, needed * 3 // 2)
        batch, had = self.memory.shape[:2]
        memory = torch.zeros((batch, self.blocks, *self.memory.shape[2:]), dtype=torch.uint8, device=self.device)
        memory[:, :had] = self.memory
        self._take(memory)

    def _pick(self, pick):
        if self.memory is not None:
            self._take(pick(self.memory).contiguous())

    def _take(self, memory):
        self.memory = memory
        if memory.numel():
            self._pages = Pages(memory, self.kv_heads, self.head_dim, self.dtype, self.cache.options.sketch_bits)

    def _append(self, key, value, start):
        self.pending = False
        batch, _, count, _ = key.shape
        own = torch.arange(start, start + count, device=self.device)[None]
        padding = self._padding()
        if padding is not None:
            own = own - padding[:, None]
        first = torch.arange(batch, device=self.device)[:, None] * (self.blocks * BLOCK)
        slots = torch.where(own >= 0, own + first, -1).flatten()
        attention = self._attention(self.kv_heads, self.head_dim**-0.5, BLOCK, 1)  # any will do: no queries
        attention.append(self._pages, key.transpose(1, 2).flatten(0, 1), value.transpose(1, 2).flatten(0, 1), slots)

    def _attention(self, heads, scale, context, rows):
        """The cache's handle for such layers, with room for so much."""
        key = (self.device, self.dtype, heads, self.kv_heads, self.head_dim, scale)
        has = self.cache.handles.get(key)
        if has is None or has.max_context < context or has.max_rows < rows:
            has = self.cache.handles[key] = Attention(
                self.cache.options,
                device=self.device,
                dtype=self.dtype,
                heads=heads,
                kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                max_context=context,
                max_rows=rows,
                scale=scale,
            )
        return has


def find_padding(mask, batch, length):
    """Positions before each sequence's first token, [batch] int64, by the mask of a first pass, [batch or 1, 1, length,
    length]; null: there are none."""
    if mask is None:
        return None
    if mask.dtype.is_floating_point:
        mask = mask >= 0
    seen = mask[:, 0, -1].expand(batch, -1)
    padding = length - seen.sum(-1)
    if bool((seen != (torch.arange(length, device=mask.device) >= padding[:, None])).any()):
        raise Refused("attention_mask: leaves out tokens inside or at the end, expected padding on the left alone")
    return padding if bool((padding > 0).any()) else None
