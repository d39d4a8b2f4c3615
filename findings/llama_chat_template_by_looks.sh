#!/usr/bin/env bash
# Guess: llama_chat_apply_template, given the template of a file, renders that template.
# Seen: it recognises a template by words in it and writes a text of its own. Of Qwen2.5's, the default system message
# disappears, and with it the prompt that the model was trained on.
source "$(dirname "$0")/lib/packages.sh"
packages "${llama[@]}"
qwen
"$python" - "$model" <<'PYTHON'
import ctypes
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from libllama import llama, load

model = load(sys.argv[1])
template = llama.llama_model_chat_template(model, None)
message = llama.llama_chat_message(role=b"user", content=b"Hello")
buffer = ctypes.create_string_buffer(4096)
size = llama.llama_chat_apply_template(template, (llama.llama_chat_message * 1)(message), 1, True, buffer, len(buffer))
written = buffer.raw[:size].decode()
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it up
rendered = environment.from_string(template.decode()).render(
    messages=[{"role": "user", "content": "Hello"}], add_generation_prompt=True)
print("version: llama-cpp-python", llama.__version__ + ", Jinja2", jinja2.__version__)
print("seen: llama_chat_apply_template", repr(written))
print("      the template itself      ", repr(rendered))
holds = "<|im_start|>system" in rendered and "system" not in written and rendered.endswith(written)
sys.exit(0 if holds else "changed: the prompts are equal, or differ in another way")
PYTHON
