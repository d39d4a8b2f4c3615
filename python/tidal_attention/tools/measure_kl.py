"""What sparse decoding loses in transformers: mean KL divergence of its next-token distributions from those of full attention,
of the same model on the same text, token by token.

    measure_kl.py --model FOLDER [--gguf FILE] --tokens FILE --context 30000 --steps 256 --budget 256,1024 --device cuda

FILE of --tokens: a JSON list of token ids, at least context + steps. The first `context` go through the model densely, the
others one by one, whatever it would have said. Prints a line for each budget, JSON."""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

import tidal_attention.transformers as tidal

PIECE = 4096  # tokens of a dense pass


@torch.no_grad()
def distributions(model, tokens, context, steps, budget):
    """Log probabilities [steps, vocab], float32 on the host, and seconds a step (without the first)."""
    cache = tidal.TidalCache(model.config, budget=budget)
    for begin in range(0, context, PIECE):
        piece = tokens[:, begin : min(begin + PIECE, context)]
        model(piece, past_key_values=cache, logits_to_keep=1)
    result, times = [], []
    for step in range(context, context + steps):
        begin = time.perf_counter()
        logits = model(tokens[:, step : step + 1], past_key_values=cache).logits[0, -1]
        result.append(logits.float().log_softmax(-1).cpu())  # waits for the device
        times.append(time.perf_counter() - begin)
    return torch.stack(result), sorted(times)[len(times) // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--context", type=int, default=30000)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--budget", default="256")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    gguf = {"gguf_file": given.gguf} if given.gguf else {}
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.bfloat16, attn_implementation="tidal", **gguf
    )  # fmt: skip
    model = model.to(given.device).eval()
    with open(given.tokens) as file:
        tokens = torch.tensor([json.load(file)], device=given.device)
    needed = given.context + given.steps
    if tokens.shape[1] < needed:
        raise SystemExit(f"{given.tokens}: {tokens.shape[1]} tokens, expected at least {needed}")
    full, full_seconds = distributions(model, tokens, given.context, given.steps, needed)
    for budget in map(int, given.budget.split(",")):
        own, seconds = distributions(model, tokens, given.context, given.steps, budget)
        kl = (full.exp() * (full - own)).sum(-1)
        print(
            json.dumps(
                {
                    "budget": budget,
                    "context": given.context,
                    "steps": given.steps,
                    "kl": round(kl.mean().item(), 5),
                    "kl_error": round(kl.std().item() / given.steps**0.5, 5),
                    "same_token": round((full.argmax(-1) == own.argmax(-1)).float().mean().item(), 4),
                    "ms_full": round(1000 * full_seconds, 2),
                    "ms": round(1000 * seconds, 2),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
