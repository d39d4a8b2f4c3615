"""What a token that is decoded takes inside vLLM, on a GPU: a process with vLLM's own attention, another with tidal's.

    measure_vllm.py speed [--budget 256] [--cases 32768x1,131072x1,32768x8] [--settings JSON of vllm.LLM's]
    measure_vllm.py texts FILE [--budget 65536]

Without --budget it is vLLM's own attention. `speed`: a model of the shape of Llama 3 8B with dummy weights; the time between a
call for 16 tokens and one for 144, whose prompts are cached, the least of three. `texts`: what a small random model writes behind
prompts of 5 to 3,000 tokens, eight at a time, and the logarithms of the probabilities, to a JSON file; a second file is compared with
`measure_vllm.py compare FILE FILE`."""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

FEW, MANY, TIMES = 16, 144, 3
LENGTHS = (5, 63, 64, 65, 300, 1000, 2000, 3000)
# Graphs of single tokens' passes, nothing compiled.
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}


def llama(layers, width, inner, heads, kv_heads, vocabulary, positions):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=None,
    )


def engine(folder, budget, settings):
    from vllm import LLM

    own = {}
    if budget:
        own = {"attention_backend": "CUSTOM", "additional_config": {"tidal_attention": {"budget": budget}}}
    shared = {
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "block_size": 64,
        "max_num_seqs": 8,
        "compilation_config": GRAPHS,
    }
    return LLM(folder, **{**shared, **own, **settings})


def prompt(length, seed, vocabulary):
    import torch

    generator = torch.Generator().manual_seed(1000 * seed + length)
    return {"prompt_token_ids": torch.randint(0, vocabulary, (length,), generator=generator).tolist()}


def seconds(llm, prompts, tokens):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def speed(given, folder):
    cases = [tuple(int(number) for number in case.split("x")) for case in given.cases.split(",")]
    longest = max(length for length, _ in cases) + MANY + 64
    start = time.perf_counter()
    llama(given.layers, 4096, 14336, 32, 8, 128256, longest).save_pretrained(folder)
    settings = {"load_format": "dummy", "max_model_len": longest, "max_num_batched_tokens": 16384}
    llm = engine(folder, given.budget, {**settings, **given.settings})
    print(json.dumps({"ready_s": round(time.perf_counter() - start, 1)}), flush=True)
    for length, batch in cases:
        prompts = [prompt(length, seed, 128256) for seed in range(batch)]
        filled = seconds(llm, prompts, 1)
        seconds(llm, prompts, FEW)
        each = [[seconds(llm, prompts, tokens) for tokens in (FEW, MANY)] for _ in range(TIMES)]
        steps = [(many - few) / (MANY - FEW) for few, many in each]
        print(
            json.dumps(
                {
                    "context": length,
                    "batch": batch,
                    "budget": given.budget,
                    "ms_a_step": [round(1e3 * step, 3) for step in steps],
                    "tokens_per_s": round(batch / min(steps), 1),
                    "prompts_s": round(filled, 2),
                }
            ),
            flush=True,
        )


def texts(given, folder):
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import SamplingParams

    config = llama(4, 1024, 1024, 8, 2, 2048, 4096)
    config.initializer_range = 0.1
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    llm = engine(folder, given.budget, {"max_model_len": 4096, "gpu_memory_utilization": 0.3, **given.settings})
    prompts = [prompt(length, 0, 2048) for length in LENGTHS]
    sampling = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, detokenize=False, logprobs=2)
    result = []
    for prompts_of_call in ([prompts] * 2) + [[each] for each in prompts]:  # together, cached, each alone
        for output in llm.generate(prompts_of_call, sampling, use_tqdm=False):
            one = output.outputs[0]
            best = [sorted((entry.logprob for entry in step.values()), reverse=True)[:2] for step in one.logprobs]
            result.append({"tokens": list(one.token_ids), "best": best})
    with open(given.file, "w") as file:
        json.dump(result, file)
    count = len(LENGTHS)
    same = [result[i]["tokens"] == result[i + count]["tokens"] for i in range(count)]
    alone = [result[i]["tokens"] == result[i + 2 * count]["tokens"] for i in range(count)]
    print(json.dumps({"budget": given.budget, "same_when_cached": same, "same_alone": alone}), flush=True)


def compare(given, _):
    first, second = (json.load(open(name)) for name in (given.file, given.other))
    for one, other in list(zip(first, second))[: len(LENGTHS)]:
        pairs = list(zip(one["tokens"], other["tokens"]))
        same = next((step for step, (a, b) in enumerate(pairs) if a != b), len(pairs))
        apart = [abs(a[0] - b[0]) for a, b in zip(one["best"][:same], other["best"][:same])]
        # Where they part: how far apart the two best tokens were.
        margin = round(one["best"][same][0] - one["best"][same][1], 4) if same < len(pairs) else None
        print(json.dumps({"same_tokens": same, "of": len(pairs), "most_apart": max(apart, default=0), "margin": margin}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "texts", "compare"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--cases", default="32768x1,131072x1,32768x8")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"speed": speed, "texts": texts, "compare": compare}[given.what](given, folder)


if __name__ == "__main__":
    main()
