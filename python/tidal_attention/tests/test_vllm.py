"""vLLM with `--attention-backend CUSTOM` against vLLM's own attention, and against the engine on the same cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import own_sets, small_config
from tidal_attention import Options
from tidal_attention.attention import Pages

pytest.importorskip("vllm")

WHOLE, FEW = 4096, 128
LENGTHS = (5, 63, 64, 65, 200, 300, 500, 700)


def tokens(length, seed=0):
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(1000 * seed + length)).tolist()


PROMPTS = [tokens(length) for length in LENGTHS]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Four layers, so that two ranks have two of them each; four query heads and two KV heads of 64."""
    torch.manual_seed(1)
    config = small_config(4, 4)
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm(folder):
    """A function of (calls, budget or None for vLLM's own attention, further settings): what vllm_texts.py prints."""

    def run(calls, budget=None, sets=None, fails=False, **settings):
        if budget:
            options = {"tidal_attention": {"budget": budget}}
            settings = {"attention_backend": "CUSTOM", "additional_config": options, **settings}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if "parallel" in " ".join(settings) else "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        program = [sys.executable, str(Path(__file__).with_name("vllm_texts.py")), str(folder)]
        program += [json.dumps(settings), json.dumps(calls), *([str(sets)] if sets else [])]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
        if fails:
            assert done.returncode != 0
            return done.stderr
        assert done.returncode == 0, done.stderr[-4000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith('{"texts"'))
        return SimpleNamespace(**json.loads(line))

    return run


@pytest.fixture(scope="session")
def alone(vllm):
    """Each prompt's text by itself, with a budget of FEW: nothing beside it, nothing cached."""
    return [texts[0] for texts in vllm([[p] for p in PROMPTS], FEW, enable_prefix_caching=False).texts]


def test_with_room_for_everything_the_text_is_vllms_own(vllm, alone):
    own, stock = vllm([PROMPTS], WHOLE).texts, vllm([PROMPTS]).texts
    assert own == stock
    differ = [length for length, a, b in zip(LENGTHS, alone, stock[0]) if a != b]
    assert differ and min(differ) > FEW - 24, "a random model's text is another with 128 positions, where there are more"


def test_eight_ragged_requests_get_what_each_gets_alone(vllm, alone):
    assert vllm([PROMPTS], FEW, max_num_seqs=8).texts == [alone]


def test_prompts_in_chunks_and_prefixes_that_are_cached_change_nothing(vllm, alone):
    """Chunks of 96 tokens among others' decoding; then the same prompts once more, their blocks in the cache."""
    result = vllm([PROMPTS, PROMPTS], FEW, max_num_batched_tokens=96, enable_chunked_prefill=True, max_num_seqs=8)
    assert result.texts == [alone, alone]
    assert result.cached[0] == 0 and result.cached[1] >= sum((length - 1) // 64 * 64 for length in LENGTHS)


def test_a_preempted_request_goes_on_as_if_it_had_not_been(vllm):
    """16 blocks, two requests that begin with 7 each and end with 9: one is computed again, in chunks, what it had written
    included."""
    prompts = [tokens(440, 5), tokens(441, 6)]
    settings = {"enable_prefix_caching": False, "max_num_batched_tokens": 100, "max_model_len": 512}
    own = [texts[0] for texts in vllm([[p] for p in prompts], FEW, **settings).texts]
    result = vllm([prompts], FEW, num_gpu_blocks_override=16, **settings)
    assert result.preemptions > 0
    assert result.texts == [own]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sets_are_those_of_the_engine(vllm, engine_sets, tmp_path, dtype):
    """Of all layers, for the last steps of requests of unlike lengths; blocks are where a first call has left room."""
    file = tmp_path / "sets"
    # 64 blocks are enough, and every read has a copy of them all.
    settings = {"enable_prefix_caching": False, "num_gpu_blocks_override": 64}
    vllm([PROMPTS, PROMPTS[3:7]], FEW, sets=file, dtype=dtype, **settings)
    reads = torch.load(file, weights_only=False)
    assert len(reads) == 4 * 23
    sparse = 0
    for read in reads[-4 * 3 :: 3]:
        heads, head_dim, kind = read["shape"]
        pages = Pages(read["memory"], heads, head_dim, kind, 2)
        told = SimpleNamespace(**{**read, "pages": pages})
        own = own_sets(told)
        assert own == engine_sets("cpu", Options(budget=FEW), told)
        sparse += sum(1 for positions in own if positions)
    assert sparse >= 4 * 3 * 2, "three of the four requests are longer than the budget"


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_two_processes_write_what_one_writes(vllm, alone, parallel):
    settings = {f"{parallel}_parallel_size": 2, "enable_prefix_caching": False, "async_scheduling": False}
    assert vllm([PROMPTS], FEW, **settings).texts == [alone]


def test_what_it_does_not_do_is_refused(vllm):
    for settings, sentence in [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: "),
        ({"additional_config": {"tidal_attention": {"buget": 1}}}, "buget: not known, expected one of"),
        ({"dtype": "float16"}, "dtype: torch.float16, expected torch.bfloat16"),
    ]:
        assert f"Refused: {sentence}" in vllm([[tokens(5)]], FEW, fails=True, **settings), settings
