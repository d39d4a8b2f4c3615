"""tidal serve as llama-server's users know it: /completion and the fields of its own."""

import unittest

from serving import GREEDY, Shared, text_of

FRANCE = "The capital of France is"
CHAT = {"messages": [{"role": "user", "content": "Name a colour."}]}


class Native(Shared):
    def test_a_completion_has_llama_servers_fields(self):
        answer = self.post("/completion", prompt=FRANCE, n_predict=8, ignore_eos=True, return_tokens=True, **GREEDY)
        self.assertEqual(answer["content"], text_of(self.post("/v1/completions", prompt=FRANCE, max_tokens=8,
                                                              ignore_eos=True, **GREEDY)))
        tokens = self.post("/tokenize", content=FRANCE, add_special=True)["tokens"]
        self.assertEqual((answer["stop"], answer["stop_type"], answer["stopping_word"], answer["truncated"]),
                         (True, "limit", "", False))
        self.assertEqual((answer["tokens_predicted"], answer["tokens_evaluated"], answer["timings"]["predicted_n"]),
                         (8, len(tokens), 8))
        self.assertEqual((answer["prompt"], answer["has_new_line"]), (FRANCE, "\n" in answer["content"]))
        self.assertEqual(self.post("/detokenize", tokens=answer["tokens"])["content"], answer["content"])
        settings = answer["generation_settings"]
        self.assertEqual((settings["n_predict"], settings["temperature"], settings["ignore_eos"]), (8, 0, True))
        self.assertEqual(self.post("/completions", prompt=FRANCE, n_predict=1)["tokens"], [])
        stopped = self.post("/completion", prompt=FRANCE, n_predict=8, stop=["Paris"], **GREEDY)
        self.assertEqual((stopped["stop_type"], stopped["stopping_word"]), ("word", "Paris"))
        self.assertNotIn("Paris", stopped["content"])

    def test_a_stream_makes_the_whole(self):
        body = {"prompt": "Ten cities, a line each:\n", "n_predict": 24, "ignore_eos": True, **GREEDY}
        whole = self.post("/completion", return_tokens=True, **body)
        *pieces, last = [event for _, event in self.server.stream("/completion", body)]
        self.assertEqual([piece["stop"] for piece in pieces], [False] * len(pieces))
        self.assertEqual("".join(piece["content"] for piece in pieces), whole["content"])
        self.assertEqual([token for piece in pieces for token in piece["tokens"]], whole["tokens"])
        self.assertEqual((last["stop"], last["content"], last["tokens_predicted"]), (True, "", 24))
        self.assertEqual(last["has_new_line"], whole["has_new_line"])

    def test_prompts_of_every_kind(self):
        tokens = self.post("/tokenize", content=FRANCE, add_special=True)["tokens"]
        body = {"n_predict": 4, **GREEDY}
        expected = self.post("/completion", prompt=FRANCE, **body)["content"]
        self.assertEqual(self.post("/completion", prompt=tokens, **body)["content"], expected)
        self.assertEqual(self.post("/completion", prompt={"prompt_string": FRANCE}, **body)["content"], expected)
        several = self.post("/completion", prompt=[tokens, FRANCE, {"prompt_string": FRANCE}], **body)
        self.assertEqual([(one["index"], one["content"]) for one in several], [(i, expected) for i in range(3)])
        mixed = self.post("/completion", prompt=[*tokens[:2], self.post("/detokenize", tokens=tokens[2:])["content"]], **body)
        self.assertEqual((mixed["prompt"], mixed["content"]), (FRANCE, expected))
        for path, prompt in (("prompt", None), ("prompt", 7), ("prompt", []), ("prompt", [-1]), ("prompt", [10**9]),
                             ("prompt[1].prompt_string", ["a", {}]), ("prompt[0]", [[True]]),
                             ("prompt.multimodal_data", {"prompt_string": "a", "multimodal_data": ["x"]})):
            self.refused("/completion", 400, path, {"prompt": prompt, "n_predict": 1})

    def test_probabilities(self):
        body = {"prompt": FRANCE, "n_predict": 4, "n_probs": 3, "ignore_eos": True, **GREEDY}
        whole = self.post("/completion", **body)["completion_probabilities"]
        self.assertEqual(len(whole), 4)
        for token in whole:
            self.assertEqual((token["id"], token["token"]),
                             (token["top_logprobs"][0]["id"], token["top_logprobs"][0]["token"]))  # greedy
            self.assertEqual(len(token["top_logprobs"]), 3)
            self.assertEqual(bytes(token["bytes"]).decode(errors="replace"), token["token"])
        events = [event for _, event in self.server.stream("/completion", body)]
        self.assertEqual([one for event in events for one in event.get("completion_probabilities", [])], whole)
        self.refused("/completion", 400, "n_probs", {**body, "n_probs": 1000})
        self.refused("/completion", 400, "post_sampling_probs", {**body, "post_sampling_probs": True})

    def test_a_schema_beside_the_messages(self):
        body = {"max_tokens": 8, "json_schema": {"const": "42"}}
        self.assertEqual(text_of(self.post("/v1/chat/completions", **CHAT, **body)), '"42"')
        self.assertEqual(self.post("/completion", prompt="x", **body)["content"], '"42"')
        self.refused("/completion", 400, "json_schema", {"prompt": "x", **body, "grammar": 'root ::= "a"'})
        self.refused("/completion", 400, "json_schema", {"prompt": "x", "json_schema": {"not": {}}})
        self.refused("/completion", 400, "json_schema", {"prompt": "x", "json_schema": 7})

    def test_a_prompt_that_is_too_long_comes_with_its_numbers(self):
        tokens = self.post("/tokenize", content="word " * 1100)["tokens"]
        for path in ("/completion", "/v1/completions"):
            error, _ = self.refused(path, 400, str(len(tokens)), {"prompt": tokens})
            self.assertEqual((error["type"], error["n_prompt_tokens"], error["n_ctx"]),
                             ("exceed_context_size_error", len(tokens), 1024))

    def test_an_answer_that_has_begun_goes_on(self):
        messages = [*CHAT["messages"], {"role": "assistant", "content": "My favourite colour is"}]
        prompt = self.post("/apply-template", messages=messages)["prompt"]
        self.assertEqual(prompt, self.post("/apply-template", **CHAT)["prompt"] + "My favourite colour is")
        expected = text_of(self.post("/v1/completions", prompt=prompt, max_tokens=6, **GREEDY))
        self.assertEqual(text_of(self.post("/v1/chat/completions", messages=messages, max_tokens=6, **GREEDY)), expected)
        claude = self.post("/v1/messages", messages=messages, max_tokens=6, **GREEDY)
        self.assertEqual(claude["content"][0]["text"], expected)
        continued = {"messages": messages, "continue_final_message": True}
        self.assertEqual(self.post("/apply-template", **continued, add_generation_prompt=False)["prompt"], prompt)
        self.refused("/apply-template", 400, "continue_final_message", {**continued, "add_generation_prompt": True})
        whole = self.post("/apply-template", messages=messages, add_generation_prompt=False)["prompt"]
        self.assertIn("My favourite colour is<|im_end|>", whole)

    def test_counts_and_status(self):
        count = self.post("/v1/chat/completions/input_tokens", **CHAT)["input_tokens"]
        chat = self.post("/v1/chat/completions", max_tokens=1, **CHAT)
        self.assertEqual(count, chat["usage"]["prompt_tokens"])
        props = self.server.ask("GET", "/props")[2]
        self.assertEqual(props["modalities"], {"vision": False, "audio": False})
        self.assertEqual(props["build_info"], chat["system_fingerprint"])
        self.assertIn("seed", props["default_generation_settings"]["params"])
        self.assertGreater(self.server.ask("GET", "/v1/models")[2]["data"][0]["meta"]["size"], 50e6)
        first = next(self.server.stream("/v1/chat/completions", {**CHAT, "max_tokens": 2}))[1]
        self.assertEqual(first["choices"][0]["delta"], {"role": "assistant", "content": None})


if __name__ == "__main__":
    unittest.main()
