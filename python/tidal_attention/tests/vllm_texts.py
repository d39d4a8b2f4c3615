"""Texts of a small random model from vLLM, in a process of its own:
    vllm_texts.py FOLDER SETTINGS REQUESTS [SETS]
SETTINGS: JSON of vllm.LLM's, REQUESTS: JSON [[prompt tokens, ...] of one call, ...]. Writes JSON [[text, ...], ...] and how many
preemptions and cached tokens there were to one line. SETS: a file, to which torch.save() puts the sparse layers' reads of
the last call."""

import json
import sys


def main(folder, settings, requests, sets=None):
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        block_size=64,
        enforce_eager=True,
        disable_log_stats=False,
        **{"dtype": "float32", "max_model_len": 2048, **json.loads(settings)},
    )
    if json.loads(settings).get("pipeline_parallel_size", 1) > 1:
        # On the CPU, where nothing is compiled, the second rank of vLLM 0.32 has memory for what it receives only then.
        llm.collective_rpc("execute_dummy_batch")
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    calls, reads, cached = json.loads(requests), [], []
    texts = []
    for number, prompts in enumerate(calls):
        if sets and number == len(calls) - 1:
            watch(reads)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        texts.append([list(output.outputs[0].token_ids) for output in outputs])
        cached.append(sum(output.num_cached_tokens or 0 for output in outputs))
    preemptions = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    if sets:
        torch.save(reads, sets)
    print(json.dumps({"texts": texts, "cached": cached, "preemptions": preemptions}))


def watch(reads):
    from tidal_attention import vllm_backend

    def take(layer, read):
        pages = read.pages
        reads.append(
            {
                "layer": layer,
                "query": read.query.clone(),
                "memory": pages.memory.clone(),
                "shape": (pages.kv_heads, pages.head_dim, pages.dtype),
                "block_table": read.block_table.clone(),
                "contexts": read.contexts.clone(),
                "positions": read.positions.clone(),
                "counts": read.counts.clone(),
            }
        )

    vllm_backend.watch = take


if __name__ == "__main__":
    main(*sys.argv[1:])
