"""Models with windows: what layers with a window keep is said, and changes no text."""

import json
import os
import re
import unittest

from program import MODELS, ProgramTest

GEMMA = os.path.join(MODELS, "gemma3-270m.gguf")
PROMPT = "Once upon a time there was a fox who wanted the cheese of a crow. " * 80  # longer than two windows


class Windows(ProgramTest):
    def setUp(self):
        super().setUp()
        if not os.path.exists(GEMMA):
            self.skipTest(GEMMA + " is missing; run tools/get_model.sh gemma3-270m")

    def run_gemma(self, *arguments):
        result = self.tidal("run", "-m", GEMMA, "-n", "6", "--temp", "0", "-p", PROMPT, "-c", "8192", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def test_the_text_is_the_same_and_the_cache_smaller(self):
        for attention in ("full", "sketch"):
            few = self.run_gemma("--attention", attention)
            whole = self.run_gemma("--attention", attention, "--swa-full")
            self.assertEqual(few.stdout, whole.stdout)
            self.assertNotEqual(few.stdout, b"")
        result = self.tidal("info", "-m", GEMMA, "--json")
        info = json.loads(result.stdout)
        # 18 layers of one KV head of 256 elements, of which three keep the whole context and 15 at most a tenth of it.
        whole = 18 * 2 * 2 * 256 * info["context"]
        self.assertEqual(info["kv_bytes_at_context_swa_full"], whole)
        self.assertLess(info["kv_bytes_at_context"], whole * (3 + 15 / 10) / 18)
        self.assertGreater(info["kv_bytes_at_context"], whole * 3 / 18)
        text = self.tidal("info", "-m", GEMMA).stdout.decode()
        self.assertIn(f"{info['kv_bytes_at_context'] / 1e6:.1f} MB at the trained context", text)
        self.assertIn(f"{whole / 1e6:.1f} MB with --swa-full", text)

    def test_comparisons_and_pages_take_the_flag(self):
        document = os.path.join(self.folder, "document.txt")
        with open(document, "w", encoding="utf-8") as file:
            file.write(PROMPT)
        page = os.path.join(self.folder, "page.html")
        for command in (["compare", "--attention", "full,sketch"], ["inspect", "-o", page]):
            answers = []
            for flags in ([], ["--swa-full"]):
                result = self.tidal(*command, "-m", GEMMA, "-f", document, "-p", "Who wanted it?", "-n", "4", *flags)
                self.assertEqual(result.returncode, 0, result.stderr)
                answers.append([line for line in result.stdout.decode().splitlines() if "|" not in line][:2])
            self.assertEqual(answers[0], answers[1])

    def test_files_of_texts_hold_whole_contexts(self):
        path = os.path.join(self.folder, "text.kv")
        said = "--session: files hold the K/V of whole contexts, --swa-full is on"
        first = self.run_gemma("--session", path)
        self.assertIn(said, first.stderr)
        again = self.run_gemma("--session", path)
        there = re.search(r"(\d+) of (\d+) tokens are there", again.stderr)
        self.assertGreater(int(there[1]), 1000)
        self.assertEqual(again.stdout, first.stdout)
        self.assertNotIn(said, self.run_gemma("--session", path, "--swa-full").stderr)


if __name__ == "__main__":
    unittest.main()
