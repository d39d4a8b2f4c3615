"""The flags of a policy, and the plan that lies beside a model."""

import os
import unittest

from errors_test import Refusal
from program import MODEL, ModelTest

LONG = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 8


class Policies(Refusal, ModelTest):
    def test_budgets_as_shares(self):
        told = self.run_model("-p", LONG, "-n", "1", "--budget", "20%,32").stderr
        self.assertIn("budget 20%,32 (4 sinks, 25% recent)", told)
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
        self.refused(self.run_model("-p", "x", "--recent", "100%"), "do not fit in a budget")
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


if __name__ == "__main__":
    unittest.main()
