"""tidal bench: rows, lists and refusals. The speed itself is nothing to test."""

import json
import os
import unittest

from errors_test import Refusal
from program import MODEL, ModelTest

LONG = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 8


class Bench(Refusal, ModelTest):
    def bench(self, *flags):
        return self.tidal("bench", "-m", MODEL, *flags)

    def test_every_kind_of_attention(self):
        text = self.file("text", LONG * 4)
        result = self.bench("-f", text, "-p", "16", "-n", "8", "-d", "0,300", "-r", "1", "--budget", "48", "-o", "json",
                            "--attention", "full,tidal,exact")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        self.assertEqual([(row["attention"], row["test"], row["depth"]) for row in rows],
                         [("full", "pp16", 0), ("full", "tg8", 0), ("tidal", "tg8", 0), ("exact", "tg8", 0),
                          ("full", "pp16", 300), ("full", "tg8", 300), ("tidal", "tg8", 300), ("exact", "tg8", 300)])
        for row in rows:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertAlmostEqual(row["tokens_per_second"] * row["ms_per_token"], 1000, delta=1)
            if row["attention"] == "exact" and row["depth"] == 300:
                self.assertTrue(row["accepted_drafts"] is not None or row["accepted_copies"] is not None)

    def test_lists_and_words(self):
        self.refused(self.bench("--attention", "half"), "'half'", "full, tidal, exact")
        self.refused(self.bench("-d", "1,x"), "'x'")
        self.refused(self.bench("--baseline", "other"), "'other'", "llama.cpp")
        self.refused(self.bench("-o", "xml"), "'xml'")
        self.refused(self.bench("-f", self.file("short", "too short"), "-d", "300"), "tokens", "the tests need")
        self.refused(self.bench("-f", os.path.join(self.folder, "none")), "none", "cannot be opened")

    def test_random_fill_of_a_known_shape(self):
        self.refused(self.tidal("bench", "--shape", "no-such-shape"), "no-such-shape")


if __name__ == "__main__":
    unittest.main()
