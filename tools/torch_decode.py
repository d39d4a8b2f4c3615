#!/usr/bin/env python3
"""Times a decode step with full attention in PyTorch, as the yardstick for tidal on a GPU:

    tools/torch_decode.py llama-2-7b:1:10240 llama-3-8b:8:32768 >torch.jsonl     # shape:batch:positions in the cache

Random weights and caches in bf16. The step is the best that PyTorch gives without kernels of one's own: q, k and v as one
product, gate and up as one, what lies between products fused by torch.compile, attention by cuDNN or FlashAttention
(each is timed, --attention), everything up to the chosen tokens in one CUDA graph. Prints a JSON line for every case and
kind of attention: the median and the fastest replay in ms, or `error` with the reason.
"""
import argparse
import json
import statistics
import sys

try:
    import torch
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"torch_decode: PyTorch is missing ({error}), expected a python3 with torch for CUDA")

HEAD_DIM = 128
LAYERS = 32
#         width, heads, KV heads, ffn, vocabulary
SHAPES = {"llama-2-7b": (4096, 32, 32, 11008, 32000), "llama-3-8b": (4096, 32, 8, 14336, 128256)}
ATTENTION = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
WARM_UP = 5


def normalised(x, weight):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


@torch.compile(dynamic=False)
def norm(x, weight):
    return normalised(x, weight)


@torch.compile(dynamic=False)
def add_norm(x, y, weight):
    total = x + y
    return total, normalised(total, weight)


@torch.compile(dynamic=False)
def rotate(x, cosine, sine):
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


@torch.compile(dynamic=False)
def silu_product(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def random(*shape, scale=0.02):
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda").mul_(scale)


class Weights:
    def __init__(self, shape):
        width, heads, kv_heads, ffn, vocabulary = SHAPES[shape]
        self.layers = [
            {
                "qkv": random((heads + 2 * kv_heads) * HEAD_DIM, width),
                "out": random(width, heads * HEAD_DIM),
                "gate_up": random(2 * ffn, width),
                "down": random(width, ffn),
                "attn_norm": random(width) + 1,
                "ffn_norm": random(width) + 1,
            }
            for _ in range(LAYERS)
        ]
        self.output_norm = random(width) + 1
        self.output = random(vocabulary, width)


class Step:
    """One token of every sequence, the last of `positions`."""

    def __init__(self, shape, weights, batch, positions):
        self.weights = weights
        self.batch = batch
        width, self.heads, self.kv_heads, _, _ = SHAPES[shape]
        cache = lambda: random(batch, self.kv_heads, positions, HEAD_DIM, scale=1.0)
        self.caches = [(cache(), cache()) for _ in range(LAYERS)]
        self.last = torch.tensor([positions - 1], device="cuda")
        self.cosine = random(batch, 1, HEAD_DIM // 2) + 1
        self.sine = random(batch, 1, HEAD_DIM // 2)
        self.x = random(batch, width, scale=1.0)

    def attend(self, hidden, layer):
        keys, values = self.caches[layer]
        qkv = functional.linear(hidden, self.weights.layers[layer]["qkv"])
        qkv = qkv.view(self.batch, self.heads + 2 * self.kv_heads, HEAD_DIM)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        keys.index_copy_(2, self.last, rotate(k, self.cosine, self.sine).unsqueeze(2))
        values.index_copy_(2, self.last, v.unsqueeze(2))
        q = rotate(q, self.cosine, self.sine).unsqueeze(2)
        out = functional.scaled_dot_product_attention(q, keys, values, enable_gqa=self.heads != self.kv_heads)
        return out.reshape(self.batch, self.heads * HEAD_DIM)

    def __call__(self):
        layers = self.weights.layers
        x, hidden = self.x, norm(self.x, layers[0]["attn_norm"])
        for index, layer in enumerate(layers):
            out = functional.linear(self.attend(hidden, index), layer["out"])
            x, hidden = add_norm(x, out, layer["ffn_norm"])
            product = silu_product(functional.linear(hidden, layer["gate_up"]))
            following = layers[index + 1]["attn_norm"] if index + 1 < LAYERS else self.weights.output_norm
            x, hidden = add_norm(x, functional.linear(product, layer["down"]), following)
        return functional.linear(hidden, self.weights.output).argmax(-1)


def replay_times(step, attention, replays):
    """Milliseconds of every replay of the step's graph."""
    with sdpa_kernel(ATTENTION[attention]), torch.no_grad():
        for _ in range(2):  # compiles, and lets libraries choose their kernels
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        times = []
        for replay in range(WARM_UP + replays):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if replay >= WARM_UP:
                times.append(begin.elapsed_time(end))
    return times


def parse_case(text):
    parts = text.split(":")
    if len(parts) != 3 or parts[0] not in SHAPES or not all(part.isdigit() and int(part) > 0 for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"'{text}' is no shape:batch:positions with a shape of {', '.join(SHAPES)}")
    return parts[0], int(parts[1]), int(parts[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=parse_case, metavar="SHAPE:BATCH:POSITIONS")
    parser.add_argument("--attention", default="cudnn,flash", help="kinds to time, a list of %(default)s")
    parser.add_argument("--replays", type=int, default=30)
    flags = parser.parse_args()
    kinds = flags.attention.split(",")
    if not set(kinds) <= set(ATTENTION) or flags.replays < 1:
        parser.error(f"--attention takes {', '.join(ATTENTION)}, --replays 1 or more")
    if not torch.cuda.is_available():
        sys.exit("torch_decode: PyTorch finds no GPU (torch.cuda.is_available() is false)")
    torch.manual_seed(0)
    common = {"engine": "torch " + torch.__version__, "machine": torch.cuda.get_device_name()}
    weights, loaded = None, None
    for shape, batch, positions in flags.cases:
        if shape != loaded:
            weights = None  # before there is memory for the next
            torch.cuda.empty_cache()
            weights, loaded = Weights(shape), shape
        step = None
        for kind in kinds:
            row = dict(common, model=shape, attention=kind, depth=positions, batch=batch)
            try:
                step = step or Step(shape, weights, batch, positions)
                times = replay_times(step, kind, flags.replays)
                row.update(ms_per_step=round(statistics.median(times), 4), ms_min=round(min(times), 4))
            except Exception as error:  # a kind that cannot, or too little memory: the other cases go on
                row["error"] = (str(error) or type(error).__name__).splitlines()[0]
            print(json.dumps(row), flush=True)
        step = None
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
