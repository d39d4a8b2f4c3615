"""tidal serve and those who mean it ill: after each of them it lives and answers the next request right."""

import json
import signal
import socket
import time
import unittest

from program import ModelTest
from serving import GREEDY, Server, Shared, text_of

POSTS = ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion", "/v1/messages",
         "/v1/messages/count_tokens", "/v1/responses", "/responses", "/v1/chat/completions/input_tokens",
         "/chat/completions/input_tokens", "/tokenize", "/detokenize", "/apply-template")
GETS = ("/v1/models", "/models", "/props", "/slots", "/metrics")


def head(path, body, more=""):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Hostile(Shared):
    ARGUMENTS = ("-c", "256", "--parallel", "2")

    def setUp(self):
        super().setUp()
        self.addCleanup(self.answers_right)

    def answers_right(self):
        self.assertIsNone(self.server.process.poll(), "the server has ended")
        self.assertIn("Paris", text_of(self.post("/v1/completions", prompt="The capital of France is", max_tokens=2,
                                                 **GREEDY)))

    def raw(self, data):
        """The status of the first answer to these bytes, None for a closed connection."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            connection.sendall(data)
            line = connection.makefile("rb").readline().split()
            return int(line[1]) if line else None

    def test_every_endpoint_refuses_what_is_no_request(self):
        for path in POSTS:
            for body in (b"", b'{"prompt": "x', b"[]", b"null", b'{"a": "\xff"}', b'{"a": 1e999}', b'{"prompt": NaN}',
                         b'{"a":' * 100000 + b"1" + b"}" * 100000, b"\0" * 1000):
                status, _, content = self.server.ask("POST", path, body)
                self.assertEqual((status, content["error"]["code"]), (400, 400), (path, body[:20]))

    def test_values_of_other_types_are_never_a_failure_of_ours(self):
        whole = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 1}
        common = ("max_tokens", "stop", "seed", "logit_bias", "tidal", "json_schema")
        chat = ("messages", "tools", "tool_choice", "chat_template_kwargs")
        for path, fields in (("/v1/chat/completions", (*common, *chat, "response_format", "stream_options", "n")),
                             ("/v1/completions", ("prompt", "logprobs", "n", "best_of")), ("/completion", ("prompt", "n_probs")),
                             ("/v1/messages", ("messages", "tools", "tool_choice", "system", "stop_sequences")),
                             ("/v1/responses", ("input", "tools", "tool_choice", "instructions", "max_output_tokens")),
                             ("/apply-template", chat), ("/tokenize", ("content", "with_pieces")), ("/detokenize", ("tokens",))):
            for field in fields:
                for value in (True, -7, [[]], {"type": []}, [None]):
                    status, _, content = self.server.ask("POST", path, {**whole, field: value})
                    self.assertTrue(status == 200 or status == 400 and content["error"]["message"], (path, field, value))

    def test_limits_that_are_no_limits(self):
        ending = {"grammar": 'root ::= "a" "b" "c"', "temperature": 0}
        for most in (-1, 10**12, 2**62 - 1):
            self.assertEqual(text_of(self.post("/v1/completions", prompt="x", max_tokens=most, **ending)), "abc")
        for most in (-2, 2**63, 10**30, 0.5):
            self.refused("/v1/completions", 400, "max_tokens", {"prompt": "x", "max_tokens": most})
        answer = self.post("/v1/completions", prompt="word " * 200, max_tokens=10**12, ignore_eos=True)
        # The last token takes no place.
        self.assertEqual((answer["choices"][0]["finish_reason"], answer["usage"]["total_tokens"]), ("length", 257))

    def test_grammars_and_schemas(self):
        chain = "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(2000))
        for grammar in ("root ::= root", 'root ::= root "a" | "a"', "root ::= nowhere", 'other ::= "a"', "root ::= [",
                        'root ::= "a"{9999999}', "root ::= " + "(" * 300, "root ::= " + "(" * 300 + '"a"' + ")" * 300,
                        'root ::= "' + "a" * 70000 + '"', chain):
            status, _, content = self.server.ask("POST", "/v1/completions",
                                                 {"prompt": "x", "max_tokens": 1, "grammar": grammar})
            self.assertTrue(status == 400 and content["error"]["message"], (grammar[:40], status))
        self.assertEqual(text_of(self.post("/v1/completions", prompt="x", grammar='root ::= "a" "b"', ignore_eos=True)), "ab")
        brackets = 'root ::= "' + "(" * 300 + '" | [(' + "(" * 300 + "] # " + "(" * 300
        self.assertEqual(set(text_of(self.post("/v1/completions", prompt="x", max_tokens=1, grammar=brackets))), {"("})
        self.assertEqual(text_of(self.post("/v1/completions", prompt="x", max_tokens=9,
                                           grammar="root ::= " + "(" * 200 + '"a"' + ")" * 200)), "a")
        every = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20000)}}
        deep = {"type": "string"}
        for _ in range(25):
            deep = {"type": "array", "items": deep}
        for schema in ({"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, every, deep,
                       {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"type": "array", "items": {"$ref": "#"}},
                       {"type": "string", "pattern": "^(a*)*$"}, {"enum": []}, {"enum": ["x" * 1000] * 1000}):
            status, _, content = self.server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2,
                                                                             "json_schema": schema})
            self.assertTrue(status == 200 or status == 400 and content["error"]["message"], (str(schema)[:60], status))

    def test_a_conversation_without_end(self):
        body = {"messages": [{"role": "user", "content": "x"}] * 4097,
                "tools": [{"type": "function", "function": {"name": "f"}}]}
        for path in ("/v1/chat/completions", "/apply-template"):
            self.refused(path, 400, "4097", body)

    def test_paths(self):
        for path in ("//health", "/health/", "/HEALTH", "/health/../metrics", "/./health", "/v1//models", "/v1/models/x",
                     "/v1/models%00", "/v1%2fmodels%2f", "/..%2f..%2fetc/passwd", "/../../etc/passwd", "/%ff%fe", "/\\health"):
            self.assertIn(self.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()), (400, 404), path)
        for line in ("GET http://evil.example/v1/models HTTP/1.1", "GET * HTTP/1.1", "CONNECT evil.example:80 HTTP/1.1"):
            status = self.raw(f"{line}\r\nHost: localhost\r\n\r\n".encode())
            self.assertTrue(status is None or 400 <= status < 500, (line, status))
        self.assertEqual(self.raw(b"GET /health?/../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"), 200)

    def test_a_client_that_never_reads_keeps_nobody(self):
        body = json.dumps({"prompt": "x", "n": 2, "max_tokens": 200, "ignore_eos": True, "stream": True, "logprobs": 20,
                           "cache_prompt": False}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", self.server.port))
            connection.sendall(head("/v1/completions", body))
            self.server.idle()  # it has been answered, or cut off
        self.assertEqual(self.server.idle()["requests_processing"], 0)

    def test_a_client_that_half_closes_counts_as_gone(self):
        body = json.dumps({"prompt": "x", "max_tokens": 250, "ignore_eos": True, "cache_prompt": False}).encode()
        before = self.server.idle()["tokens_predicted_total"]
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            connection.sendall(head("/v1/completions", body))
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(connection.recv(1), b"")
        self.assertLess(self.server.idle()["tokens_predicted_total"] - before, 200)


class Keys(ModelTest):
    def test_every_endpoint_but_health_wants_a_key(self):
        with Server("-c", "256", "--api-key", "right") as server:
            paths = (*POSTS, *GETS, "/nothing", "/health/", "//health", "/health/../metrics", "/v1/health/x")
            for path in paths:
                for method in ("GET", "POST", "PUT"):
                    for headers in ({}, {"Authorization": "Bearer righ"}, {"Authorization": "Basic right"},
                                    {"Authorization": "right"}, {"x-api-key": "rightt"}):
                        status, _, content = server.ask(method, path, b"{}", headers)
                        self.assertEqual((status, content["error"]["type"]), (401, "authentication_error"), (method, path))
            self.assertEqual(server.ask("GET", "/health")[0], 200)
            self.assertEqual(server.ask("GET", "/v1/models", headers={"Authorization": "Bearer right"})[0], 200)


class Stop(ModelTest):
    def test_sigterm_in_the_middle_of_everything(self):
        with Server("-c", "4096", "--parallel", "2", "--drain", "1") as server:
            def opened(data=b""):
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
                self.addCleanup(connection.close)
                connection.sendall(data)
                return connection

            def request(prompt, **more):
                return head("/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 3000, "ignore_eos": True,
                                                           "cache_prompt": False, **more}).encode())

            stream = opened(request("Once", stream=True))
            self.assertNotEqual(stream.recv(1), b"")
            clients = [stream, opened(request("word " * 3500)), opened(request("waits")), opened(request("waits, too")),
                       opened(), opened(b"GET /v1/mod"), opened(request("never whole")[:-5]),
                       opened(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")]
            time.sleep(0.3)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)
            self.assertLess(time.monotonic() - began, 15)
            for connection in clients:
                try:
                    while connection.recv(1 << 16):
                        pass
                except ConnectionResetError:
                    pass
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5)
            self.assertNotIn("terminate called", server.log())


if __name__ == "__main__":
    unittest.main()
