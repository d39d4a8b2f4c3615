"""Tools and thoughts through `tidal serve`: calls by a grammar, whole and streamed; what it refuses."""

import json
import os
import unittest

from program import MODELS
from serving import GREEDY, Server, Shared

QUESTION = [{"role": "user", "content": "How will the weather be in Oslo?"}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of the coming days",
    "parameters": {"type": "object", "additionalProperties": False, "required": ["city", "days"], "properties": {
        "city": {"enum": ["Oslo", "Rome", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "note": {"type": "string", "maxLength": 12}}}}}
TIME = {"type": "function", "function": {"name": "get_time"}}


def assembled(events):
    """The message that a client makes of a stream's deltas, and the reason of its end."""
    message, reason = {"role": None, "content": None}, None
    for event in events:
        choice = event["choices"][0]
        assert reason is None, "an event behind the end"
        reason = choice["finish_reason"]
        delta = choice["delta"]
        message["role"] = delta.get("role", message["role"])
        for name in ("content", "reasoning_content"):
            if delta.get(name) is not None:
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if "id" in call:
                assert call["index"] == len(calls) and call["function"]["arguments"] == "", call
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message, reason


class Tools(Shared):
    def chat(self, **more):
        return self.post("/v1/chat/completions", **{"messages": QUESTION, "max_tokens": 200, "cache_prompt": False,
                                                **more})["choices"][0]

    def streamed(self, **more):
        body = {"messages": QUESTION, "max_tokens": 200, "cache_prompt": False, **more}
        events = [event for _, event in self.server.stream("/v1/chat/completions", body)]
        self.assertEqual(events.pop(), "[DONE]")
        return assembled(events)

    def valid(self, call):
        self.assertEqual((call["type"], call["function"]["name"]), ("function", "get_weather"))
        self.assertTrue(call["id"].startswith("call_"), call)
        arguments = json.loads(call["function"]["arguments"])
        self.assertIn(arguments["city"], ("Oslo", "Rome", "Paris"))
        self.assertTrue(1 <= arguments["days"] <= 7 and set(arguments) <= {"city", "days", "note"}, arguments)

    def test_a_required_call_satisfies_its_schema_whole_and_streamed(self):
        for seed in range(2):
            body = {"tools": [WEATHER, TIME], "temperature": 1, "seed": seed, "parallel_tool_calls": False,
                    "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
            choice = self.chat(**body)
            self.assertEqual(choice["finish_reason"], "tool_calls", choice)
            message = choice["message"]
            self.assertIsNone(message["content"])
            self.assertEqual(len(message["tool_calls"]), 1)
            self.valid(message["tool_calls"][0])
            again, reason = self.streamed(**body)
            self.assertEqual(reason, "tool_calls")
            for one in (message, again):
                for call in one["tool_calls"]:
                    call.pop("id")  # another request's
            self.assertEqual(again, message)

    def test_choices_have_calls_of_their_own(self):
        body = {"tools": [WEATHER], "tool_choice": "required", "temperature": 1, "seed": 5, "n": 3, "messages": QUESTION,
                "max_tokens": 200, "parallel_tool_calls": False}
        choices = self.post("/v1/chat/completions", **body)["choices"]
        calls = [choice["message"]["tool_calls"][0] for choice in choices]
        for call in calls:
            self.valid(call)
        self.assertEqual(len({call["id"] for call in calls}), 3)

    def test_exact_mode_drafts_calls_too(self):
        body = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **GREEDY}
        expected = self.chat(**body, tidal={"attention": "full"})["message"]["tool_calls"][0]["function"]
        exact = self.chat(**body, tidal={"attention": "sketch", "budget": 64, "exact": 4})["message"]
        self.assertEqual(exact["tool_calls"][0]["function"], expected)

    def test_without_a_choice_words_are_words(self):
        few = {**GREEDY, "max_tokens": 24}
        for choice in ({}, {"tool_choice": "none"}):
            whole = self.chat(tools=[WEATHER], **choice, **few, logprobs=True)
            message, reason = self.streamed(tools=[WEATHER], **choice, **few)
            self.assertEqual(reason, whole["finish_reason"])
            self.assertEqual(message["content"], whole["message"]["content"])
        plain = self.chat(**few)
        self.assertEqual(plain["message"], self.chat(tools=[WEATHER], tool_choice="none", **few)["message"])

    def test_a_conversation_goes_on_behind_a_call(self):
        call = {"id": "call_1", "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 2}'}}
        messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "Rain, 9 degrees"}]
        choice = self.chat(messages=messages, tools=[WEATHER], **{**GREEDY, "max_tokens": 8})
        self.assertNotEqual(choice["message"]["content"], "")
        # Without tools, too: the results stay where they are.
        self.chat(messages=messages, **{**GREEDY, "max_tokens": 8})

    def test_responses_call_as_chats_do(self):
        tools = [{"type": "function", **tool["function"]} for tool in (WEATHER, TIME)]
        common = {"temperature": 1, "seed": 1, "parallel_tool_calls": False, "cache_prompt": False}
        body = {"input": QUESTION[0]["content"], "tools": tools, "max_output_tokens": 200, **common,
                "tool_choice": {"type": "function", "name": "get_weather"}}
        whole = self.post("/v1/responses", **body)
        item = whole["output"][0]
        self.assertEqual((item["type"], item["status"], whole["status"]), ("function_call", *["completed"] * 2))
        chat = self.chat(tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "get_weather"}},
                         **common)["message"]["tool_calls"][0]["function"]
        self.assertEqual({name: item[name] for name in chat}, chat)
        events = [event for _, event in self.server.stream("/v1/responses", body)]
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        names = [event["type"].removeprefix("response.") for event in events]
        self.assertEqual(names[:3], ["created", "in_progress", "output_item.added"])
        self.assertEqual(set(names[3:-3]), {"function_call_arguments.delta"})
        self.assertEqual(names[-3:], ["function_call_arguments.done", "output_item.done", "completed"])
        self.assertEqual("".join(event["delta"] for event in events[3:-3]), item["arguments"])
        self.assertEqual(events[-3]["arguments"], item["arguments"])
        streamed = events[-1]["response"]["output"][0]
        self.assertEqual(streamed, events[-2]["item"])
        self.assertEqual((events[2]["item"]["id"], events[2]["item"]["call_id"]),
                         (streamed["id"], streamed["call_id"]))
        cut = self.post("/v1/responses", **{**body, "max_output_tokens": 12})
        self.assertEqual((cut["status"], cut["incomplete_details"]["reason"]), ("incomplete", "max_output_tokens"))
        self.assertEqual(cut["output"][-1]["status"], "incomplete")

    def test_items_make_the_conversation_that_messages_make(self):
        tools = [{"type": "function", **WEATHER["function"]}]
        question, arguments = QUESTION[0]["content"], '{"city": "Oslo", "days": 2}'
        calls = [{"id": f"call_{city}", "type": "function",
                  "function": {"name": "get_weather", "arguments": arguments.replace("Oslo", city)}}
                 for city in ("Oslo", "Rome")]
        results = {"call_Oslo": "Rain, 9 degrees", "call_Rome": "Sun"}
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
                    {"role": "assistant", "content": "I look.", "tool_calls": calls},
                    *({"role": "tool", "tool_call_id": name, "content": text} for name, text in results.items())]
        items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]},
                 {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                  "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
                 *({"type": "function_call", "id": f"fc_{i}", "call_id": call["id"], "status": "completed",
                    **call["function"]} for i, call in enumerate(calls)),
                 *({"type": "function_call_output", "call_id": name, "output": text} for name, text in results.items())]
        chat = self.post("/v1/chat/completions", messages=messages, tools=[WEATHER], max_tokens=4, **GREEDY)
        answer = self.post("/v1/responses", input=items, instructions="Be brief.", tools=tools, max_output_tokens=4,
                           **GREEDY)
        self.assertEqual(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"])
        self.assertEqual(answer["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"])

    def test_the_template_gives_the_prompt_that_a_chat_reads(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
        behind = [{"role": "system", "content": "Be brief."}, *QUESTION, {"role": "assistant", "tool_calls": [call]},
                  {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]
        prompts = set()
        for more in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}, {"messages": behind},
                     {"tools": [TIME], "messages": behind, "chat_template_kwargs": {"enable_thinking": False}},
                     {"add_generation_prompt": False}):
            body = {"messages": QUESTION, "max_tokens": 4, **more, **GREEDY}
            prompt = self.post("/apply-template", **body)["prompt"]
            prompts.add(prompt)
            chat = self.post("/v1/chat/completions", **body)
            text = self.post("/v1/completions", prompt=prompt, max_tokens=4, **GREEDY)
            self.assertEqual(text["usage"]["prompt_tokens"], chat["usage"]["prompt_tokens"], more)
            self.assertEqual(text["choices"][0]["text"], chat["choices"][0]["message"]["content"], more)
        self.assertEqual(len(prompts), 5)
        body = {"messages": QUESTION, "tools": [WEATHER, TIME], **GREEDY, "max_tokens": 200, "parallel_tool_calls": False,
                "tool_choice": {"type": "function", "function": {"name": "get_time"}}}
        prompt = self.post("/apply-template", **body)["prompt"]
        self.assertNotIn("get_weather", prompt)
        count = len(self.post("/tokenize", content=prompt, add_special=True)["tokens"])
        self.assertEqual(count, self.post("/v1/chat/completions/input_tokens", **body)["input_tokens"])
        for path, more in (("tools[0].type", {"tools": [{"type": "web_search"}]}), ("tool_choice", {"tool_choice": 7}),
                           ("chat_template_kwargs", {"chat_template_kwargs": 7}),
                           ("add_generation_prompt", {"tools": [TIME], "add_generation_prompt": False})):
            self.refused("/apply-template", 400, path, {"messages": QUESTION, **more})

    def test_what_is_wrong_in_responses_is_named(self):
        function = {"type": "function", "name": "f"}
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        for path, more in (("tools[0].type", {"tools": [{"type": "web_search"}]}), ("tools[0]", {"tools": [7]}),
                           ("tools[0].name", {"tools": [{"type": "function"}]}),
                           ("tools[1].name", {"tools": [function, function]}),
                           ("tools[0].parameters", {"tools": [{**function, "parameters": []}]}),
                           ("tool_choice", {"tool_choice": "required"}),
                           ("tool_choice", {"tools": [function], "tool_choice": {"type": "web_search"}}),
                           ("tool_choice.name", {"tools": [function], "tool_choice": {"type": "function", "name": "g"}}),
                           ("previous_response_id", {"previous_response_id": "resp_1"}),
                           ("conversation", {"conversation": "conv_1"}), ("input", {"input": []}),
                           ("text.format", {"text": {"format": {"type": "json_schema", "name": "x"}}}),
                           ("text.format", {"text": {"format": {"type": "xml"}}}),
                           ("text.format", {"text": {"format": {"type": "json_object"}}, "tools": [function]}),
                           ("text.format", {"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}),
                           ("input", {"input": 7}), ("input[0]", {"input": [7]}),
                           ("input[0].type", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
                           ("input[0].name", {"input": [{**call, "name": "a b"}]}),
                           ("input[0].arguments", {"input": [{**call, "arguments": "{"}]}),
                           ("input[0].call_id", {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}),
                           ("input[1].output", {"input": [call, {"type": "function_call_output", "call_id": "c"}]}),
                           ("input[0].content", {"input": [{"type": "reasoning", "content": "x"}]})):
            error, _ = self.refused("/v1/responses", 400, path, {"input": "Hi", "max_output_tokens": 1, **more})
            self.assertEqual(error["param"], path)

    def test_what_is_wrong_is_named(self):
        chat = {"messages": QUESTION}

        def function(**more):
            return {"type": "function", "function": {"name": "f", **more}}

        for path, tools in (("tools", 7), ("tools[0]", [7]), ("tools[0].type", [{"type": "web_search"}]),
                            ("tools[0].function", [{"type": "function"}]),
                            ("tools[0].function.name", [function(name="a b")]),
                            ("tools[0].function.name", [function(name="")]),
                            ("tools[1].function.name", [function(), function()]),
                            ("tools[0].function.description", [function(description=7)]),
                            ("tools[0].function.parameters", [function(parameters="x")]),
                            ("tools[0].function", [function(description="x" * 70000)]),
                            ("tools[128].function", [function(name=f"f{i}") for i in range(129)])):
            error, _ = self.refused("/v1/chat/completions", 400, path, {**chat, "tools": tools})
            self.assertEqual(error["param"], path)
        for choice in ("some", 7, {"type": "function"}, {"type": "function", "function": {"name": "g"}}):
            self.refused("/v1/chat/completions", 400, "tool_choice", {**chat, "tools": [TIME], "tool_choice": choice})
        self.refused("/v1/chat/completions", 400, "tool_choice", {**chat, "tool_choice": "required"})
        self.refused("/v1/chat/completions", 400, "grammar", {**chat, "tools": [TIME], "grammar": 'root ::= "a"'})
        self.refused("/v1/chat/completions", 400, "response_format",
                     {**chat, "tools": [TIME], "response_format": {"type": "json_object"}})
        self.refused("/v1/chat/completions", 400, "reasoning_format", {**chat, "reasoning_format": "odd"})
        self.refused("/v1/chat/completions", 400, "chat_template_kwargs", {**chat, "chat_template_kwargs": []})
        for calls in (7, [7], [{"function": {"name": "f", "arguments": "{"}}], [{"function": {"name": "f g"}}],
                      [{"function": {"name": "f", "arguments": "[" * 100000}}]):
            self.refused("/v1/chat/completions", 400, "messages[0].tool_calls",
                         {"messages": [{"role": "assistant", "tool_calls": calls}]})
        for parameters in ({"type": "string", "pattern": "(" * 60000}, {"pattern": "["}, {"$ref": "#/nowhere"},
                           {"type": "array", "items": {"type": "string"}, "minItems": 10**9}, {"type": "odd"},
                           {"type": "object", "properties": {"a": 7}}):
            wrapped = {"type": "object", "properties": {"x": parameters}}
            status = self.server.ask("POST", "/v1/chat/completions", {
                **chat, "tools": [function(parameters=wrapped)], "tool_choice": "required", "max_tokens": 1})[0]
            self.assertIn(status, (200, 400), parameters)
        self.assertEqual(self.server.ask("GET", "/health")[0], 200)


class Trained(Shared):
    """A model that was taught to call."""

    MODEL = os.path.join(MODELS, "qwen2.5-coder-0.5b.gguf")

    @classmethod
    def setUpClass(cls):
        if not os.path.exists(cls.MODEL):
            raise unittest.SkipTest(cls.MODEL + " is missing")
        cls.server = Server("-c", "2048", model=cls.MODEL)

    def test_it_calls_when_it_wants(self):
        body = {"messages": [{"role": "system", "content": "Use the tools."}, *QUESTION], "tools": [WEATHER],
                "max_tokens": 60, **GREEDY}
        choice = self.post("/v1/chat/completions", **body)["choices"][0]
        events = [event for _, event in self.server.stream("/v1/chat/completions", body)][:-1]
        message, reason = assembled(events)
        self.assertEqual(reason, choice["finish_reason"])
        if message["content"] is not None or choice["message"]["content"] is not None:
            self.assertEqual(message["content"], choice["message"]["content"])
        functions = [[call["function"] for call in one.get("tool_calls", [])] for one in (message, choice["message"])]
        self.assertEqual(*functions)


if __name__ == "__main__":
    unittest.main()
