"""Exact mode and cache correction from outside: full attention's text, whatever is drafted."""

import json
import os
import unittest

from errors_test import Refusal
from program import ModelTest

LONG = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 8


class Exact(Refusal, ModelTest):
    def test_greedy_text_is_that_of_full_attention(self):
        many = ("-p", LONG, "--temp", "0", "-n", "40", "--ignore-eos")
        full = self.text(*many, "--attention", "full")
        for drafts in ((), ("1",), ("20",)):
            with self.subTest(drafts=drafts):
                result = self.run_model(*many, "--budget", "48", "--exact", *drafts)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(result.stdout.decode(), full)
                self.assertRegex(result.stderr, r"exact: accepted \d+ of \d+ .*sparse drafts, \d+ of \d+ .*copied.*tokens a round")

    def test_sampled_text_is_that_of_full_attention_with_the_same_seed(self):
        for seed in ("1", "2", "3"):
            many = ("-p", LONG, "-n", "24", "-s", seed, "--temp", "1", "--repeat-penalty", "1.1")
            full = self.text(*many, "--attention", "full")
            self.assertEqual(self.text(*many, "--budget", "48", "--exact"), full)

    def test_grammars_hold(self):
        many = ("-p", LONG + " Is the sky blue?", "--grammar", 'root ::= "yes, " "very " ("blue" | "grey") "."', "--temp", "0")
        self.assertEqual(self.text(*many, "--budget", "48", "--exact"), self.text(*many, "--attention", "full"))

    def test_limits(self):
        full = self.text("-p", LONG, "--temp", "0", "-n", "5", "--ignore-eos", "--attention", "full")
        self.assertEqual(self.text("-p", LONG, "--temp", "0", "-n", "5", "--ignore-eos", "--budget", "48", "--exact"), full)
        cut = self.run_model("-p", LONG, "-c", "260", "--ignore-eos", "--temp", "0", "--budget", "48", "--exact")
        self.assertEqual(cut.returncode, 0, cut.stderr)
        self.assertIn("the context of 260 tokens is full", cut.stderr)

    def test_bad_numbers(self):
        for value in ("0", "-1"):
            self.refused(self.run_model("-p", "x", f"--exact={value}"), f"--exact: {value} drafts given, at least 1 is needed")
        self.refused(self.run_model("-p", "x", "-c", "100", "--budget", "50", "--exact=101"), "--exact: 101 drafts", "context of 100")
        self.refused(self.run_model("-p", "x", "--exact=many"), "--exact")
        self.refused(self.run_model("-p", "x", "--attention", "full", "--exact"), "--exact", "--attention full")
        self.refused(self.run_model("-p", "x", "--exact", "--correct", "8"), "--correct", "--exact")


class Correction(Refusal, ModelTest):
    def test_after_every_token_it_is_nearly_full_attention(self):
        # Only the logits of a step itself are sparse then; every token before it is clean.
        many = ("-p", LONG, "--temp", "0", "-n", "24", "--budget", "48")
        result = self.run_model(*many, "--correct", "1")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("corrected every 1 tokens", result.stderr)

    def test_it_is_part_of_a_plan(self):
        path = os.path.join(self.folder, "plan.json")
        many = ("-p", LONG, "--temp", "0", "-n", "24")
        text = self.text(*many, "--budget", "48", "--correct", "7", "--save-plan", path)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(json.load(file)["correct"], 7)
        self.assertEqual(self.text(*many, "--plan", path), text)

    def test_bad_numbers(self):
        for value in ("0", "-1"):
            self.refused(self.run_model("-p", "x", f"--correct={value}"), f"--correct: {value} given, at least 1 token is needed")
        self.refused(self.run_model("-p", "x", "-c", "100", "--budget", "50", "--correct", "101"), "--correct: 101", "context of 100")


if __name__ == "__main__":
    unittest.main()
