"""Every chat template that llama.cpp ships, rendered by tidal and by Python's jinja2 set up as transformers sets it up."""

import datetime
import glob
import json
import os
import subprocess
import tempfile
import unittest

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

PROGRAM = os.environ["TIDAL_RENDER"]
TEMPLATES = os.environ["TIDAL_TEMPLATES"]
NOW = 1753877045  # 30 July 2025
TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}

# Templates whose text differs, and why.
DIFFERENT = {
    "fireworks-ai-llama-3-firefunction-v2.jinja":
        "asks for `functions`, which transformers does not give either: its jinja2 refuses, the engine writes nothing",
}
# Templates that walk through `tools` although they are none: transformers cannot render them without tools. Here tools
# are not defined then, on both sides.
WITHOUT_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
}

SYSTEM = {"role": "system", "content": "  Be brief, in \u4e2d\u6587 & \"quotes\".\n"}
TURNS = [
    {"role": "user", "content": "Hello <there>! "},
    {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHi, it's me."},
    {"role": "user", "content": "What's 2 + 2?\n\n\tIn one word, caf\u00e9."},
    {"role": "assistant", "content": "  Four\\n {{ no }} 'template' "},
    {"role": "user", "content": "\U0001f600"},
]


class Generation(Extension):
    """{% generation %}...{% endgeneration %} marks what a model is trained on; it writes nothing itself."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def reference(source):
    """The template in an environment as transformers makes it, with a clock that stands still."""

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW).strftime(form)
    return environment.from_string(source)


def conversations():
    for count in (1, 2, 5):
        for system in ([], [SYSTEM]):
            yield system + TURNS[:count]


def folded(messages):
    """The system message as the beginning of the first user message."""
    system, user, *rest = messages
    return [{"role": "user", "content": system["content"] + "\n" + user["content"]}, *rest]


def ours(requests):
    done = subprocess.run([PROGRAM], input=json.dumps(requests).encode(), stdout=subprocess.PIPE, check=True, timeout=120)
    return json.loads(done.stdout)


def request(path, messages, add_generation_prompt, variables=None):
    return {
        "file": path, "messages": messages, "add_generation_prompt": add_generation_prompt, "now": NOW,
        "variables": variables or {}, **TOKENS,
    }


class Templates(unittest.TestCase):
    maxDiff = None

    def test_every_template_is_what_jinja2_makes_of_it(self):
        paths = sorted(glob.glob(os.path.join(TEMPLATES, "*.jinja")))
        self.assertEqual(len(paths), 70)
        requests, expected, without_tools = [], [], set()
        for path in paths:
            with open(path, encoding="utf-8", newline="") as file:
                template = reference(file.read())
            # What a template makes of it: with another value of its variable, thinking is another text in many.
            for variables in ({}, {"enable_thinking": False}):
                for messages in conversations():
                    for add_generation_prompt in (True, False):
                        requests.append(request(path, messages, add_generation_prompt, variables))
                        expected.append(self.render(template, requests[-1], without_tools))
        differences = {}
        for asked, (kind, text), answer in zip(requests, expected, ours(requests)):
            if answer.get("text") == text if kind == "text" else text in answer.get("error", ""):
                continue
            differences.setdefault(os.path.basename(asked["file"]), []).append((asked, kind, text, answer))
        print(f"{len(paths) - len(differences)} of {len(paths)} templates the same in {len(requests)} renderings")
        for name, cases in differences.items():
            print(f"{name}: {len(cases)}, the first:", *cases[0], sep="\n  ")
        self.assertEqual(sorted(differences), sorted(DIFFERENT))
        self.assertEqual(without_tools, WITHOUT_TOOLS)
        self.assertLessEqual(len(DIFFERENT), 3)

    def render(self, template, asked, without_tools):
        """("text", what jinja2 renders) or ("error", the template's own message)."""

        def apply(messages, **tools):
            return template.render(
                messages=messages, add_generation_prompt=asked["add_generation_prompt"],
                **TOKENS, **tools, **asked["variables"],
            )

        def apply_without_tools(messages):
            try:
                return apply(messages, tools=None, documents=None)
            except TypeError:
                without_tools.add(os.path.basename(asked["file"]))
                return apply(messages)

        messages = asked["messages"]
        try:
            return "text", apply_without_tools(messages)
        except jinja2.exceptions.TemplateError as error:
            if messages[0]["role"] == "system":
                try:
                    return "text", apply_without_tools(folded(messages))
                except jinja2.exceptions.TemplateError:
                    pass
            return "error", str(error)

    def one(self, source, messages=None, variables=None, add_generation_prompt=True):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
            file.write(source)
            file.flush()
            return ours([request(file.name, messages or TURNS[:1], add_generation_prompt, variables)])[0]

    def refused(self, source, *words, **options):
        answer = self.one(source, **options)
        self.assertIn("error", answer)
        self.assertNotIn("\n", answer["error"])
        for word in ("template: ", *words):
            self.assertIn(word, answer["error"])

    def test_system_message_that_a_template_refuses_begins_the_first_user_message(self):
        gemma = os.path.join(TEMPLATES, "google-gemma-2-2b-it.jinja")
        answer = ours([request(gemma, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], True)])
        text = "<BOS><start_of_turn>user\nBe brief.\nHi<end_of_turn>\n<start_of_turn>model\n"
        self.assertEqual(answer, [{"text": text}])
        answer = ours([request(gemma, [TURNS[0], TURNS[0]], True)])[0]  # roles must alternate
        self.assertIn("template: its chat template refuses this conversation: Conversation roles must alternate",
                      answer["error"])

    def test_variables_and_time(self):
        self.assertEqual(self.one("{{ depth }}{{ on }}", variables={"depth": 3, "on": True}), {"text": "3True"})
        now = datetime.datetime.fromtimestamp(NOW).strftime("%d %B %Y %H:%M")
        self.assertEqual(self.one("{{ strftime_now('%d %B %Y %H:%M') }}"), {"text": now})

    def test_templates_that_are_none(self):
        self.refused("{% if x %}", "cannot be used: it is not valid Jinja")
        self.refused("a {{ x", "cannot be used: it is not valid Jinja")
        self.refused("{% endfor %}", "it is not valid Jinja: Unknown statement: endfor")
        self.refused("\n\n{{ messages[0].nothing.more() }}", "cannot be rendered: it fails in line 3")
        self.refused("{{ raise_exception('not so') }}", "refuses this conversation: not so")

    # Each a little beyond a bound of ours, and nothing that an engine without bounds would not get done.
    def test_templates_beyond_the_bounds(self):
        def nested(outer, inner):
            return f"{{% for i in range({outer}) %}}{{% for j in range({inner}) %}}x{{% endfor %}}{{% endfor %}}"

        self.assertEqual(len(self.one(nested(400, 500))["text"]), 400 * 500)
        self.refused(nested(1000, 600), "cannot be rendered: it takes more than 500000 steps")
        self.refused("{% for i in range(100001) %}{% endfor %}", "a range of more than 100000")
        growing = "{% set ns = namespace(x='0123456789') %}{% for i in range(22) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
        self.refused(growing, "it makes text without end")
        self.refused("{% for i in range(100000) %}" + "x" * 200 + "{% endfor %}", "it makes text without end")
        for opening, closing in (("(", ")"), ("[", "]")):
            self.refused("{{ " + opening * 201 + "1" + closing * 201 + " }}", "it nests more than 200 deep")
        self.refused("{% if a %}" * 201 + "{% endif %}" * 201, "it nests more than 200 deep")
        self.refused("{% if a %}" + "{% elif b %}" * 200 + "{% endif %}", "it nests more than 200 deep")
        self.refused("{{ " + "1 + " * 2100 + "1 }}", "one of its statements has more than 4096 parts")

    def test_long_conversations_are_within_the_bounds(self):
        messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": "word " * 2000} for n in range(1001)]
        llama = os.path.join(TEMPLATES, "meta-llama-Llama-3.1-8B-Instruct.jinja")
        text = ours([request(llama, messages, True)])[0]["text"]
        self.assertGreater(len(text), 1001 * 5 * 2000 - 1001)

    def test_messages_that_are_no_text(self):
        answer = self.one("x", [{"role": "user", "content": "a\0b"}])
        self.assertEqual(answer, {"error": "user message: byte 1 is NUL (0x00), expected text"})


if __name__ == "__main__":
    unittest.main()
