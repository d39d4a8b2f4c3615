"""tidal serve: the answers of `tidal run` through HTTP, alone and in company; its clients; how it ends."""

import concurrent.futures
import json
import math
import signal
import socket
import time
import unittest

from program import MODEL, ModelTest
from serving import GREEDY, Server, Shared, text_of

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was a", "1, 2, 3, 4, 5, 6,",
           "In the beginning God created", "The three primary colours are", "Water boils at", "My favourite book is"]


class Answers(Shared):
    def test_greedy_text_is_runs_alone_and_in_company(self):
        expected = [self.text("-p", prompt, "-n", "24", "--temp", "0").removesuffix("\n") for prompt in PROMPTS]

        def ask(prompt):
            return text_of(self.post("/v1/completions", prompt=prompt, max_tokens=24, **GREEDY)).removesuffix("\n")

        self.assertEqual([ask(prompt) for prompt in PROMPTS[:2]], expected[:2])
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(list(pool.map(ask, PROMPTS)), expected)

    def test_chat_is_runs_chat(self):
        expected = self.text("--chat", "--system", "Be brief.", "-p", "Name a colour.", "-n", "24", "--temp", "0")
        messages = [{"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Name a colour."}]}]
        answer = self.post("/v1/chat/completions", messages=messages, max_completion_tokens=24, **GREEDY)
        self.assertEqual(text_of(answer).removesuffix("\n"), expected.removesuffix("\n"))
        self.assertEqual(answer["object"], "chat.completion")
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_a_stream_is_the_whole_answer(self):
        body = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 20, **GREEDY}
        whole = self.post("/v1/chat/completions", **body)
        for options in ({}, {"stream_options": {"include_usage": True}}):
            events = [event for _, event in self.server.stream("/v1/chat/completions", {**body, **options})]
            self.assertEqual(events.pop(), "[DONE]")
            with_usage = [event for event in events if "usage" in event]
            self.assertEqual(with_usage, events[-1:] if options else [])
            self.assertEqual([event for event in events if "timings" in event], events[-1:])
            if options:
                last = events.pop()
                self.assertEqual(last["choices"], [])
                self.assertEqual(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
            deltas = [event["choices"][0]["delta"] for event in events]
            self.assertEqual(deltas[0]["role"], "assistant")
            self.assertEqual("".join(delta.get("content") or "" for delta in deltas), text_of(whole))
            reasons = [event["choices"][0]["finish_reason"] for event in events]
            self.assertEqual(reasons, [None] * (len(events) - 1) + [whole["choices"][0]["finish_reason"]])
            self.assertEqual(len({event["id"] for event in events}), 1)

    def test_stop_strings_end_the_text_and_are_no_part_of_it(self):
        body = {"prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 30, **GREEDY}
        whole = text_of(self.post("/v1/completions", **body))
        stop = whole[len(whole) // 2 : len(whole) // 2 + 4]  # over the borders of tokens
        answer = self.post("/v1/completions", **body, stop=["never there", stop])
        self.assertEqual(text_of(answer), whole[: whole.index(stop)])
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        streamed = "".join(event["choices"][0]["text"]
                           for _, event in self.server.stream("/v1/completions", {**body, "stop": stop})
                           if event != "[DONE]")
        self.assertEqual(streamed, whole[: whole.index(stop)])

    def test_limits(self):
        answer = self.post("/v1/completions", prompt="Once", max_tokens=3, ignore_eos=True, **GREEDY)
        self.assertEqual(answer["usage"]["completion_tokens"], 3)
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")
        # Beyond any context: as much as fits.
        prompt = self.post("/tokenize", content="a b c d " * 250)["tokens"]
        answer = self.post("/v1/completions", prompt=prompt, max_tokens=10**12, ignore_eos=True, **GREEDY)
        total = answer["usage"]["total_tokens"]
        self.assertIn(total, (1024, 1025))
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")

    def test_choices_and_seeds(self):
        body = {"prompt": ["Once upon", "The king"], "n": 2, "max_tokens": 12, "temperature": 1.5, "seed": 7}
        first = self.post("/v1/completions", **body)
        self.assertEqual([choice["index"] for choice in first["choices"]], [0, 1, 2, 3])
        self.assertNotEqual(first["choices"][0]["text"], first["choices"][1]["text"])
        again = self.post("/v1/completions", **body)
        self.assertEqual([choice["text"] for choice in again["choices"]],
                         [choice["text"] for choice in first["choices"]])
        other = self.post("/v1/completions", **{**body, "seed": 8})
        self.assertNotEqual([choice["text"] for choice in other["choices"]],
                            [choice["text"] for choice in first["choices"]])
        tokens = sum(len(self.post("/tokenize", content=prompt, add_special=True)["tokens"])
                     for prompt in body["prompt"])
        self.assertEqual(first["usage"]["prompt_tokens"], tokens)

    def test_logprobs(self):
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "logprobs": True,
                "top_logprobs": 4, **GREEDY}
        choice = self.post("/v1/chat/completions", **body)["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual("".join(token["token"] for token in content)[: len(choice["message"]["content"])],
                         choice["message"]["content"])
        for token in content:
            self.assertEqual(len(token["top_logprobs"]), 4)
            self.assertEqual(token["top_logprobs"][0]["token"], token["token"])  # greedy
            values = [top["logprob"] for top in token["top_logprobs"]]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(sum(math.exp(value) for value in values), 1 + 1e-4)
            self.assertEqual(bytes(token["bytes"]).decode(errors="replace"), token["token"])
        choice = self.post("/v1/completions", prompt="Hello", max_tokens=4, logprobs=2, **GREEDY)["choices"][0]
        self.assertEqual("".join(choice["logprobs"]["tokens"]), choice["text"])
        self.assertEqual(len(choice["logprobs"]["token_logprobs"]), 4)

    def test_biases_penalties_and_grammars(self):
        body = {"prompt": "The capital of France is", "max_tokens": 1, **GREEDY}
        token = self.post("/tokenize", content=" zebra")["tokens"][0]
        wanted = self.post("/v1/completions", **body, logit_bias={str(token): 100})
        self.assertEqual(text_of(wanted), self.post("/detokenize", tokens=[token])["content"])
        first = text_of(self.post("/v1/completions", **body))
        chosen = self.post("/tokenize", content=first)["tokens"][0]
        self.assertNotEqual(text_of(self.post("/v1/completions", **body, logit_bias=[[chosen, False]])), first)
        grammar = 'root ::= "yes" | "no"'
        self.assertIn(text_of(self.post("/v1/completions", **{**body, "max_tokens": 8}, grammar=grammar)), ("yes", "no"))
        repeated = {"prompt": "ha ha ha ha ha ha ha ha", "max_tokens": 12, **GREEDY}
        self.assertNotEqual(text_of(self.post("/v1/completions", **repeated)),
                            text_of(self.post("/v1/completions", **repeated, frequency_penalty=2.0)))
        repeated["repeat_penalty"] = 1.5
        whole = text_of(self.post("/v1/completions", **repeated, repeat_last_n=-1))
        self.assertEqual(text_of(self.post("/v1/completions", **repeated, repeat_last_n=10**6)), whole)
        self.assertNotEqual(text_of(self.post("/v1/completions", **repeated, repeat_last_n=1)), whole)

    def test_json_by_a_schema(self):
        schema = {"type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
                  "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"$ref": "#/$defs/age"},
                                 "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
                  "$defs": {"age": {"type": "integer", "minimum": 1, "maximum": 99}}}
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 100, "temperature": 1}
        for seed in range(4):
            answer = self.post("/v1/chat/completions", **body, seed=seed, response_format={
                "type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}})
            person = json.loads(text_of(answer))
            self.assertEqual(set(person), {"name", "age", "tags"})
            self.assertTrue(1 <= person["age"] <= 99 and len(person["name"]) <= 12, person)
            self.assertTrue(len(person["tags"]) <= 2 and set(person["tags"]) <= {"a", "b"}, person)
        answer = self.post("/v1/chat/completions", **{**body, "max_tokens": 400}, seed=1,
                           response_format={"type": "json_object"})
        self.assertTrue(text_of(answer).startswith("{"), answer)

    def test_a_request_chooses_its_attention(self):
        prompt = "The sea was calm and the men sang. " * 30
        body = {"prompt": prompt, "max_tokens": 16, **GREEDY}
        read = {}
        for options in (("--attention", "full"), ("--attention", "sketch", "--budget", "64"), ("--exact", "5")):
            expected = self.text("-p", prompt, "-n", "16", "--temp", "0", *options)
            own = {options[0][2:]: int(options[1]) if options[0] == "--exact" else options[1]}
            if len(options) > 2:
                own["budget"] = 64
            answer = self.post("/v1/completions", **body, tidal=own)
            self.assertEqual(text_of(answer).removesuffix("\n"), expected.removesuffix("\n"), options)
            read[options[1]] = answer["timings"]["bytes_read"]
        self.assertLess(read["sketch"], read["full"])

    def test_what_was_computed_is_not_computed_again(self):
        prompt = "".join(f"Line {number} of the ledger. " for number in range(80))
        first = self.post("/v1/completions", prompt=prompt, max_tokens=4)["usage"]
        again = self.post("/v1/completions", prompt=prompt + "And", max_tokens=4)["usage"]
        self.assertEqual(first["prompt_tokens_details"]["cached_tokens"], 0)
        # But for the last tokens, which are computed as a prompt is and not as an answer is.
        self.assertGreaterEqual(again["prompt_tokens_details"]["cached_tokens"], again["prompt_tokens"] - 9)
        unasked = self.post("/v1/completions", prompt=prompt, max_tokens=4, cache_prompt=False)["usage"]
        self.assertEqual(unasked["prompt_tokens_details"]["cached_tokens"], 0)

    def test_tokens_there_and_back(self):
        text = "Grüße, 世界 🌊 <|im_start|>"
        tokens = self.post("/tokenize", content=text)["tokens"]
        self.assertEqual(self.post("/detokenize", tokens=tokens)["content"], text)
        pieces = self.post("/tokenize", content=text, with_pieces=True)["tokens"]
        self.assertEqual([piece["id"] for piece in pieces], tokens)
        whole = b"".join(bytes(piece["piece"]) if isinstance(piece["piece"], list) else piece["piece"].encode()
                         for piece in pieces)
        self.assertEqual(whole.decode(), text)
        prompt = self.post("/apply-template", messages=[{"role": "user", "content": "Hi"}])["prompt"]
        self.assertTrue(prompt.endswith("<|im_start|>assistant\n"), prompt)
        self.assertIn("<|im_start|>user\nHi<|im_end|>", prompt)

    def test_status(self):
        self.assertEqual(self.server.ask("GET", "/health")[::2], (200, {"status": "ok"}))
        models = self.server.ask("GET", "/v1/models")[2]
        self.assertEqual(models["data"][0]["id"], "smollm2-135m.gguf")
        self.assertEqual(models["data"][0]["meta"]["n_ctx"], 1024)
        self.assertEqual(self.server.ask("GET", "/props")[2]["total_slots"], 4)
        self.assertEqual([slot["is_processing"] for slot in self.server.ask("GET", "/slots")[2]], [False] * 4)
        before = self.server.idle()
        self.post("/v1/completions", prompt="Once more, with feeling", max_tokens=5, ignore_eos=True, **GREEDY)
        after = self.server.idle()
        self.assertEqual(after["answers_total"], before["answers_total"] + 1)
        self.assertEqual(after["tokens_predicted_total"], before["tokens_predicted_total"] + 4)

    def test_anthropics_messages(self):
        body = {"model": "any", "max_tokens": 12, "system": "Be brief.",
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Name a colour."}]}], **GREEDY}
        whole = self.post("/v1/messages", **body)
        chat = self.post("/v1/chat/completions", max_tokens=12, **GREEDY,
                         messages=[{"role": "system", "content": "Be brief."},
                                   {"role": "user", "content": "Name a colour."}])
        self.assertEqual(whole["content"], [{"type": "text", "text": text_of(chat)}])
        count = self.post("/v1/messages/count_tokens", system=body["system"], messages=body["messages"])["input_tokens"]
        usage = whole["usage"]
        self.assertEqual(usage["input_tokens"] + usage["cache_read_input_tokens"], count)
        events = list(self.server.stream("/v1/messages", body))
        self.assertTrue(all(name == event["type"] for name, event in events))
        names = [name for name, _ in events]
        self.assertEqual(names[:2], ["message_start", "content_block_start"])
        self.assertEqual(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
        deltas = [event["delta"]["text"] for name, event in events if name == "content_block_delta"]
        self.assertEqual("".join(deltas), text_of(chat))
        self.assertEqual(events[-2][1]["delta"]["stop_reason"], whole["stop_reason"])

    def test_responses(self):
        body = {"input": "Name a colour.", "instructions": "Be brief.", "max_output_tokens": 12, **GREEDY}
        whole = self.post("/v1/responses", **body)
        text = whole["output"][0]["content"][0]["text"]
        chat = self.post("/v1/chat/completions", max_tokens=12, **GREEDY,
                         messages=[{"role": "system", "content": "Be brief."},
                                   {"role": "user", "content": "Name a colour."}])
        self.assertEqual(text, text_of(chat))
        events = [event for _, event in self.server.stream("/v1/responses", body)]
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        self.assertEqual(events[0]["type"], "response.created")
        self.assertIn(events[-1]["type"], ("response.completed", "response.incomplete"))
        self.assertEqual("".join(event.get("delta", "") for event in events), text)
        self.assertEqual(events[-1]["response"]["output"][0]["content"][0]["text"], text)


class Clients(ModelTest):
    """Servers of their own."""

    def test_keys(self):
        keys = self.file("keys", "first\n\nsecond \n")
        with Server("-c", "256", "--api-key", "third", "--api-key-file", keys) as server:
            paths = [("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/slots"), ("GET", "/props"),
                     ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/messages"),
                     ("POST", "/v1/responses"), ("POST", "/tokenize"), ("GET", "/nothing")]
            for method, path in paths:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "third"}, {"x-api-key": ""}):
                    status, _, content = server.ask(method, path, {} if method == "POST" else None, headers)
                    self.assertEqual((status, content["error"]["type"]), (401, "authentication_error"), path)
            self.assertEqual(server.ask("GET", "/health")[0], 200)
            for headers in ({"Authorization": "Bearer first"}, {"x-api-key": "second"},
                            {"Authorization": "Bearer third"}):
                self.assertEqual(server.ask("GET", "/v1/models", headers=headers)[0], 200)

    def test_a_client_that_goes_gives_its_blocks_back(self):
        with Server("-c", "4096", "--parallel", "2") as server:
            long = {"prompt": "word " * 2000, "max_tokens": 2000, "ignore_eos": True, "cache_prompt": False}
            for wait in (0.05, 1.0, 4.0):  # in the queue or prefill, and in decoding
                streams = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
                body = json.dumps({**long, "stream": True}).encode()
                for stream in streams:
                    stream.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                                   % len(body) + body)
                time.sleep(wait)
                for stream in streams:
                    stream.close()
                deadline = time.monotonic() + 20
                metrics = server.metrics()
                while metrics["requests_processing"] + metrics["requests_deferred"] > 0:
                    self.assertLess(time.monotonic(), deadline, metrics)
                    time.sleep(0.05)
                    metrics = server.metrics()
                self.assertEqual(metrics["kv_blocks_free"] + metrics["kv_blocks_prefix"], metrics["kv_blocks"])
            self.assertEqual(server.stop(), 0)

    def test_too_many_requests_are_told_to_come_again(self):
        with Server("-c", "1024", "--parallel", "1", "--queue", "0") as server:
            stream = server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 900, "ignore_eos": True})
            next(stream)
            status, headers, content = server.ask("POST", "/v1/completions", {"prompt": "Twice", "max_tokens": 1})
            self.assertEqual((status, content["error"]["type"]), (429, "rate_limit_error"))
            self.assertGreater(int(headers["Retry-After"]), 0)
            stream.close()
            server.idle()
            server.post("/v1/completions", prompt="Twice", max_tokens=1)

    def test_answers_in_progress_end_before_the_server(self):
        for how in (signal.SIGTERM, signal.SIGINT):
            with Server("-c", "1024") as server:
                stream = server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 100, "ignore_eos": True})
                events = [next(stream)]
                server.process.send_signal(how)
                events += list(stream)
                self.assertEqual(events[-1][1], "[DONE]")
                self.assertEqual(events[-2][1]["choices"][0]["finish_reason"], "length")
                self.assertEqual(server.process.wait(20), 0)

    def test_a_drain_that_is_over_cuts_answers_off(self):
        with Server("-c", "8192", "--drain", "0") as server:
            stream = server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True})
            next(stream)
            began = time.monotonic()
            self.assertEqual(server.stop(), 0)
            self.assertLess(time.monotonic() - began, 10)

    def test_a_port_in_use_is_one_sentence(self):
        with Server("-c", "256") as server:
            result = self.tidal("serve", "-m", MODEL, "--port", str(server.port))
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, rf"^tidal: 127\.0\.0\.1:{server.port}: [^\n]*in use[^\n]*\n$")

    def test_flags(self):
        for flags, words in ((("--port", "70000"), "--port"), (("--parallel", "0"), "--parallel"),
                             (("--cache-tokens", "8", "-c", "256"), "--cache-tokens"),
                             (("--api-key-file", "/nowhere"), "/nowhere"), (("--host", "no.such.host.invalid"), "no.such")):
            result = self.tidal("serve", "-m", MODEL, "--port", "0", *flags)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
            self.assertIn(words, result.stderr)


if __name__ == "__main__":
    unittest.main()
