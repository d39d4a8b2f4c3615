"""How far llama.cpp's greedy text moves with its settings.

Every setting is fed the tokens that the first one chose. As long as it would have chosen the same, its state is the one
it would have had by itself, so its own text parts from the first one's exactly where its most likely token first differs.
"""
import numpy as np

from libllama import Run, tokenize

STEPS = 24
ON, OFF = 1, 0  # llama_flash_attn_type
BASE = dict(n_ctx=256, n_batch=2048, n_ubatch=512, n_threads=1, n_threads_batch=1, flash_attn_type=ON, type_k=1, type_v=1)

PROMPTS = [
    "The old lighthouse keeper climbed the stairs every evening, and when the storm came he saw",
    "def merge_sorted_lists(first, second):\n    \"\"\"Merge two sorted lists into one.\"\"\"\n",
    "Water boils at a lower temperature on a high mountain because",
    "A recipe for bread needs flour, water, salt and yeast. First, you",
    "The three most important inventions of the nineteenth century were",
    "Dear neighbour, I am writing to you about the tree between our gardens, which",
    "SELECT name, COUNT(*) FROM orders JOIN customers ON",
    "Once there lived a fox who wanted to learn how to swim. One morning the fox",
    "In a small town by the river there was a clockmaker whose clocks",
    "To find the shortest path in a graph with weights, one can use",
]


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def follow(model, prompts, settings, texts=None):
    """Logits [prompts, STEPS, vocab] along `texts`, or along the setting's own greedy text, which is returned too."""
    run = Run(model, **settings)
    all_logits, all_texts = [], []
    for i, prompt in enumerate(prompts):
        run.clear()
        logits, text = [run.decode(prompt)], []
        for step in range(STEPS):
            text.append(texts[i][step] if texts else int(logits[-1].argmax()))
            if step + 1 < STEPS:
                logits.append(run.decode([text[-1]]))
        all_logits.append(logits)
        all_texts.append(text)
    run.close()
    return all_logits, all_texts


def compare(model, prompts, base, others):
    """Prints a row for each of `others` (name: settings that differ) and returns name: prompts whose text differs."""
    theirs, texts = follow(model, prompts, base)
    differing = {}
    print(f"    {'':34} texts that differ   same token   mean KL    widest margin lost")
    for name, change in others.items():
        ours, _ = follow(model, prompts, base | change, texts)
        different, same, kl, margin = 0, 0, 0.0, 0.0
        for i in range(len(prompts)):
            parted = False
            for step in range(STEPS):
                a, b = theirs[i][step], ours[i][step]
                p, q = _log_softmax(a), _log_softmax(b)
                kl += float((np.exp(p) * (p - q)).sum())
                if a.argmax() == b.argmax():
                    same += 1
                else:
                    parted = True
                    margin = max(margin, float(a.max() - a[b.argmax()]))
            different += parted
        count = len(prompts) * STEPS
        print(f"    {name:34} {different:7} of {len(prompts)} {100 * same / count:12.1f} % {kl / count:11.5f} {margin:14.2f}",
              flush=True)
        differing[name] = different
    return differing


def prompts_of(model, texts):
    return [tokenize(model, text) for text in texts]
