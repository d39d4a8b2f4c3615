"""tidal serve: what it refuses, and how it says so."""

import unittest

from serving import Shared, text_of


class Refusals(Shared):
    ARGUMENTS = ("-c", "256", "--repeat-last-n", "-1")

    def test_bodies_that_are_no_request(self):
        for body, words in ((b"", "the body is empty"), (b"{", "is not JSON"), (b"[]", "expected an object"),
                            (b'{"prompt": "a\xff"}', "is not JSON"), (b'{"temperature": NaN}', "is not JSON"),
                            (b"[" * 100000, "levels"), (b'{"a":' * 70 + b"1" + b"}" * 70, "levels")):
            self.refused("/v1/completions", 400, words, body)

    def test_impossible_values_are_named(self):
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        for field, value in (("temperature", -1), ("temperature", "hot"), ("top_p", 1.5), ("min_p", -0.1),
                             ("top_k", 0.5), ("n", 0), ("n", 10**9), ("max_tokens", -2), ("max_tokens", "many"),
                             ("stream", "yes"), ("stop", 7), ("stop", ["x"] * 10000), ("logit_bias", {"99999999": 1}),
                             ("logit_bias", {"one": 1}), ("logit_bias", {"1": "much"}), ("logit_bias", 3),
                             ("seed", "lucky"), ("grammar", 5), ("repeat_penalty", 0), ("tidal", {"attention": "odd"}),
                             ("tidal", 4), ("stream_options", [])):
            error, _ = self.refused("/v1/chat/completions", 400, field, {**chat, field: value})
            self.assertEqual(error["param"].split(".")[0], field)
        for messages in (None, [], [7], [{"role": "wizard", "content": "x"}], [{"role": "user", "content": 7}],
                         [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
                         [{"role": "user", "content": "a\0b"}]):
            error, _ = self.refused("/v1/chat/completions", 400, "messages", {"messages": messages})
            self.assertEqual(error["type"], "invalid_request_error")
        for prompt in (None, 7, {}, [], [[]], ["a", 7], [10**9], [-1], ""):
            self.refused("/v1/completions", 400, "prompt", {"prompt": prompt})
        self.refused("/v1/chat/completions", 400, "grammar", {**chat, "grammar": "root ::= ("})
        for schema, words in (({"type": "number", "minimum": 0}, "#/minimum"), ({"not": {}}, "'not'"),
                              ({"properties": {"a": {"uniqueItems": True}}}, "'uniqueItems'"),
                              ({"$ref": "https://example.com/schema"}, "within the schema"),
                              ({"$ref": "#/$defs/none"}, "#/$defs/none"), ({"oneOf": [{}]}, "'oneOf'"),
                              ({"type": "string", "maxLength": 10**9}, "#/maxLength"),
                              ({"type": "string", "format": "email"}, "#/format")):
            self.refused("/v1/chat/completions", 400, words, {**chat, "response_format": {
                "type": "json_schema", "json_schema": {"schema": schema}}})
        self.refused("/v1/chat/completions", 400, "response_format", {**chat, "response_format": {"type": "xml"}})
        self.refused("/detokenize", 400, "tokens[1]", {"tokens": [1, "x"]})
        self.assertEqual(text_of(self.post("/v1/completions", prompt="Still", max_tokens=1, unknown=[1])).count("\0"), 0)

    def test_a_prompt_longer_than_the_context_is_told_both_numbers(self):
        tokens = self.post("/tokenize", content="word " * 300)["tokens"]
        error, _ = self.refused("/v1/completions", 400, "256", {"prompt": tokens})
        self.assertIn(str(len(tokens)), error["message"])
        self.assertEqual(error["type"], "exceed_context_size_error")

    def test_endpoints(self):
        self.refused("/v1/nothing", 404, "/v1/nothing", {})
        self.refused("/v1/completions", 405, "GET", method="GET")
        self.refused("/metrics", 405, "POST", {})

    def test_other_sites(self):
        port = self.server.port
        for headers in ({"Host": "evil.example"}, {"Host": f"127.0.0.1.evil.example:{port}"},
                        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}):
            self.refused("/v1/models", 403, "", method="GET", headers=headers)
        for headers in ({"Host": f"localhost:{port}"}, {"Host": f"[::1]:{port}"},
                        {"Origin": f"http://127.0.0.1:{port}"}):
            self.assertEqual(self.server.ask("GET", "/v1/models", headers=headers)[0], 200, headers)


if __name__ == "__main__":
    unittest.main()
