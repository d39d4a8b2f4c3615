"""The parts of the plug-in for vLLM that need no vLLM."""

from types import SimpleNamespace

import torch

from tidal_attention import Options
from tidal_attention.attention import Attention, Pages, page_bytes
from tidal_attention.vllm_flash import _views, runs_of
from tidal_attention.vllm_prompts import FAR, _keep_prompts_out_of_graphs, _lengths_of_v2


def test_flash_attention_sees_the_rows_of_the_pages():
    kind = torch.bfloat16
    memory = torch.zeros(8 * 2 * page_bytes(64, kind, 2), dtype=torch.uint8)
    cache = Pages(memory, 2, 64, kind, 2)
    options = Options(budget=128, threads=1)
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "max_context": 256, "max_rows": 1}
    attention = Attention(options, device="cpu", dtype=kind, **shape)
    key, value = (torch.randn(130, 2, 64, dtype=kind) for _ in range(2))
    slots = torch.tensor([4, 1, 6]).repeat_interleave(64)[:130] * 64 + torch.arange(130) % 64
    attention.append(cache, key, value, slots)
    keys, values = _views(cache)
    assert keys.data_ptr() == cache.memory.data_ptr(), "a view"
    table = torch.tensor([4, 1, 6])
    assert torch.equal(keys[table].flatten(0, 1)[:130], key)
    assert torch.equal(values[table].flatten(0, 1)[:130], value)


def test_prompts_that_follow_each_other_are_one_run():
    """First token, last, context, row of the table; the second has tokens of its own before it, the third follows it."""
    table = torch.arange(12, dtype=torch.int32).view(4, 3)
    one, two = runs_of([(0, 5, 105, 1), (7, 9, 2, 3), (9, 19, 40, 0)], table, torch.device("cpu"))
    assert (one.first, one.last, one.longest, one.longest_context) == (0, 5, 5, 105)
    assert (two.first, two.last, two.longest, two.longest_context) == (7, 19, 10, 40)
    assert one.starts.tolist() == [0, 5] and two.starts.tolist() == [0, 2, 12]
    assert one.contexts.tolist() == [105] and two.contexts.tolist() == [2, 40]
    assert one.block_table.tolist() == [[3, 4, 5]] and two.block_table.tolist() == [[9, 10, 11], [0, 1, 2]]


def test_rows_of_the_second_runner_that_are_nobodys_are_prompt():
    """Three requests, of which the first recomputes, the second writes, and the third warms vLLM up; and two rows of padding."""
    lengths = torch.tensor([9, 100, 0, 7, 50]).numpy()
    runner = SimpleNamespace(req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=lengths)))
    common = SimpleNamespace(
        req_idx=torch.tensor([4, 1, 2]).numpy(),
        query_start_loc_cpu=torch.tensor([0, 20, 21, 29, 29, 29]),
        is_prefilling=torch.tensor([True, False, False]),
    )
    assert _lengths_of_v2(runner, common).tolist() == [50, 100, FAR]


def test_a_pass_with_a_prompt_replays_no_graph_of_decoding():
    class Runner:
        def gather_batch_req_state(self, has_prefill):
            return (None if has_prefill is None else SimpleNamespace(has_prefill=has_prefill)), 1

    for _ in range(2):  # once is enough
        _keep_prompts_out_of_graphs(Runner)
    assert [Runner().gather_batch_req_state(prompt)[1] for prompt in (False, True, None)] == [1, None, 1]
