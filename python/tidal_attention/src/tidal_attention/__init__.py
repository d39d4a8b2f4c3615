"""tidal's sketch attention for others' models.

A token that is decoded scores all positions by sketches of their keys (2 bits an element), selects a few hundred of them
for each KV head and attends to these alone. For transformers: `import tidal_attention.transformers`. For vLLM:
nothing to import, `--attention-backend CUSTOM`."""

from tidal_attention.errors import Refused
from tidal_attention.options import Options

__all__ = ["Options", "Refused"]
__version__ = "0.1.0"
