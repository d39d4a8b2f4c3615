"""tidal serve: what streams tell of the positions that decoding reads."""

import unittest

from serving import GREEDY, Shared


class Reads(Shared):
    """Texts and steps, by the API alone."""

    ARGUMENTS = ("-c", "512")

    def told(self, path, **body):
        """{index: (texts of all positions, steps)}, each text where it belongs."""
        found = {}
        for _, event in self.server.stream(path, {**body, "tidal": {"reads": True, **body.get("tidal", {})}}):
            if event != "[DONE]" and "tidal" in event:
                self.assertEqual(event["choices"], [])
                told = event["tidal"]
                texts, steps = found.setdefault(told["index"], ([], []))
                self.assertEqual(told["first"], sum(tokens for _, tokens in texts))
                texts += [one if isinstance(one, list) else [one, 1] for one in told["texts"]]
                steps += [told["reads"]] if "reads" in told else []
        return found

    def test_characters_of_several_tokens(self):
        grammar = 'root ::= "🌊é🌊"'
        body = {"prompt": "A wave 🌊 and", "grammar": grammar, **GREEDY}
        (texts, steps), = self.told("/v1/completions", **body, tidal={"attention": "tidal", "budget": 4}).values()
        self.assertEqual("".join(text for text, _ in texts), "A wave 🌊 and🌊é🌊")
        waves = [tokens for text, tokens in texts if "🌊" in text]
        self.assertTrue(all(tokens > 1 for tokens in waves), texts)
        # A step for every token of the answer but the first, which the prompt gives.
        length, prompt = sum(tokens for _, tokens in texts), len(self.post("/tokenize", content=body["prompt"])["tokens"])
        self.assertEqual([step["position"] for step in steps][:length - prompt - 1], list(range(prompt, length - 1)))
        for step in steps:
            positions = [position for position, _ in step["positions"]]
            self.assertEqual(positions, sorted(set(positions)))
            self.assertTrue(0 <= positions[0] and positions[-1] == step["position"])

    def test_each_answer_has_its_own(self):
        body = {"prompt": ["One two three", "A much longer text than the other one"], "max_tokens": 4, "ignore_eos": True, **GREEDY}
        found = self.told("/v1/completions", **body)
        self.assertEqual(sorted(found), [0, 1])
        for prompt, (texts, steps) in zip(body["prompt"], (found[0], found[1])):
            self.assertTrue("".join(text for text, _ in texts).startswith(prompt))
            # Short enough to be read whole.
            self.assertEqual([list(step) for step in steps], [["position", "all"]] * 3)
        exact = self.told("/v1/completions", **{**body, "prompt": "One two three"}, tidal={"exact": True, "budget": 4})
        self.assertTrue(exact[0][1] and all(step["all"] for step in exact[0][1]))

    def test_reads_are_refused_where_nobody_is_told(self):
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tidal": {"reads": True}}
        for path, body in (("/v1/chat/completions", chat), ("/v1/messages", {**chat, "stream": True}),
                           ("/v1/completions", {"prompt": "a", "tidal": {"reads": True}}),
                           ("/v1/chat/completions", {**chat, "stream": True, "tidal": {"reads": 1}})):
            error, _ = self.refused(path, 400, "tidal.reads", body)
            self.assertEqual(error["param"], "tidal.reads")


if __name__ == "__main__":
    unittest.main()
