"""tidal eval ruler, and eval ppl beside pages."""

import json
import os
import unittest

from evaluating import EvalTest


class Pages(EvalTest):
    def test_pages_for_the_bytes_of_sketches(self):
        run = lambda pages: self.ppl("--attention", "tidal,sketch", "--budget", "32", "--pages", pages, "-o", self.rows_file)
        self.succeeded(run("unique:16"))
        table = self.succeeded(run("unique:16,quest:64"))
        rows = {row["plan"]: row for row in self.rows()[1]}
        sketch = "K=32, sketch 2 bits"
        pages = [f"{sketch}, unique 16", f"{sketch}, quest 64"]
        self.assertEqual(list(rows), ["full", "K=32, select 2+17", sketch, *pages])
        for name in pages:
            self.assertIn("| " + name, table)
            self.assertGreater(rows[name]["kl"], 0)
            self.assertNotEqual(rows[name]["kl"], rows[sketch]["kl"])
        self.assertLessEqual(rows[pages[0]]["bytes_per_token"], rows[sketch]["bytes_per_token"])
        for flags, words in ((("--pages", "leaf"), ("--pages: 'leaf'", "quest, unique")),
                             (("--pages", "quest:7"), ("quest:7", "64 positions")),
                             (("--pages", "quest", "--attention", "tidal"), ("--pages", "none of the plans"))):
            with self.subTest(flags=flags):
                self.refused(self.ppl(*flags), *words)


class Ruler(EvalTest):
    def ruler(self, *arguments, **options):
        arguments = self.with_defaults(arguments, lengths="600", prompts="1", budget="64", attention="sketch")
        return self.eval("ruler", "-f", self.text_file, *arguments, **options)

    def test_tasks_and_resuming(self):
        run = lambda: self.ruler("--prompts", "2", "--tasks", "niah_multikey,vt", "-o", self.rows_file)
        table = self.succeeded(run())
        header, rows = self.rows()
        self.assertEqual((header["tidal"], header["needles"], header["hops"]), ("eval ruler", 4, 4))
        self.assertEqual({(row["task"], row["prompt"], row["plan"]) for row in rows},
                         {(task, prompt, plan) for task in ("niah_multikey", "vt") for prompt in (0, 1)
                          for plan in ("full", "K=64, sketch 2 bits")})
        for row in rows:
            self.assertEqual(len(row["wanted"]), {"niah_multikey": 1, "vt": 5}[row["task"]])
            said = row["answer"].lower()
            self.assertAlmostEqual(row["score"], sum(one.lower() in said for one in row["wanted"]) / len(row["wanted"]))
        mean = sum(row["score"] for row in rows if row["task"] == "vt" and row["plan"] == "full") / 2
        self.assertRegex(table, rf"\| vt +\| +600 \| +{100 * mean:.1f} \+- \d")
        self.assertIn("vt, 600", self.picture(os.path.join(self.folder, "rows.svg")))
        with open(self.rows_file, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        with open(self.rows_file, "wb") as file:
            file.write(b"".join(lines[:4]))
        self.assertEqual(self.succeeded(run()), table)
        self.assertEqual(sorted(self.rows()[1], key=json.dumps), sorted(rows, key=json.dumps))

    def test_refused(self):
        for flags, words in ((("--tasks", "vt,qa"), ("--tasks: 'qa'", "niah_multikey")),
                             (("--prompts", "0"), ("--prompts: 0",)), (("--lengths", "x"), ("--lengths", "'x'")),
                             (("--haystack", "hay"), ("'hay'", "text or noise")),
                             (("--question", "both"), ("'both'", "sparse or dense")), (("--seed", "-1"), ("--seed",)),
                             (("--needles", "41"), ("41 needles", "1 to 40")), (("--hops", "0"), ("0 hops",)),
                             (("--tasks", "vt", "--lengths", "50"), ("vt: what it hides", "prompt of 50")),
                             (("--tasks", "cwe", "--lengths", "200"), ("cwe: what it hides",))):
            with self.subTest(flags=flags):
                self.refused(self.ruler(*flags), *words)


if __name__ == "__main__":
    unittest.main()
