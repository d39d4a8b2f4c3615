"""What vLLM calls in each of its processes before it does anything else (entry point vllm.general_plugins)."""

BACKEND = "tidal_attention.vllm_backend.TidalBackend"


def register():
    """Makes `--attention-backend CUSTOM` this attention."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    if current_platform.is_cpu():
        _let_the_cpu_platform_choose(type(current_platform), AttentionBackendEnum.CUSTOM)


def _let_the_cpu_platform_choose(platform, custom):
    """It has one attention and says so in the log where another one is asked for."""
    original = platform.get_attn_backend_cls
    if getattr(original, "of_tidal", False):
        return

    def get_attn_backend_cls(cls, selected_backend, attn_selector_config, *args, **kwargs):
        plain = not (attn_selector_config.use_mla or attn_selector_config.use_sparse)
        if selected_backend == custom and plain:
            return BACKEND
        return original(selected_backend, attn_selector_config, *args, **kwargs)

    get_attn_backend_cls.of_tidal = True
    platform.get_attn_backend_cls = classmethod(get_attn_backend_cls)
