"""tidal's attention for transformers.

    import tidal_attention.transformers as tidal
    model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="tidal")
    model.generate(**inputs, past_key_values=tidal.TidalCache(model.config, budget=256))

Importing it registers the attention "tidal" and its masks. Passes of several tokens are dense (torch's
scaled_dot_product_attention); a pass of one token is sparse in every sequence that is longer than the budget."""

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tidal_attention.errors import Refused
from tidal_attention.options import Options
from tidal_attention.transformers_layer import TidalLayer

# What an attention function may be given and this one has no kernels for.
_REFUSED = {
    "sliding_window": "sliding_window: this layer sees a window, expected full attention",
    "softcap": "softcap: this layer caps its scores, expected none",
    "s_aux": "s_aux: this layer has attention sinks, expected none",
    "position_bias": "position_bias: this layer adds to its scores, expected none",
}


class TidalCache(Cache):
    """K and V with the sketches of their keys, for one batch. `watch`, where set, is called after each sparse layer with its
    index and a tidal_attention.read.Read; its tensors are the layer's own."""

    def __init__(self, config, **options):
        """`config`: the model's, loaded with attn_implementation="tidal"; `options`: tidal_attention.Options."""
        text = config.get_text_config(decoder=True)
        for part in (config, text):
            if part._attn_implementation != "tidal":
                raise Refused(f"attn_implementation: {part._attn_implementation!r}, expected 'tidal' beside this cache")
        for kind in getattr(text, "layer_types", None) or []:
            if kind != "full_attention":
                raise Refused(f"layer_types: {kind!r} is among them, expected full attention in all layers")
        self.options = Options.of(options)
        self.padding = None  # [batch] int64, positions before each sequence; null: none
        self.watch = None
        self.handles = {}
        super().__init__(layers=[TidalLayer(self, index) for index in range(text.num_hidden_layers)])

    def _pick(self, pick):
        self.padding = None if self.padding is None else pick(self.padding)

    def reset(self):
        super().reset()
        self.padding = None

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self._pick(lambda padding: padding.index_select(0, beam_idx.to(padding.device)))

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        self._pick(lambda padding: padding.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self._pick(lambda padding: padding[indices])


def tidal_attention_forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention of [batch, heads, n, head_dim]. `key` and `value` are what TidalLayer.update() returned: those of the n new
    tokens, with word of where the others are; or those of the whole sequence, where there is no cache."""
    for name, sentence in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise Refused(sentence)
    layer = getattr(key, "tidal_layer", None)
    if layer is None and query.shape[2] != key.shape[2]:
        raise Refused("past_key_values: a cache of another kind, expected tidal_attention.transformers.TidalCache")
    if layer is None or query.shape[2] > 1:
        keys, values = (key, value) if layer is None else layer.append_and_read(key, value, attention_mask)
        return sdpa_attention_forward(
            module, query, keys, values, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise Refused(f"dropout: {dropout} with a cache, expected none: decoding is no training")
    return layer.decode(query, key, value, attention_mask, scaling), None


AttentionInterface.register("tidal", tidal_attention_forward)
AttentionMaskInterface.register("tidal", sdpa_mask)
