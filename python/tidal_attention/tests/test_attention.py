"""The binding: what it hands over, and what it refuses in one sentence."""

import pytest
import torch

from tidal_attention import Options, Refused
from tidal_attention.attention import Attention, Pages, page_bytes

OPTIONS = Options(budget=128, threads=1)


def handle(**changes):
    shape = {"device": "cpu", "dtype": torch.float32, "heads": 4, "kv_heads": 2, "head_dim": 64}
    return Attention(OPTIONS, **{**shape, "max_context": 1024, "max_rows": 2, **changes})


def pages(blocks=8, dtype=torch.float32):
    memory = torch.zeros(blocks * 2 * page_bytes(64, dtype, 2), dtype=torch.uint8)
    return Pages(memory, 2, 64, dtype, 2)


def test_a_page_is_64_rows_and_a_sketch():
    assert page_bytes(128, torch.bfloat16, 2) == 64 * 552
    assert page_bytes(64, torch.float32, 2) == 64 * 512 + 1280


def test_rows_land_where_slots_say():
    attention, cache = handle(), pages()
    key, value = torch.randn(3, 2, 64), torch.randn(3, 2, 64)
    attention.append(cache, key, value, torch.tensor([64 * 5 + 7, -1, 2]))
    rows = cache.rows()
    assert torch.equal(rows[5, :, 7], torch.cat([key[0], value[0]], 1))
    assert torch.equal(rows[0, :, 2], torch.cat([key[2], value[2]], 1))
    assert rows.count_nonzero() == 4 * 2 * 64


@pytest.mark.parametrize("context", [1, 64, 100, 128])
def test_up_to_the_budget_it_is_torchs_attention(context):
    """Strided rows, as slices of one product of q, k and v are; more rows than a call takes."""
    torch.manual_seed(context)
    attention, cache = handle(scale=0.3), pages()
    table = torch.tensor([[3, 1]] * 3, dtype=torch.int32)
    mixed = torch.randn(context, 3, 2, 64)
    slots = table[0].to(torch.int64).repeat_interleave(64)[:context] * 64 + torch.arange(context) % 64
    attention.append(cache, mixed[:, 0], mixed[:, 1], slots)
    q = torch.randn(3, 4, 64)
    out = attention.attend(cache, q, table, torch.full((3,), context, dtype=torch.int32), torch.empty_like(q))
    k, v = (mixed[:, i].repeat_interleave(2, 1).transpose(0, 1) for i in (0, 1))
    full = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, scale=0.3).transpose(0, 1)
    torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_refused():
    attention, cache = handle(), pages()
    q, contexts = torch.zeros(1, 4, 64), torch.tensor([65], dtype=torch.int32)
    with pytest.raises(Refused, match="block_table: entry 1 of row 0 is 8, expected 0 to 7"):
        attention.attend(cache, q, torch.tensor([[0, 8]], dtype=torch.int32), contexts, torch.empty_like(q))
    with pytest.raises(Refused, match="table_stride: 1 blocks a row, row 0 needs 2"):
        attention.attend(cache, q, torch.tensor([[0]], dtype=torch.int32), contexts, torch.empty_like(q))
    with pytest.raises(Refused, match="block_table: torch.int64"):
        attention.attend(cache, q, torch.tensor([[0, 1]]), contexts, torch.empty_like(q))
    with pytest.raises(Refused, match="q: torch.bfloat16, expected torch.float32"):
        attention.attend(cache, q.bfloat16(), torch.tensor([[0, 1]], dtype=torch.int32), contexts, q)
    with pytest.raises(Refused, match="slots: row 0 has 512, expected less than 512"):
        attention.append(cache, torch.zeros(1, 2, 64), torch.zeros(1, 2, 64), torch.tensor([512]))
    with pytest.raises(Refused, match="heads: 5, expected a multiple of kv_heads, which is 2"):
        handle(heads=5)
    with pytest.raises(Refused, match="head_dim: 72, expected a multiple of 16"):
        handle(head_dim=72)
    with pytest.raises(Refused, match="device: meta, expected cpu or cuda"):
        handle(device="meta")
    with pytest.raises(Refused, match="cache: 100 bytes, expected contiguous pages of"):
        Pages(torch.zeros(100, dtype=torch.uint8), 2, 64, torch.float32, 2)
    with pytest.raises(Refused, match="sketch_bits: 3, expected 1, 2 or 4"):
        Options(sketch_bits=3)
    with pytest.raises(Refused, match="budget: '9', expected a whole number"):
        Options(budget="9")
