"""The attention of one shape on one device, over torch's tensors."""

from ctypes import c_void_p

import torch

from tidal_attention.errors import Refused
from tidal_attention.library import BF16, BLOCK, CPU, CUDA, FLOAT32, CacheView, CreateOptions, byref, library

_DTYPES = {torch.bfloat16: BF16, torch.float32: FLOAT32}


def sketch_bytes(head_dim, bits):
    """Bytes of the sketch of a block and KV head."""
    size = library().sketch_bytes(head_dim, bits)
    if size == 0:
        raise Refused(f"head_dim: {head_dim}, expected a multiple of 16 from 16 to 512")
    return size


def page_bytes(head_dim, dtype, bits):
    """Bytes of a block and KV head: 64 rows [K | V], then their sketch. A multiple of 64."""
    return BLOCK * 2 * head_dim * dtype.itemsize + sketch_bytes(head_dim, bits)


class Pages:
    """A layer's cache: `memory` has a page of page_bytes() for each block and KV head, one behind the other. Any dtype and
    shape; its elements are contiguous."""

    def __init__(self, memory, kv_heads, head_dim, dtype, bits):
        size = page_bytes(head_dim, dtype, bits)
        total = memory.numel() * memory.element_size()
        if not memory.is_contiguous() or total == 0 or total % (size * kv_heads):
            raise Refused(
                f"cache: {total} bytes, expected contiguous pages of {size} bytes for each block and of {kv_heads} KV heads"
            )
        self.memory, self.kv_heads, self.head_dim, self.dtype = memory, kv_heads, head_dim, dtype
        self.blocks = total // (size * kv_heads)
        tile = BLOCK * 2 * head_dim * dtype.itemsize
        self.view = CacheView(memory.data_ptr(), size, memory.data_ptr() + tile, size, self.blocks)

    def rows(self):
        """[blocks, kv_heads, 64, 2 * head_dim], what K and V are in; a view."""
        flat = self.memory.view(-1).view(self.dtype).view(self.blocks, self.kv_heads, -1)
        return flat[:, :, : BLOCK * 2 * self.head_dim].unflatten(2, (BLOCK, 2 * self.head_dim))


class Attention:
    """A handle of the library. Not for several threads at once."""

    def __init__(self, options, *, device, dtype, heads, kv_heads, head_dim, max_context, max_rows, scale=0.0):
        if dtype not in _DTYPES:
            raise Refused(f"dtype: {dtype}, expected torch.bfloat16, or torch.float32 on the CPU")
        device = torch.device(device)
        if device.type not in ("cpu", "cuda"):
            raise Refused(f"device: {device.type}, expected cpu or cuda")
        self.options, self.dtype, self.device = options, dtype, device
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.max_context, self.max_rows, self.scale = max_context, max_rows, scale
        given = CreateOptions(
            version=library().version(),
            device=CPU if device.type == "cpu" else CUDA,
            device_index=device.index or 0,
            threads=min(options.threads or torch.get_num_threads(), 1024),
            dtype=_DTYPES[dtype],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            sketch_bits=options.sketch_bits,
            budget=options.budget,
            max_context=max_context,
            max_rows=max_rows,
            scale=scale or 0.0,
        )
        self._handle = c_void_p()
        self._check(library().create(byref(given), byref(self._handle)))
        self.most_selected = library().most_selected(self._handle)

    def __del__(self):
        if getattr(self, "_handle", None):
            library().free(self._handle)

    def _check(self, code):
        if code:
            raise Refused(library().error().decode())

    def _stream(self):
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None

    def _here(self, name, tensor):
        if tensor.device.type != self.device.type or (tensor.device.index or 0) != (self.device.index or 0):
            raise Refused(f"{name}: on {tensor.device}, expected {self.device}, that of the handle")

    def _rows(self, name, tensor, width):
        """The address and the stride of [rows, width]-like elements of the handle's dtype."""
        if tensor.dtype != self.dtype:
            raise Refused(f"{name}: {tensor.dtype}, expected {self.dtype}, that of the cache")
        self._here(name, tensor)
        rows_of = tensor.dim() == 3 and tensor.shape[1] * tensor.shape[2] == width and tensor.stride(2) == 1
        if not rows_of or (tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]):
            raise Refused(f"{name}: shape {list(tensor.shape)}, expected rows of {width} elements one behind the other")
        return tensor.data_ptr(), tensor.stride(0) if tensor.shape[0] > 1 else width

    def append(self, pages, key, value, slots):
        """Writes K and V [rows, kv_heads, head_dim] to `slots` [rows] int64 (block * 64 + offset, below 0: nowhere), and
        the sketches of the blocks that are full with them."""
        if key.shape[0] == 0:
            return
        width = self.kv_heads * self.head_dim
        key = key if key.stride(-1) == 1 and key.stride(1) == self.head_dim else key.contiguous()
        value = value if value.stride(-1) == 1 and value.stride(1) == self.head_dim else value.contiguous()
        keys, key_stride = self._rows("key", key, width)
        values, value_stride = self._rows("value", value, width)
        if slots.dtype != torch.int64 or not slots.is_contiguous() or slots.numel() < key.shape[0]:
            raise Refused(f"slots: {slots.dtype} {list(slots.shape)}, expected int64, one for each row")
        self._here("slots", slots)
        self._check(
            library().append(
                self._handle, byref(pages.view), key.shape[0], keys, key_stride, values, value_stride,
                slots.data_ptr(), self._stream(),
            )
        )  # fmt: skip

    def attend(self, pages, q, block_table, contexts, out, sets=None):
        """out [rows, heads, head_dim] = attention of q, the same, each row the last token of a sequence of contexts[row]
        positions in the blocks of block_table[row], int32 both.
        `sets`: tensors (positions [rows, kv_heads, most_selected], counts [rows, kv_heads]) int32, to be filled."""
        rows = q.shape[0]
        if rows == 0:
            return out
        width = self.heads * self.head_dim
        q = q if q.stride(-1) == 1 and q.stride(1) == self.head_dim else q.contiguous()
        queries, q_stride = self._rows("q", q, width)
        outs, out_stride = self._rows("out", out, width)
        for name, table in (("block_table", block_table), ("contexts", contexts)):
            if table.dtype != torch.int32 or table.stride(-1) != 1 or table.shape[0] < rows:
                raise Refused(f"{name}: {table.dtype} {list(table.shape)}, expected int32, one for each row")
            self._here(name, table)
        for name, tensor, each in zip(("positions", "counts"), sets or (), (self.most_selected, 1)):
            if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.numel() < rows * self.kv_heads * each:
                raise Refused(f"{name}: {tensor.dtype} {list(tensor.shape)}, expected int32, {each} for each row and KV head")
            self._here(name, tensor)
        positions, counts = (sets[0].data_ptr(), sets[1].data_ptr()) if sets else (None, None)
        for first in range(0, rows, self.max_rows):
            count = min(self.max_rows, rows - first)
            self._check(
                library().attend(
                    self._handle, byref(pages.view), count,
                    queries + first * q_stride * q.element_size(), q_stride,
                    block_table.data_ptr() + first * block_table.stride(0) * 4, block_table.stride(0),
                    contexts.data_ptr() + first * 4,
                    outs + first * out_stride * out.element_size(), out_stride,
                    positions and positions + first * self.kv_heads * self.most_selected * 4,
                    counts and counts + first * self.kv_heads * 4, self._stream(),
                )
            )  # fmt: skip
        return out
