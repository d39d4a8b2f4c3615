"""Real clients against `tidal serve`: the packages that people have, as they come."""

import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cli"))

import anthropic
import openai
import pydantic
from serving import Server

ALONE = {"cache_prompt": False}  # what follows a cached beginning may differ by rounding
QUESTION = [{"role": "user", "content": "Name a colour."}]
COLOURS = {"type": "object", "required": ["name"], "properties": {"name": {"enum": ["red", "green", "blue"]}}}


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("-c", "1024", "--api-key", "secret")
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key="secret", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def chat(self, **more):
        return self.client.chat.completions.create(model="any", messages=QUESTION, extra_body=ALONE,
                                                   **{"max_tokens": 16, "temperature": 0, **more})

    def test_chat(self):
        answer = self.chat()
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertGreater(answer.usage.prompt_tokens, 0)
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, answer.choices[0].message.content)
        self.assertEqual([chunk.usage.completion_tokens for chunk in chunks if chunk.usage],
                         [answer.usage.completion_tokens])

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertTrue(all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content))

    def test_parsed_answers(self):
        class Colour(pydantic.BaseModel):
            name: str = pydantic.Field(max_length=10)
            warm: bool

        answer = self.client.chat.completions.parse(model="any", messages=QUESTION, temperature=0, max_tokens=100,
                                                    response_format=Colour)
        self.assertIsInstance(answer.choices[0].message.parsed, Colour)

    def test_tools(self):
        tool = {"type": "function", "function": {"name": "paint", "description": "Paints", "parameters": COLOURS}}
        body = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
        answer = self.chat(**body).choices[0]
        self.assertEqual(answer.finish_reason, "tool_calls")
        call = answer.message.tool_calls[0]
        self.assertEqual(call.function.name, "paint")
        self.assertIn(json.loads(call.function.arguments)["name"], ("red", "green", "blue"))
        with self.client.chat.completions.stream(model="any", messages=QUESTION, temperature=0, extra_body=ALONE,
                                                 **body) as stream:
            events = [event.type for event in stream]
            streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
        self.assertIn("tool_calls.function.arguments.done", events)
        self.assertEqual(streamed.function.arguments, call.function.arguments)
        # And on: the client's own objects go back into the conversation.
        result = {"role": "tool", "tool_call_id": call.id, "content": "painted"}
        after = self.client.chat.completions.create(model="any", messages=[*QUESTION, answer.message, result],
                                                    tools=[tool], max_tokens=4)
        self.assertGreater(after.usage.prompt_tokens, 0)

    def test_completions(self):
        body = {"model": "any", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "extra_body": ALONE}
        answer = self.client.completions.create(**body)
        self.assertIn("Paris", answer.choices[0].text)
        streamed = self.client.completions.create(**body, stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in streamed), answer.choices[0].text)

    def test_responses(self):
        body = {"model": "any", "input": "Name a colour.", "max_output_tokens": 16, "temperature": 0, "extra_body": ALONE}
        answer = self.client.responses.create(**body)
        self.assertEqual(answer.output_text, self.chat().choices[0].message.content)
        with self.client.responses.stream(**body) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            self.assertEqual(text, answer.output_text)

    def test_responses_of_a_schema(self):
        form = {"format": {"type": "json_schema", "name": "paint", "schema": COLOURS, "strict": True}}
        answer = self.client.responses.create(model="any", input="Name a colour.", max_output_tokens=100, text=form,
                                              temperature=0)
        self.assertIn(json.loads(answer.output_text)["name"], ("red", "green", "blue"))

    def test_tools_of_responses(self):
        tool = {"type": "function", "name": "paint", "description": "Paints", "parameters": COLOURS, "strict": True}
        body = {"model": "any", "tools": [tool], "tool_choice": {"type": "function", "name": "paint"},
                "parallel_tool_calls": False, "max_output_tokens": 100, "temperature": 0, "extra_body": ALONE}
        answer = self.client.responses.create(**body, input="Name a colour.")
        call = answer.output[-1]
        self.assertEqual((answer.status, call.type, call.name, call.status),
                         ("completed", "function_call", "paint", "completed"))
        self.assertEqual((answer.tools[0].name, answer.tool_choice.name, answer.parallel_tool_calls),
                         ("paint", "paint", False))
        with self.client.responses.stream(**body, input="Name a colour.") as stream:
            events = list(stream)
            final = stream.get_final_response().output[-1]
        self.assertEqual((events[0].type, events[-1].type), ("response.created", "response.completed"))
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        self.assertEqual(("".join(deltas), final.arguments), (call.arguments,) * 2)
        self.assertIn(final.parsed_arguments["name"], ("red", "green", "blue"))
        # And on: the client's own objects go back into the conversation.
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "painted"}
        after = self.client.responses.create(model="any", tools=[tool], max_output_tokens=4,
                                             input=[*QUESTION, *answer.output, result])
        self.assertGreater(after.usage.input_tokens, answer.usage.input_tokens)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.responses.create(model="any", input="x", tools=[{"type": "web_search"}])
        self.assertEqual(raised.exception.param, "tools[0].type")

    def test_models_and_errors(self):
        self.assertEqual(self.client.models.list().data[0].id, "smollm2-135m.gguf")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(temperature=-1)
        self.assertEqual(raised.exception.param, "temperature")
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model="any", input="x")

    def test_a_stream_that_is_closed_ends_the_answer(self):
        stream = self.client.completions.create(model="any", prompt="Once", max_tokens=1000, stream=True,
                                                extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()


class Anthropic(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("-c", "1024", "--api-key", "secret")
        cls.client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{cls.server.port}", api_key="secret",
                                         max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_messages(self):
        body = {"model": "any", "max_tokens": 16, "messages": QUESTION, "system": "Be brief.",
                "extra_body": {"temperature": 0, **ALONE}}
        answer = self.client.messages.create(**body)
        self.assertIn(answer.stop_reason, ("end_turn", "max_tokens"))
        with self.client.messages.stream(**body) as stream:
            self.assertEqual("".join(stream.text_stream), answer.content[0].text)
            self.assertEqual(stream.get_final_message().usage.output_tokens, answer.usage.output_tokens)
        count = self.client.messages.count_tokens(model="any", messages=QUESTION, system="Be brief.").input_tokens
        self.assertEqual(answer.usage.input_tokens + answer.usage.cache_read_input_tokens, count)

    def test_tools(self):
        tool = {"name": "paint", "description": "Paints", "input_schema": COLOURS}
        body = {"model": "any", "max_tokens": 100, "messages": QUESTION, "tools": [tool],
                "extra_body": {"temperature": 0, **ALONE},
                "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
        answer = self.client.messages.create(**body)
        self.assertEqual(answer.stop_reason, "tool_use")
        block = answer.content[-1]
        self.assertEqual((block.type, block.name), ("tool_use", "paint"))
        self.assertIn(block.input["name"], ("red", "green", "blue"))
        with self.client.messages.stream(**body) as stream:
            self.assertEqual(stream.get_final_message().content[-1].input, block.input)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "painted"}
        messages = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        after = self.client.messages.create(model="any", max_tokens=4, messages=messages, tools=[tool])
        self.assertGreater(after.usage.input_tokens + after.usage.cache_read_input_tokens, 0)

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.client.messages.create(model="any", max_tokens=8, messages=[])
        with self.assertRaises(anthropic.AuthenticationError):
            self.client.with_options(api_key="wrong").messages.create(model="any", max_tokens=8, messages=QUESTION)


if __name__ == "__main__":
    unittest.main()
