"""What sparse decoding loses in transformers: mean KL divergence of its next-token distributions from those of full attention,
of the same model on the same text, token by token.

    measure_kl.py --model FOLDER|FILE.gguf --tokens FILE --context 30000 --steps 256 --budget 256,1024 --device cuda

Of GGUF files those of the architecture qwen2, dequantised to bf16 (the package gguf reads them). FILE of --tokens: a JSON list of token ids, at least context + steps. The first `context` go through the model densely, the
others one by one, whatever it would have said. Prints a line for each budget, JSON."""

import argparse
import json
import re
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import tidal_attention.transformers as tidal

PIECE = 4096  # tokens of a dense pass


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def from_gguf(path):
    """A model of the file's weights, bf16."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    key = lambda name: reader.get_field(f"qwen2.{name}").contents()  # noqa: E731
    weights = {}
    for tensor in reader.tensors:
        layer, name, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name).groups()
        place = NAMES[name] if layer is None else f"model.layers.{layer}.{NAMES[name]}"
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        weights[f"{place}.{kind}"] = values.view(*reversed(tensor.shape.tolist())).to(torch.bfloat16)
    config = Qwen2Config(
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
        tie_word_embeddings="lm_head.weight" not in weights,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="tidal", dtype=torch.bfloat16)
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"{path}: tensors {missing} are missing, {unknown} are not known")
    model.tie_weights()
    return model


@torch.no_grad()
def distributions(model, tokens, context, steps, budget, bits):
    """Log probabilities [steps, vocab], float32 on the host, and seconds a step (without the first)."""
    cache = tidal.TidalCache(model.config, budget=budget, sketch_bits=bits)
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
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--context", type=int, default=30000)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--budget", default="256")
    parser.add_argument("--bits", type=int, default=2, help="of a key's element in its sketch")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    if given.model.endswith(".gguf"):
        model = from_gguf(given.model)
    else:
        model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16, attn_implementation="tidal")
    model = model.to(given.device).eval()
    with open(given.tokens) as file:
        tokens = torch.tensor([json.load(file)], device=given.device)
    needed = given.context + given.steps
    if tokens.shape[1] < needed:
        raise SystemExit(f"{given.tokens}: {tokens.shape[1]} tokens, expected at least {needed}")
    full, full_seconds = distributions(model, tokens, given.context, given.steps, needed, given.bits)
    said = tokens[0, given.context + 1 : needed].cpu()
    loss = -full[:-1].gather(1, said[:, None]).mean().item()  # of the text, in nats a token: that the weights are right
    for budget in map(int, given.budget.split(",")):
        own, seconds = distributions(model, tokens, given.context, given.steps, budget, given.bits)
        kl = (full.exp() * (full - own)).sum(-1)
        print(
            json.dumps(
                {
                    "budget": budget,
                    "bits": given.bits,
                    "context": given.context,
                    "steps": given.steps,
                    "loss_full": round(loss, 3),
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
