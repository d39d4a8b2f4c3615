"""Where a request's prompt ends, which vLLM tells no backend.

After a preemption vLLM computes what a request had written once more, as if it were prompt. A backend that decodes sparsely
must do that as it was done at first, or the request's text changes. The model runner knows; this asks it."""

import sys


def ask_the_model_runner(builder_class):
    """Has the runners that are made from now on tell builders of `builder_class`."""
    module = sys.modules.get("vllm.v1.worker.gpu_model_runner")
    runner = getattr(module, "GPUModelRunner", None)
    original = getattr(runner, "initialize_metadata_builders", None)
    if original is None or getattr(original, "of_tidal", False):
        return

    def initialize_metadata_builders(self, *args, **kwargs):
        original(self, *args, **kwargs)
        for groups in self.attn_groups:
            for group in groups:
                for builder in group.metadata_builders:
                    if isinstance(builder, builder_class):
                        builder.prompt_lengths = lambda common: self.input_batch.num_prompt_tokens_cpu_tensor[
                            : common.num_reqs
                        ]

    initialize_metadata_builders.of_tidal = True
    runner.initialize_metadata_builders = initialize_metadata_builders
