"""tidal's attention as a backend of vLLM.

    vllm serve MODEL --attention-backend CUSTOM --block-size 64 --additional-config '{"tidal_attention": {"budget": 256}}'

A block's page is, of each KV head, 64 rows [K | V] with the sketch of their keys behind them, so that vLLM counts, caches,
shares and frees a block's sketch with the block. Rows of one token of a text that is being written are sparse, all others
dense."""

from dataclasses import replace
from functools import cache

import torch
from vllm.config import get_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheLayout, KVQuantMode

from tidal_attention.attention import Pages, page_bytes
from tidal_attention.errors import Refused
from tidal_attention.library import BLOCK
from tidal_attention.options import Options
from tidal_attention.read import Read, room_for_sets
from tidal_attention.vllm_dense import attend_dense
from tidal_attention.vllm_flash import attend_run
from tidal_attention.vllm_prompts import ask_the_model_runner
from tidal_attention.vllm_rows import TidalMetadataBuilder, handle

# Where set, called after each sparse layer of this process with its name and a Read.
watch = None


@cache
def _options(given):
    return Options.of(dict(given))


def options_of(vllm_config):
    """What `--additional-config` says, in its entry "tidal_attention"."""
    given = (vllm_config.additional_config or {}).get("tidal_attention", {})
    return _options(tuple(sorted(given.items())))


class TidalBackend(AttentionBackend):
    sketch_bits = Options.sketch_bits  # of the model that was built last: vLLM asks for its specs then, without settings
    forward_includes_kv_cache_update = False
    supported_dtypes = [torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes = ["auto", "bfloat16"]

    @staticmethod
    def get_name():
        return "CUSTOM"

    @staticmethod
    def get_impl_cls():
        return TidalImpl

    @staticmethod
    def get_builder_cls():
        return TidalMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [BLOCK]

    @classmethod
    def get_supported_head_sizes(cls):
        return [64, 128]

    @classmethod
    def supported_kv_cache_layouts(cls):
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_kv_connector(cls):
        return False

    @classmethod
    def customize_spec(cls, spec):
        if not isinstance(spec, FullAttentionSpec) or spec.sliding_window or spec.attention_chunk_size:
            raise Refused(f"cache of {type(spec).__name__}: a layer does not see its whole context, expected that all do")
        if spec.kv_quant_mode != KVQuantMode.NONE:
            raise Refused(f"kv_cache_dtype: {spec.kv_quant_mode.name}, expected auto or bfloat16")
        if spec.head_size_v != spec.head_size:
            raise Refused(f"head_size_v: {spec.head_size_v}, expected {spec.head_size}, that of the keys")
        return replace(spec, state_content_bytes=page_bytes(spec.head_size, spec.dtype, cls.sketch_bits) // BLOCK)


class TidalImpl(AttentionImpl):
    def __init__(
        self,
        num_heads,
        head_size,
        scale,
        num_kv_heads=None,
        alibi_slopes=None,
        sliding_window=None,
        kv_cache_dtype="auto",
        logits_soft_cap=None,
        attn_type=AttentionType.DECODER,
        kv_sharing_target_layer_name=None,
        **others,
    ):
        config = get_current_vllm_config()
        others = {name: value for name, value in others.items() if value is not None}
        _refuse(
            device=(current_platform.device_type, current_platform.device_type in ("cpu", "cuda"), "cpu or cuda"),
            head_size=(head_size, head_size in TidalBackend.get_supported_head_sizes(), "64 or 128"),
            alibi_slopes=("set", alibi_slopes is None, "none"),
            sliding_window=(sliding_window, sliding_window is None, "full attention in all layers"),
            kv_cache_dtype=(kv_cache_dtype, kv_cache_dtype in TidalBackend.supported_kv_cache_dtypes, "auto or bfloat16"),
            logits_soft_cap=(logits_soft_cap, not logits_soft_cap, "none"),
            attn_type=(attn_type, attn_type == AttentionType.DECODER, "a decoder's"),
            kv_sharing_target_layer_name=(kv_sharing_target_layer_name, not kv_sharing_target_layer_name, "none"),
            **{name: ("set", False, "none: it has no kernels for it") for name in others},
            decode_context_parallel_size=(self.dcp_world_size, self.dcp_world_size == 1, "1"),
            prefill_context_parallel_size=(self.pcp_world_size, self.pcp_world_size == 1, "1"),
            speculative_config=("set", config.speculative_config is None, "none: rows of several tokens are dense"),
            kv_transfer_config=("set", config.kv_transfer_config is None, "none: connectors move no sketches"),
        )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads or num_heads, kv_cache_dtype
        self.options = options_of(config)
        TidalBackend.sketch_bits = self.options.sketch_bits
        ask_the_model_runner(TidalMetadataBuilder)
        self.max_context, self.max_rows = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
        self._pages = None
        if current_platform.device_type == "cuda":
            # Now, so that vLLM counts its memory, and none is asked for while a graph is captured.
            self._attention_on(torch.device("cuda", torch.cuda.current_device()), config.model_config.dtype)

    def pages(self, kv_cache):
        """[blocks, KV heads, 64, elements] of vLLM as pages."""
        if self._pages is None or self._pages.view.rows != kv_cache.data_ptr():
            bits = self.options.sketch_bits
            self._pages = Pages(kv_cache, self.num_kv_heads, self.head_size, kv_cache.dtype, bits)
        return self._pages

    def attention(self, kv_cache):
        return self._attention_on(kv_cache.device, kv_cache.dtype)

    def _attention_on(self, device, dtype):
        shape = (self.num_heads, self.num_kv_heads, self.head_size, self.scale)
        return handle(self.options, device, dtype, shape, self.max_context, self.max_rows)

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        if kv_cache.numel():
            rows = slot_mapping.shape[0]
            self.attention(kv_cache).append(self.pages(kv_cache), key[:rows], value[:rows], slot_mapping)

    def forward(
        self,
        layer,
        query,
        key,
        value,
        kv_cache,
        attn_metadata,
        output,
        output_scale=None,
        output_block_scale=None,
    ):
        """query [tokens, heads, head_size], of which the first attn_metadata.tokens count; output the same."""
        if output_scale is not None or output_block_scale is not None:
            raise Refused("output_scale: the output is to be quantised, expected that it stays as it is")
        if attn_metadata is None:  # to warm up
            return output.zero_()
        shape = (-1, self.num_heads, self.head_size)
        query, out = query.view(shape), output.view(shape)
        pages = self.pages(kv_cache)
        for piece in attn_metadata.dense:
            if query.is_cuda:
                attend_run(piece, query, pages, self.scale, out)
            else:
                attend_dense(piece, query, key, value, pages, self.scale, out)
        sparse = attn_metadata.sparse
        if sparse is not None:
            attention = self.attention(kv_cache)
            rows = query[sparse.tokens]
            sets = room_for_sets(attention, rows) if watch else None
            apart = not isinstance(sparse.tokens, slice)
            own = torch.empty_like(rows) if apart else out[sparse.tokens]
            attention.attend(pages, rows, sparse.block_table, sparse.contexts, own, sets)
            if apart:
                out[sparse.tokens] = own
            if watch:
                watch(layer.layer_name, Read(rows, pages, sparse.block_table, sparse.contexts, *sets))
        return output


def _refuse(**settings):
    """Of (what is set, whether it is done, what is): the first that is not."""
    for name, (value, good, expected) in settings.items():
        if not good:
            raise Refused(f"{name}: {value}, expected {expected}")
