#!/usr/bin/env bash
# Guess: openai's client reads server-sent events as the standard has them, where an event without data (a bare `retry:`
# or `id:`) is passed over; servers send such to set the time of a reconnection or to keep the line alive.
# Seen: it takes the empty data for JSON and ends the stream with an error in the middle of the answer. A comment line
# (`: text`) is passed over. A server that speaks to this client keeps the line alive by comments alone.
source "$(dirname "$0")/lib/packages.sh"
packages openai==3.51.0 "${clients[@]}"
"$python" - <<'PYTHON'
import http.server
import json
import sys
import threading

import openai

EVENTS = {"comment": b": still here\n\n", "retry": b"retry: 1000\n\n", "id": b"id: 7\n\n"}


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text in ("Hello", EVENTS[body["model"]], " there"):
            if isinstance(text, bytes):
                self.wfile.write(text)
                continue
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                     "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
print("version: openai", openai.__version__)
seen = {}
for name in EVENTS:
    text = ""
    try:
        for chunk in client.chat.completions.create(model=name, stream=True, messages=[{"role": "user", "content": "?"}]):
            text += chunk.choices[0].delta.content or ""
        seen[name] = "whole"
    except Exception as error:
        seen[name] = type(error).__name__
    print(f"seen: {name} in the middle: {text!r}, {seen[name]}")
sys.exit(0 if seen == {"comment": "whole", "retry": "JSONDecodeError", "id": "JSONDecodeError"}
         else "changed: what openai's client makes of events without data")
PYTHON
