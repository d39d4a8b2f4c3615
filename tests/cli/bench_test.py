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
                            "--attention", "full,tidal,sketch,exact,exact-sketch")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        self.assertEqual([(row["attention"], row["test"], row["depth"]) for row in rows],
                         [(kind, test, depth) for depth in (0, 300) for kind, test in (
                             ("full", "pp16"), ("full", "tg8"), ("tidal", "tg8"), ("sketch", "tg8"), ("exact", "tg8"),
                             ("exact-sketch", "tg8"))])
        for row in rows:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertAlmostEqual(row["tokens_per_second"] * row["ms_per_token"], 1000, delta=1)
            if row["attention"].startswith("exact") and row["depth"] == 300:
                self.assertTrue(row["accepted_drafts"] is not None or row["accepted_copies"] is not None)

    def test_lists_and_words(self):
        self.refused(self.bench("--attention", "half"), "'half'", "full, tidal, sketch, default, exact")
        self.refused(self.bench("--attention", "full,tidal", "--sketch", "2"), "--sketch", "does not list")
        self.refused(self.bench("--attention", "sketch", "--reselect", "9"), "--reselect", "does not list")
        self.refused(self.bench("-d", "1,x"), "'x'")
        self.refused(self.bench("--baseline", "other"), "'other'", "llama.cpp")
        self.refused(self.bench("-o", "xml"), "'xml'")
        self.refused(self.bench("-f", self.file("short", "too short"), "-d", "300"), "tokens", "the tests need")
        self.refused(self.bench("-f", os.path.join(self.folder, "none")), "none", "cannot be opened")

    def test_bytes_of_every_kind(self):
        def rows(*flags):
            result = self.bench("-p", "0", "-n", "2", "-d", "640", "-r", "1", "--fill", "random", "-o", "json", "--budget",
                                "64", *flags)
            self.assertEqual(result.returncode, 0, result.stderr)
            return json.loads(result.stdout)

        def megabytes(row):
            return row["gb_per_s"] * row["ms_per_token"]

        info = json.loads(self.tidal("info", "-m", MODEL, "--json").stdout)
        weights, row_bytes = info["weight_bytes_per_token"], info["kv_bytes_per_token"] // 30
        full, tidal, sketch, wide = (
            megabytes(row) for row in rows("--attention", "full,tidal,sketch") + rows("--sketch", "4")[1:])
        self.assertAlmostEqual(full, (weights + 641.5 * 30 * row_bytes) / 1e6, delta=.02)
        self.assertAlmostEqual(tidal, (weights + (4 * 641.5 + 26 * 64) * row_bytes) / 1e6, delta=.02)
        # Ten blocks are scanned; of the block still filling 1.5 positions on average are read on top of the budget.
        for found, bits in ((sketch, 2), (wide, 4)):
            blocks = 10 * 3 * (2 * 2 * 64 + 64 * 64 * bits // 8)
            self.assertAlmostEqual(found, (weights + 30 * (blocks + (64 + 1.5) * row_bytes)) / 1e6, delta=.02)

    def test_random_fill_of_a_known_shape(self):
        self.refused(self.tidal("bench", "--shape", "no-such-shape"), "no-such-shape")


if __name__ == "__main__":
    unittest.main()
