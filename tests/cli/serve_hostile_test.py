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
    ARGUMENTS = ("-c", "512", "--parallel", "2")

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
            for body in (b"", b"{", b'{"prompt": "x', b"[]", b"7", b"null", b'{"a": "\xff"}', b'{"a": 1e999}', b"{" * 100000,
                         b'{"a":' * 100000 + b"1" + b"}" * 100000, b'{"prompt": NaN}', b"\0" * 1000):
                status, _, content = self.server.ask("POST", path, body)
                self.assertEqual((status, content["error"]["code"]), (400, 400), (path, body[:20]))

    def test_values_of_other_types_are_never_a_failure_of_ours(self):
        fields = ("messages", "prompt", "input", "tools", "tool_choice", "tokens", "content", "stop", "max_tokens", "n",
                  "temperature", "seed", "logit_bias", "grammar", "json_schema", "response_format", "stream_options",
                  "tidal", "system", "chat_template_kwargs", "n_probs", "logprobs", "cache_prompt", "instructions")
        whole = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 1}
        for path in POSTS:
            for field in fields:
                for value in (True, -7, 0.5, "x", [], {}, [[]], [{}], {"type": []}, [None]):
                    status, _, content = self.server.ask("POST", path, {**whole, field: value})
                    self.assertTrue(status == 200 or status == 400 and content["error"]["message"], (path, field, value))

    def test_limits_that_are_no_limits(self):
        ending = {"grammar": 'root ::= "a" "b" "c"', "temperature": 0}
        for most in (-1, 10**12, 2**62 - 1):
            self.assertEqual(text_of(self.post("/v1/completions", prompt="x", max_tokens=most, **ending)), "abc")
        for most in (-2, 2**63, 10**30, 0.5):
            self.refused("/v1/completions", 400, "max_tokens", {"prompt": "x", "max_tokens": most})
        answer = self.post("/v1/completions", prompt="word " * 400, max_tokens=10**12, ignore_eos=True)
        self.assertEqual((answer["choices"][0]["finish_reason"], answer["usage"]["total_tokens"]), ("length", 512))

    def test_grammars_and_schemas(self):
        chain = "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(2000))
        for grammar in ("root ::= root", 'root ::= root "a" | "a"', "root ::= nowhere", 'other ::= "a"', "root ::= [",
                        'root ::= "a"{9999999}', "root ::= " + "(" * 300, "root ::= " + "(" * 300 + '"a"' + ")" * 300,
                        'root ::= "' + "a" * 70000 + '"', chain):
            status, _, content = self.server.ask("POST", "/v1/completions",
                                                 {"prompt": "x", "max_tokens": 1, "grammar": grammar})
            self.assertTrue(status == 400 and content["error"]["message"], (grammar[:40], status))
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

    def test_paths(self):
        for path in ("//health", "/health/", "/HEALTH", "/health/../metrics", "/./health", "/v1//models", "/v1/models/x",
                     "/v1/models%00", "/v1%2fmodels%2f", "/..%2f..%2fetc/passwd", "/../../etc/passwd", "/%ff%fe", "/\\health"):
            self.assertIn(self.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()), (400, 404), path)
        for line in ("GET http://evil.example/v1/models HTTP/1.1", "GET * HTTP/1.1", "CONNECT evil.example:80 HTTP/1.1"):
            status = self.raw(f"{line}\r\nHost: localhost\r\n\r\n".encode())
            self.assertTrue(status is None or 400 <= status < 500, (line, status))
        self.assertEqual(self.raw(b"GET /health?/../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"), 200)

    def test_a_client_that_never_reads_keeps_nobody(self):
        body = json.dumps({"prompt": "x", "n": 2, "max_tokens": 400, "ignore_eos": True, "stream": True, "logprobs": 20,
                           "cache_prompt": False}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", self.server.port))
            connection.sendall(head("/v1/completions", body))
            self.server.idle()  # it has been answered, or cut off
        self.assertEqual(self.server.idle()["requests_processing"], 0)

    def test_a_client_that_half_closes_counts_as_gone(self):
        body = json.dumps({"prompt": "x", "max_tokens": 500, "ignore_eos": True, "cache_prompt": False}).encode()
        before = self.server.idle()["tokens_predicted_total"]
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            connection.sendall(head("/v1/completions", body))
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(connection.recv(1), b"")
        self.assertLess(self.server.idle()["tokens_predicted_total"] - before, 400)


class Keys(ModelTest):
    def test_every_endpoint_but_health_wants_a_key(self):
        with Server("-c", "256", "--api-key", "right") as server:
            for path in (*POSTS, *GETS, "/", "/nothing", "/health/", "//health", "/health/../metrics", "/v1/health/x"):
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer righ"},
                                    {"Authorization": "Bearer right "}, {"Authorization": "right"},
                                    {"Authorization": "Basic right"}, {"x-api-key": "rightt"}):
                        if path == "/" and method == "GET":
                            continue
                        status, _, _ = server.ask(method, path, b"{}", headers)
                        wanted = (200,) if headers.get("Authorization") == "Bearer right " else (401,)
                        self.assertNotIn(status, (200,) if wanted == (401,) else (), (method, path, headers))
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
