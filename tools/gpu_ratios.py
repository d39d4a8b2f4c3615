#!/usr/bin/env python3
"""Prints tidal's decode steps beside PyTorch's, from what tools/bench_gpu.sh has measured:

    tools/gpu_ratios.py tidal.jsonl torch.jsonl

tidal.jsonl: rows of `tidal bench -o jsonl --details`; torch.jsonl: those of tools/torch_decode.py. The ratio is PyTorch's
time with full attention, the better of its kinds, over tidal's: above 1 tidal is faster.
"""
import json
import sys

# The least ratio. Full attention must keep up; tidal attention, by model, batch and depth, must gain what its floor of
# weights and K/V leaves room for (docs/performance_cuda.md).
FULL = 0.95
TIDAL = {
    ("llama-2-7b", 1, 10240): 1.35,
    ("llama-2-7b", 1, 32768): 1.8,
    ("llama-2-7b", 1, 102400): 2.8,
    ("llama-3-8b", 1, 10240): 1.2,
    ("llama-3-8b", 1, 32768): 1.35,
    ("llama-3-8b", 1, 102400): 1.65,
    ("llama-3-8b", 16, 32768): 2.7,
}
# The most that sketch attention may take of tidal attention's time, by depth.
SKETCH_OF_TIDAL = {10240: 1.3, 32768: 1.2, 102400: 1.1}


def rows_of(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def key_of(row):
    return row["model"].split()[0], row["batch"], row["depth"]


def torch_times(rows):
    """The best kind for every case: (ms, kind)."""
    best = {}
    for row in rows:
        if "error" not in row:
            best[key_of(row)] = min(best.get(key_of(row), (float("inf"), "")), (row["ms_per_step"], row["attention"]))
    return best


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tidal, torch = rows_of(sys.argv[1]), rows_of(sys.argv[2])
    theirs = torch_times(torch)
    steps = [row for row in tidal if row["test"].startswith("tg")]
    by_kind = {key_of(row) + (row["attention"],): row["ms_per_token"] * row["batch"] for row in steps}
    print(f"{steps[0]['machine'] if steps else 'no rows of tidal'}; {torch[0]['engine'] if torch else 'no rows of torch'}")
    print("ms of a decode step of all sequences; ratio: torch, full attention, over tidal; *: misses the bar\n")
    print("| model | batch | depth | attention | tidal | torch | ratio | bar | sketch over tidal | bar |")
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for row in steps:
        key, kind = key_of(row), row["attention"]
        ours = by_kind[key + (kind,)]
        bar = FULL if kind == "full" else TIDAL.get(key) if kind == "tidal" else None
        words = f"{bar:.2f}" if bar else ""
        cells = [key[0], str(key[1]), str(key[2]), kind, f"{ours:.2f}"]
        if key in theirs:
            ms, which = theirs[key]
            cells += [f"{ms:.2f} {which}", f"{ms / ours:.2f}{' *' if bar and ms / ours < bar else ''}", words]
        else:
            cells += ["-", "-", words]
        limit, other = SKETCH_OF_TIDAL.get(key[2]), by_kind.get(key + ("tidal",))
        if kind == "sketch" and limit and other:
            cells += [f"{ours / other:.2f}{'' if ours / other <= limit else ' *'}", f"{limit:.2f}"]
        else:
            cells += ["", ""]
        print("| " + " | ".join(cells) + " |")
    for row in torch:
        if "error" in row:
            print(f"\ntorch, {row['attention']}, {row['model']}, batch {row['batch']} at {row['depth']}: {row['error']}")


if __name__ == "__main__":
    main()
