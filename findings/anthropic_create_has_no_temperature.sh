#!/usr/bin/env bash
# Guess: the Messages API has had `temperature`, `top_p` and `top_k` from the start, so anthropic's create() takes them.
# Seen: the package's create() and stream() know none of them: they end with a TypeError before anything is sent. The
# server's side of them can only be reached through extra_body, which a test of a compatible server has to use.
source "$(dirname "$0")/lib/packages.sh"
packages anthropic==2.14.0 "${clients[@]}"
"$python" - <<'PYTHON'
import inspect
import sys

import anthropic

client = anthropic.Anthropic(api_key="none", base_url="http://127.0.0.1:9")
print("version: anthropic", anthropic.__version__)
missing = {}
for name in ("create", "stream"):
    known = inspect.signature(getattr(client.messages, name)).parameters
    missing[name] = [field for field in ("temperature", "top_p", "top_k") if field not in known]
    print(f"seen: messages.{name}() does not take", ", ".join(missing[name]) or "nothing of it: it takes all")
try:
    client.messages.create(model="any", max_tokens=1, messages=[{"role": "user", "content": "Hi"}], temperature=0)
    refused = False
except TypeError as error:
    print("seen:", error)
    refused = True
except anthropic.APIConnectionError:
    refused = False
sys.exit(0 if refused and all("temperature" in fields for fields in missing.values())
         else "changed: create() takes a temperature")
PYTHON
