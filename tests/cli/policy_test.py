"""The flags of a policy, and the plan that lies beside a model."""

import json
import os
import unittest

from errors_test import Refusal
from program import MODEL, ModelTest

LONG = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 8


class Policies(Refusal, ModelTest):
    def test_budgets_as_shares(self):
        run = ("-p", LONG, "-n", "1", "--budget", "20%,32")
        self.assertIn("budget 20%,32 (4 sinks, 25% recent)", self.run_model(*run, "--attention", "tidal").stderr)
        self.assertIn("budget 20%,32 (0 sinks, 1 recent)", self.run_model(*run, "--attention", "sketch").stderr)
        # 163 tokens and more: a fifth of them is what the number says.
        for value in ("5%x", "%", "0%", "101%", "nan%", "-5%", "5%,0", "5%,x", "5,5", ""):
            self.refused(self.run_model("-p", "x", f"--budget={value}"), "--budget")

    def test_all_of_the_policy(self):
        told = self.run_model("-p", LONG, "-n", "2", "--budget", "64", "--scope", "kv", "--pooling", "max", "--sinks", "2",
                              "--recent", "50%").stderr
        self.assertIn("budget 64 (2 sinks, 50% recent), scope kv, pooling max", told)
        told = self.run_model("-p", LONG, "-n", "2", "--budget", "64", "--select-top-p", "0.9").stderr
        self.assertIn("budget 64 at top-p 0.9", told)

    def test_bad_shares(self):
        for value in ("0", "1.5", "nan", "-1"):
            self.refused(self.run_model("-p", "x", f"--select-top-p={value}"), "--select-top-p", "more than 0, at most 1")
        self.refused(self.run_model("-p", "x", "--select-top-p", "0.9", "--pooling", "max"), "top-p", "pooling sum")
        self.refused(self.run_model("-p", "x", "--pooling", "mean"), "'mean'", "max, sum")
        self.refused(self.run_model("-p", "x", "--sinks=-1"), "--sinks")
        self.refused(self.run_model("-p", "x", "--sinks", "4", "--recent", "100%"), "do not fit in a budget")
        self.refused(self.run_model("-p", "x", "--recent", "x"), "--recent")

    def test_a_plan_beside_the_model_is_found(self):
        model = os.path.join(self.folder, "model.gguf")
        os.symlink(os.path.abspath(MODEL), model)
        plan = model + ".tidal.json"
        self.assertEqual(self.tidal("run", "-m", MODEL, "-p", "x", "-n", "0", "--reselect", "9", "--save-plan", plan).returncode, 0)
        run = ("run", "-m", model, "-p", "x", "-n", "1")
        self.assertIn(f"Select 2, 9 (found in {plan})", self.tidal(*run).stderr)
        for other in (("--plan", "none"), ("--policy", "default"), ("--reselect", "11")):
            self.assertNotIn("found in", self.tidal(*run, *other).stderr)
        with open(plan, "r+", encoding="utf-8") as file:  # cut in half
            file.truncate(os.path.getsize(plan) // 2)
        self.refused(self.tidal(*run), plan, "is not valid JSON")

    def test_kinds_of_attention(self):
        run = ("-p", LONG, "-n", "2", "--temp", "0", "--budget", "64")
        told = self.run_model(*run, "--attention", "sketch").stderr
        self.assertIn("sketch attention: Scan all 30 by 2 bits (default); budget 64 (0 sinks, 1 recent), scope kv", told)
        self.assertEqual(self.run_model(*run, variables={"TIDAL_ATTENTION": "sketch"}).stderr.splitlines()[0],
                         told.splitlines()[0])
        told = self.run_model(*run, "--sketch", "1", "--dense-layers", "2").stderr
        self.assertIn("Dense 0, 1; Scan the other 28 by 1 bit (given)", told)
        told = self.run_model(*run, "--complete", "2:4").stderr
        self.assertIn("Scan all 30 by 2 bits (default); budget 64 completed 2:4 (0 sinks", told)
        told = self.run_model(*run, "--attention", "sketch", "--scope", "shared", "--pooling", "max", "--sinks", "4",
                              "--recent", "16", "--correct", "8").stderr
        self.assertIn("budget 64 (4 sinks, 16 recent), scope shared, pooling max; corrected every 8 tokens", told)
        self.assertIn("full attention in all layers", self.run_model(*run, "--attention", "full").stderr)

    def test_a_context_that_fits_in_the_budget_is_full_attention(self):
        run = ("-p", LONG, "-n", "12", "--temp", "0")
        self.assertEqual(self.text(*run, "--attention", "sketch", "--budget", "512"),
                         self.text(*run, "--attention", "full"))

    def test_sketch_plans_as_files(self):
        plan = os.path.join(self.folder, "plan.json")
        run = ("-p", LONG, "-n", "8", "--temp", "0")
        sketch = ("--attention", "sketch", "--sketch", "4", "--dense-layers", "1", "--budget", "48")
        text = self.text(*run, *sketch, "--save-plan", plan)
        with open(plan, encoding="utf-8") as file:
            saved = json.load(file)
        self.assertEqual(saved["roles"], {"dense": [0], "select": [], "scan": list(range(1, 30))})
        self.assertEqual(saved["policy"]["sketch"], 4)
        self.assertEqual(self.text(*run, "--plan", plan), text)
        self.assertIn("Scan the other 29 by 1 bit", self.run_model(*run, "--plan", plan, "--sketch", "1").stderr)

    def test_a_plan_beside_the_model_is_for_its_kind(self):
        model = os.path.join(self.folder, "model.gguf")
        os.symlink(os.path.abspath(MODEL), model)
        plan = model + ".tidal.json"
        save = ("run", "-m", MODEL, "-p", "x", "-n", "0", "--save-plan", plan)
        self.assertEqual(self.tidal(*save, "--dense-layers", "3").returncode, 0)

        def told(*flags):
            return self.tidal("run", "-m", model, "-p", "x", "-n", "1", *flags).stderr

        found = f"Dense 0, 1, 2; Scan the other 27 by 2 bits (found in {plan})"
        self.assertIn(found, told())
        self.assertIn(found, told("--attention", "sketch"))
        self.assertIn("Dense 0, 1; Select 2, 17 (measured", told("--attention", "tidal"))
        self.assertIn("Select 2, 9 (given)", told("--reselect", "9"))
        self.assertIn("full attention", told("--attention", "full"))
        os.remove(plan)
        self.assertEqual(self.tidal(*save, "--reselect", "9").returncode, 0)
        self.assertIn("Select 2, 9 (found", told("--attention", "tidal"))
        self.assertIn("Scan all 30 by 2 bits (default)", told("--attention", "sketch"))

    def test_exact_mode_drafts_by_sketches(self):
        run = ("-p", LONG, "-n", "24", "--temp", "0")
        result = self.run_model(*run, "--attention", "sketch", "--budget", "32", "--exact")
        self.assertRegex(result.stderr, r"exact: accepted \d+ of \d+ .*sparse drafts")
        self.assertEqual(result.stdout.decode().rstrip("\n"), self.text(*run, "--attention", "full").rstrip("\n"))


if __name__ == "__main__":
    unittest.main()
