"""A hybrid with a vocabulary: what every command makes of recurrent layers."""

import json
import os
import re
import tempfile
import unittest

from errors_test import Refusal
from gguf_edit import Gguf
from hybrid_model import HEADS, hybrid_keys, hybrid_model
from inspect_test import BROWSER, browse, document, page_data, positions, shares
from program import MODEL, ModelTest

LAYERS, INTERVAL = 12, 2
READ_ALL = list(range(INTERVAL - 1, LAYERS, INTERVAL))  # the others are recurrent
BUDGET = 48


class Hybrid(Refusal, ModelTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.models = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.models.name, "hybrid.gguf")
        if os.path.exists(MODEL):
            hybrid_model(Gguf(MODEL), LAYERS, INTERVAL).write(cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.models.cleanup()
        super().tearDownClass()

    def succeeds(self, *arguments, **options):
        result = self.tidal(arguments[0], *arguments[1:], **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode()

    def document(self):
        return self.file("doc.txt", document())

    def table(self, text, column):
        """Cells of the first table by their line's first cell."""
        first = text[text.index("|") :].split("\n\n")[0].splitlines()
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first]
        at = lines[0].index(column)
        return {line[0]: line[at] for line in lines[2:]}


class Sessions(Hybrid):
    def test_are_refused_before_the_model_is_loaded(self):
        # Nothing but keys: whoever looked at the tensors would say what is missing.
        keys = os.path.join(self.folder, "keys.gguf")
        hybrid_keys(Gguf(MODEL)).write(keys)
        self.refused(self.tidal("run", "-m", keys, "-p", "x"), "token_embd.weight")
        words = ("sessions", "'qwen35'", "not supported", "recurrent layers")
        session, folder = os.path.join(self.folder, "session"), os.path.join(self.folder, "texts")
        self.refused(self.tidal("run", "-m", keys, "-p", "x", "--session", session), *words)
        self.refused(self.tidal("serve", "-m", keys, "--port", "0", "--cache-dir", folder), *words)
        self.assertEqual(os.listdir(self.folder), ["keys.gguf"])


class Text(Hybrid):
    def run_text(self, *arguments):
        return self.succeeds("run", "-m", self.model, "-f", self.document(), "--temp", "0", "-n", "40", "--ignore-eos", *arguments)

    def test_exact_mode_writes_full_attentions_text(self):
        full = self.run_text("--attention", "full")
        for kind in ("tidal", "sketch"):
            self.assertEqual(self.run_text("--attention", kind, "--budget", str(BUDGET), "--exact", "5"), full)
        self.assertNotEqual(self.run_text("--attention", "tidal", "--budget", str(BUDGET)), full)


class Inspect(Hybrid):
    def page(self, *arguments):
        self.path = os.path.join(self.folder, "page.html")
        self.succeeds("inspect", "-m", self.model, "-f", self.document(), "-p", "What is the pass key?", "-o", self.path, "-n",
                      "6", "--budget", str(BUDGET), *arguments)
        with open(self.path, encoding="utf-8") as file:
            return page_data(file.read())

    def check(self, data, role_of):
        self.assertEqual(data["roles"], [role_of.get(layer, "Recurrent") for layer in range(LAYERS)])
        self.assertEqual(data["heads"], HEADS)
        for step in data["steps"]:
            masses = shares(step["mass"])
            self.assertEqual(len(masses), LAYERS * HEADS)
            for layer, role in enumerate(data["roles"]):
                heads = masses[layer * HEADS : (layer + 1) * HEADS]
                if role in ("Sparse", "Scan"):
                    self.assertTrue(0 < min(heads) < 1)
                else:
                    self.assertEqual(set(heads), {1})

    def test_tidal(self):
        data = self.page("--attention", "tidal", "--sinks", "4", "--recent", "12")
        dense, first, second = READ_ALL[:2], READ_ALL[2], READ_ALL[3]
        roles = {layer: "Sparse" for layer in READ_ALL if layer > first}
        self.check(data, {**roles, **{layer: "Dense" for layer in dense}, first: "Select", second: "Select"})
        for index, step in enumerate(data["steps"]):
            context = data["first"] + index + 1
            self.assertEqual(len(step["sets"]), 2)
            for (encoded,) in step["sets"]:
                chosen = positions(encoded)
                self.assertEqual(len(chosen), BUDGET)
                self.assertEqual(chosen[:4], list(range(4)))
                self.assertEqual(chosen[-12:], list(range(context - 12, context)))

    def test_sketch(self):
        data = self.page("--attention", "sketch", "--question", "dense")
        self.check(data, {layer: "Scan" for layer in READ_ALL})
        for step in data["steps"]:
            self.assertEqual(len(step["sets"]), len(READ_ALL))

    @unittest.skipIf(not BROWSER, "no chromium runs here; on Debian its package is chromium")
    def test_in_a_browser(self):
        self.page("--attention", "tidal")
        dom, console = browse(self.folder, self.path, "--dump-dom")
        self.assertEqual(console, [])
        self.assertIn('data-ready="true"', dom)
        self.assertRegex(dom, rf'<p id="summary"[^>]*>.*Layers {READ_ALL[2]} and {READ_ALL[3]} selected \d+ different')
        # What has no attention captures none of it, and is none that is dense.
        self.assertEqual(len(re.findall(r'title="Layer \d+, Recurrent: –"', dom)), LAYERS - len(READ_ALL))
        self.assertEqual(len(re.findall(r'title="Layer \d+, Dense: 100 %"', dom)), 2)
        self.assertRegex(dom, r'<span id="recurrent-key"><i class="recurrent">')

    def test_the_answer_of_exact_mode_is_full_attentions(self):
        data = self.page("--attention", "tidal", "--exact", "3")
        prompt = self.file("p", document().strip() + "\n\nWhat is the pass key?")
        said = self.succeeds("run", "-m", self.model, "--chat", "--temp", "0", "--attention", "full", "-n", "6", "-f", prompt)
        self.assertEqual(data["exact"]["answer"].rstrip("\n"), said.rstrip("\n"))


class Bench(Hybrid):
    def bench(self, *arguments):
        rows = json.loads(self.succeeds("bench", "-m", self.model, "--attention", "full", "--baseline", "llama.cpp", "-o", "json",
                                        *arguments))
        for row in rows:
            self.assertGreater(row["tokens_per_second"], 0)
        return [(row["engine"], row["test"], row["depth"], row["batch"]) for row in rows]

    def test_beside_llama_cpp(self):
        # Every test goes back to its depth several times; libllama refuses tokens that do not follow its last ones.
        expected = [(engine, test, depth, batch) for engine in ("tidal", "llama.cpp") for depth in (0, 70, 600)
                    for test, batch in (("pp40", 1), ("tg6", 1), ("tg6", 2))]
        for fill in ("prefill", "random"):
            self.assertEqual(self.bench("-p", "40", "-n", "6", "-d", "0,70,600", "-b", "1,2", "-r", "2", "--fill", fill), expected)

    def test_comparison(self):
        text = self.succeeds("compare", "-m", self.model, "-f", self.document(), "-p", "Who?", "-n", "6", "--attention",
                             "full,tidal,exact", "--budget", str(BUDGET), "--baseline", "llama.cpp")
        self.assertEqual(len(re.findall(r"^\| llama.cpp ", text, re.MULTILINE)), 2)


class Eval(Hybrid):
    PLACES = ("--prefix", "400", "--steps", "6", "--places", "2")

    def evaluate(self, *arguments):
        return self.succeeds("eval", arguments[0], "-m", self.model, "-f", self.document(), *arguments[1:])

    def setUp(self):
        super().setUp()
        with open(os.path.join(os.path.dirname(MODEL), "kjv.txt"), encoding="utf-8") as file:
            self.text = self.file("text.txt", file.read(12000))

    def document(self):
        return self.text

    def test_recall(self):
        text = self.evaluate("recall", *self.PLACES, "--attention", "tidal,sketch", "--budget", str(BUDGET))
        layers = self.table(text, f"K={BUDGET}, sketch 2 bits")
        self.assertEqual(list(layers), [*map(str, READ_ALL), "mean"])
        for share in layers.values():
            self.assertTrue(0 < float(share.removesuffix(" %")) < 100)

    def test_perplexity(self):
        text = self.evaluate("ppl", *self.PLACES, "--attention", "tidal", "--budget", str(BUDGET))
        loss = self.table(text, "KL from full")
        self.assertEqual(float(loss.pop("full")), 0)
        self.assertGreater(min(map(float, loss.values())), 0)

    def test_exact(self):
        text = self.evaluate("exact", "--lengths", "400", "--prompts", "2", "-n", "40", "--attention", "tidal", "--budget",
                             str(BUDGET))
        self.assertIn("2 of 2", text)

    def test_calibrate(self):
        plan = os.path.join(self.folder, "plan.json")
        self.succeeds("calibrate", "-m", self.model, "-f", self.text, "-o", plan, "--prefix", "600", "--budget", str(BUDGET),
                      "--steps", "2", "--places", "2", "--prompts", "2", "--held-out", "1", "--stretches", "2", "--batch", "3",
                      "--selects", "1", "--kinds", "tidal")
        with open(plan, encoding="utf-8") as file:
            roles = json.load(file)["roles"]
        self.assertTrue(set(roles["select"]) <= set(READ_ALL))


if __name__ == "__main__":
    unittest.main()
