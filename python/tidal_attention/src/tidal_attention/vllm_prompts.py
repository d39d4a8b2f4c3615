"""Where a request's prompt ends, which vLLM tells no backend.

After a preemption vLLM computes what a request had written once more, as if it were prompt. A backend that decodes sparsely
must do that as it was done at first, or the request's text changes. The model runners know; this asks them."""

import sys

import torch

from tidal_attention.errors import Refused

FAR = 1 << 30  # where no prompt ends


def ask_the_model_runner(builder_class):
    """Has the runners that are made from now on tell builders of `builder_class`; no runner replays a graph of decoding
    for a last token of a prompt."""
    module = sys.modules.get("vllm.v1.worker.gpu_model_runner")
    _extend(module, "initialize_metadata_builders", lambda self: _tell(self, builder_class, _lengths_of_v1))
    module = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    _extend(module, "initialize_kv_cache", lambda self: _tell(self, builder_class, _lengths_of_v2))
    _keep_prompts_out_of_graphs(getattr(module, "GPUModelRunner", None))


def _method(runner, name):
    """A method that must be there where there is such a runner: without it texts would change, silently."""
    if runner is None:
        return None
    if not hasattr(runner, name):
        raise Refused(f"vLLM: its model runner has no {name}, expected that of 0.32 or 0.33")
    return getattr(runner, name)


def _extend(module, name, then):
    """Has `then` called behind the runner's method."""
    runner = getattr(module, "GPUModelRunner", None)
    original = _method(runner, name)
    if original is None or getattr(original, "of_tidal", False):
        return

    def extended(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        then(self)
        return result

    extended.of_tidal = True
    setattr(runner, name, extended)


def _tell(runner, builder_class, lengths_of):
    for groups in runner.attn_groups:
        for group in groups:
            for builder in group.metadata_builders:
                if isinstance(builder, builder_class):
                    builder.prompt_lengths = lambda common: lengths_of(runner, common)


def _lengths_of_v1(runner, common):
    return runner.input_batch.num_prompt_tokens_cpu_tensor[: common.num_reqs]


def _lengths_of_v2(runner, common):
    """Rows that only warm vLLM up are nobody's: where they have several tokens, these count as prompt."""
    lengths = torch.from_numpy(runner.req_states.prompt_len.np[common.req_idx])
    starts = common.query_start_loc_cpu[: len(lengths) + 1]
    nobodys = (starts[1:] - starts[:-1] > 1) & ~common.is_prefilling[: len(lengths)]
    return torch.where(nobodys, FAR, lengths)


def _keep_prompts_out_of_graphs(runner):
    """The second runner takes a prompt of which one token is left for a row that decodes, and its graphs hold nothing
    dense."""
    original = _method(runner, "gather_batch_req_state")
    if original is None or getattr(original, "of_tidal", False):
        return

    def gather_batch_req_state(self, *args, **kwargs):
        state, uniform_tokens = original(self, *args, **kwargs)
        return state, None if state is not None and state.has_prefill else uniform_tokens

    gather_batch_req_state.of_tidal = True
    runner.gather_batch_req_state = gather_batch_req_state
