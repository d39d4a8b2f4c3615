"""tidal run: the text that it prints, and what it says beside it."""

import json
import os
import re
import unittest

from program import MODEL, ModelTest, ProgramTest, closing

PROMPT = "The capital of France is"
GREEDY = ("--temp", "0", "-n", "24")
LONG = "In the beginning God created the heaven and the earth. " * 20  # over 200 tokens


class Text(ModelTest):
    def test_prompt_from_flag_file_and_stdin_is_the_same(self):
        text = self.text("-p", PROMPT, *GREEDY)
        self.assertIn("Paris", text)
        self.assertEqual(text, self.text("-f", self.file("prompt", PROMPT + "\n"), *GREEDY))
        self.assertEqual(text, self.text(*GREEDY, stdin=PROMPT.encode()))

    def test_a_prompt_may_look_like_a_list_or_a_flag(self):
        for prompt in ("[1, 2, 3]", "{}", "- one"):
            self.assertEqual(self.text("-p", prompt, *GREEDY), self.text(*GREEDY, stdin=prompt.encode()), prompt)
        self.assertEqual(self.text("--prompt=--help", *GREEDY), self.text(*GREEDY, stdin=b"--help"))

    def test_tidal_is_full_attention_up_to_the_budget(self):
        full = self.text("-p", PROMPT, *GREEDY, "--attention", "full")
        self.assertEqual(full, self.text("-p", PROMPT, *GREEDY, "--attention", "tidal", "--budget", "256"))
        self.assertEqual(full, self.text("-p", PROMPT, *GREEDY, "--policy", "paper", "--scope", "kv"))

    def test_every_backend_says_the_same(self):
        short = ("-p", "Roses are red, violets are", "--temp", "0", "-n", "3")
        self.assertEqual(self.text(*short), self.text(*short, "--backend", "reference"))

    def test_same_seed_same_text(self):
        hot = ("-p", PROMPT, "-n", "32", "--temp", "1.5", "--top-k", "0", "--min-p", "0", "--top-p", "1")
        one = self.text(*hot, "-s", "1")
        self.assertEqual(one, self.text(*hot, "--seed", "1"))
        self.assertNotEqual(one, self.text(*hot, "--seed", "2"))

    def test_top_k_1_is_greedy(self):
        self.assertEqual(self.text("-p", PROMPT, *GREEDY), self.text("-p", PROMPT, "-n", "24", "--top-k", "1"))

    def test_repeat_penalty_changes_a_repetition(self):
        prompt = "one two one two one two one two one two"
        self.assertNotEqual(
            self.text("-p", prompt, *GREEDY), self.text("-p", prompt, *GREEDY, "--repeat-penalty", "2")
        )

    def test_grammar_constrains_the_answer(self):
        self.assertIn(self.text("-p", "Is the sky blue? Answer:", "--grammar", 'root ::= "yes" | "no"'), ("yes\n", "no\n"))
        grammar = self.file("digits.gbnf", "root ::= digit digit digit\ndigit ::= [0-9]\n")
        self.assertRegex(self.text("-p", PROMPT, "--grammar-file", grammar, "-s", "3"), r"^\d{3}\n$")

    def test_chat_applies_the_template(self):
        raw = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        chat = self.text("--chat", "--system", "Be brief.", "-p", "Hi", *GREEDY)
        self.assertEqual(chat, self.text(*GREEDY, stdin=(raw + "\n").encode()))

    def test_characters_come_whole(self):
        # Bytes of these characters are tokens of their own; decoding fails when one is cut.
        result = self.run_model("-p", "\U0001f600\U0001f680 \u4e2d\u6587 " * 5, *GREEDY)
        self.assertEqual(result.returncode, 0, result.stderr)
        result.stdout.decode("utf-8")

    def test_a_prompt_in_several_passes_is_the_same_prompt(self):
        whole = self.text("-p", LONG, "--temp", "0", "-n", "4", "--budget", "4096")
        parts = self.text("-p", LONG, "--temp", "0", "-n", "4", "--budget", "4096", "--ubatch-size", "100")
        self.assertEqual(whole, parts)


class Report(ModelTest):
    def test_closing_line_has_the_numbers(self):
        result = self.run_model("-p", PROMPT, *GREEDY, "--ignore-eos")
        numbers = closing(result.stderr)
        self.assertEqual(numbers["prefill"], 5)
        self.assertEqual(numbers["decode"], 23)  # the first token comes from the prefill
        self.assertGreater(numbers["prefill_rate"], 0)
        # Nearly all of the file is read for every token.
        self.assertLess(abs(numbers["megabytes"] - os.path.getsize(MODEL) / 1e6), 3)
        # GB/s = MB per token x tokens per second, as far as the printed digits go.
        product = numbers["megabytes"] * numbers["decode_rate"] / 1e3
        slack = 0.005 + product * (0.05 / numbers["megabytes"] + 0.05 / numbers["decode_rate"])
        self.assertLess(abs(numbers["gigabytes"] - product), slack + 1e-9)

    def test_quiet_without_a_terminal(self):
        result = self.run_model("-p", LONG, *GREEDY)
        self.assertNotIn("\033", result.stderr)
        self.assertNotIn("\r", result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 2, result.stderr)  # the plan and the closing line

    def test_tidal_reads_less(self):
        many = ("-p", LONG, "--temp", "0", "-n", "8")
        full = closing(self.run_model(*many, "--attention", "full").stderr)
        tidal = closing(self.run_model(*many, "--attention", "tidal", "--budget", "32").stderr)
        self.assertLess(tidal["megabytes"], full["megabytes"] - 1)

    def test_the_plan_is_told(self):
        default = self.run_model("-p", PROMPT, "-n", "1").stderr
        self.assertIn("sketch attention: Scan all 30 by 2 bits (default); budget 256", default)
        tidal = self.run_model("-p", PROMPT, "-n", "1", "--attention", "tidal").stderr
        self.assertIn("Dense 0, 1; Select 2, 17 (measured for this model)", tidal)
        given = self.run_model("-p", PROMPT, "-n", "1", "--reselect", "9", "--budget", "64", "--scope", "head").stderr
        self.assertIn("Select 2, 9 (given)", given)
        self.assertIn("budget 64", given)
        self.assertIn("scope head", given)
        self.assertIn("full attention", self.run_model("-p", PROMPT, "-n", "1", "--attention", "full").stderr)

    def test_a_saved_plan_is_the_same_plan(self):
        path = os.path.join(self.folder, "plan.json")
        many = ("-p", LONG, "--temp", "0", "-n", "16")
        saved = self.text(*many, "--reselect", "9", "--budget", "48", "--save-plan", path)
        result = self.run_model(*many, "--plan", path)
        self.assertEqual(saved, result.stdout.decode())
        self.assertIn(f"Select 2, 9 (from {path})", result.stderr)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(json.load(file)["policy"]["budget"], 48)

    def test_a_budget_beside_a_plan_replaces_its_budget(self):
        path = os.path.join(self.folder, "plan.json")
        self.text("-p", PROMPT, "-n", "1", "--attention", "tidal", "--budget", "64", "--save-plan", path)
        self.assertIn("budget 32 (4 sinks, 8 recent)", self.run_model("-p", PROMPT, "-n", "1", "--plan", path, "--budget", "32").stderr)

    def test_answers_end_where_they_should(self):
        none = self.run_model("-p", PROMPT, "-n", "0")
        self.assertEqual((none.returncode, none.stdout), (0, b"\n"), none.stderr)
        self.assertEqual(closing(none.stderr)["decode"], 0)
        full = self.run_model("-p", PROMPT, "-c", "32", "--ignore-eos", "-s", "1")
        self.assertEqual(full.returncode, 0, full.stderr)
        self.assertIn("the context of 32 tokens is full", full.stderr)
        self.assertEqual(closing(full.stderr)["prefill"] + closing(full.stderr)["decode"], 32)

    def test_a_context_beyond_the_trained_one_is_warned_of(self):
        result = self.run_model("-p", PROMPT, "-n", "1", "-c", "10000")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"warning: .*10000.*8192")


class Session(ModelTest):
    PROMPT = "Once upon a time there was a fox who wanted the cheese of a crow. " * 20
    FLAGS = ("-n", "12", "--temp", "0", "--budget", "64")

    def said(self, prompt, *arguments):
        """The text, how many of how many tokens were there already, and stderr."""
        path = os.path.join(self.folder, "text.kv")
        result = self.run_model("-p", prompt, *self.FLAGS, "--session", path, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        there = re.search(r"(\d+) of (\d+) tokens are there", result.stderr)
        return result.stdout.decode(), (int(there[1]), int(there[2])) if there else None, result.stderr

    def test_a_text_goes_on_where_it_was(self):
        text, there, _ = self.said(self.PROMPT)
        self.assertIsNone(there)
        self.assertEqual(text, self.text("-p", self.PROMPT, *self.FLAGS))
        again, (known, all_tokens), errors = self.said(self.PROMPT)
        self.assertEqual(again, text)
        self.assertEqual(known, all_tokens - 9)  # those are computed as they were
        self.assertEqual(closing(errors)["prefill"], 9)
        longer = self.PROMPT + text.rstrip("\n") + " Then it came to the river"
        _, (further, all_tokens), _ = self.said(longer)
        self.assertGreater(further, known)
        # What sparse attention decoded is not taken for full attention, and a prompt of its own begins anew.
        _, (clean, _), _ = self.said(longer, "--attention", "full")
        self.assertLessEqual(clean, known + 9)
        self.assertIsNone(self.said("Another text, of other words. " * 9)[1])

    def test_what_is_damaged_is_computed_again(self):
        text, _, _ = self.said(self.PROMPT)
        path = os.path.join(self.folder, "text.kv")
        with open(path, "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"damage")
        again, there, errors = self.said(self.PROMPT)
        self.assertEqual((again, there), (text, None))
        self.assertEqual(errors.count("it is ignored, and replaced when this run ends"), 1)
        self.assertIsNotNone(self.said(self.PROMPT)[1])

    def test_a_cache_of_another_type_begins_anew(self):
        eight = ("-ctk", "q8_0", "--cache-type-v", "q8_0")
        text, _, _ = self.said(self.PROMPT, *eight)
        again, (known, all_tokens), _ = self.said(self.PROMPT, *eight)
        self.assertEqual((again, known), (text, all_tokens - 9))
        _, there, errors = self.said(self.PROMPT)
        self.assertIsNone(there)
        self.assertIn("text.kv: is a session in q8_0, but the cache is in bf16", errors)
        self.assertIn("it is ignored, and replaced when this run ends", errors)

    def test_other_files_are_left_alone(self):
        path = self.file("notes.txt", "my notes")
        result = self.run_model("-p", "x", "-n", "1", "--session", path)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr, f"tidal: {path}: is not a session of tidal, and would be overwritten\n")
        with open(path, encoding="ascii") as file:
            self.assertEqual(file.read(), "my notes")
        result = self.run_model("-p", "x", "-n", "1", "--session", os.path.join(self.folder, "none", "x.kv"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("x.kv: cannot be written: No such file or directory", result.stderr)
        self.assertEqual(os.listdir(self.folder), ["notes.txt"])


class Environment(ModelTest):
    def test_variables_stand_for_flags(self):
        greedy = self.text("-p", PROMPT, *GREEDY)
        variables = {"TIDAL_MODEL": MODEL, "TIDAL_TEMP": "0", "TIDAL_N_PREDICT": "24", "TIDAL_BUDGET": "40"}
        result = self.tidal("run", "-p", PROMPT, variables=variables)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.decode(), greedy)
        self.assertIn("budget 40", result.stderr)

    def test_flags_win(self):
        result = self.run_model("-p", PROMPT, "-n", "2", "--ignore-eos", variables={"TIDAL_N_PREDICT": "24"})
        self.assertEqual(closing(result.stderr)["decode"], 1)

    def test_a_bad_variable_is_refused(self):
        for value in ("0", "many"):
            result = self.run_model("-p", PROMPT, variables={"TIDAL_THREADS": value})
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, rf"^tidal: .*--threads.* {value}\b")
        # ... by the commands that read it alone
        self.assertEqual(self.tidal("info", "-m", MODEL, variables={"TIDAL_THREADS": "0"}).returncode, 0)


class Help(ProgramTest):
    def test_help_lists_the_commands(self):
        text = self.tidal("--help")
        self.assertEqual(text.returncode, 0)
        for command in ("run", "info", "bench"):
            self.assertRegex(text.stdout.decode(), rf"(?m)^ +{command} ")
        self.assertEqual(self.tidal().stdout, text.stdout)
        self.assertEqual(self.tidal().returncode, 0)

    def test_help_of_run_lists_its_flags(self):
        text = self.tidal("run", "--help").stdout.decode()
        for flag in ("--model", "--prompt", "--file", "--predict", "--ctx-size", "--threads", "--seed", "--temp",
                     "--top-k", "--top-p", "--min-p", "--repeat-penalty", "--chat", "--system", "--grammar-file",
                     "--attention", "--budget", "--policy", "--scope", "--plan", "--reselect", "TIDAL_MODEL"):
            self.assertRegex(text, rf"{flag}\b")

    def test_version(self):
        result = self.tidal("--version")
        self.assertEqual(result.returncode, 0)
        self.assertTrue(re.fullmatch(r"tidal \d+\.\d+\.\d+\n", result.stdout.decode()), result.stdout)


if __name__ == "__main__":
    unittest.main()
