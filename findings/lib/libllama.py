"""libllama without its log: what several findings call."""
import ctypes

import llama_cpp as llama
import numpy as np

messages = []


@llama.llama_log_callback
def _log(level, text, _):
    if level == 4:  # errors
        messages.append(text.decode(errors="replace").strip())


llama.llama_log_set(_log, ctypes.c_void_p(0))
llama.llama_backend_init()


def load(path):
    """The model, or None; then `messages` says why."""
    messages.clear()
    return llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())


class Run:
    """A context of `model` with settings of llama_context_params, e.g. n_ubatch=8."""

    def __init__(self, model, **settings):
        params = llama.llama_context_default_params()
        for name, value in settings.items():
            assert hasattr(params, name), name
            setattr(params, name, value)
        self.model = model
        self.context = llama.llama_init_from_model(model, params)
        assert self.context, "no context"
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def decode(self, tokens):
        """Logits behind the last of `tokens`, which follow what the cache holds."""
        array = (llama.llama_token * len(tokens))(*tokens)
        assert llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(tokens))) == 0
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (self.vocab,)).copy()

    def close(self):
        llama.llama_free(self.context)


def tokenize(model, text):
    data = text.encode()
    tokens = (llama.llama_token * (len(data) + 8))()
    count = llama.llama_tokenize(llama.llama_model_get_vocab(model), data, len(data), tokens, len(tokens), True, False)
    return list(tokens[:count])
