"""What model files and documents may be: parts, tensors that do not belong, bytes that are no text."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
import unittest

from gguf_edit import BOOL, F32, Gguf
from program import MODEL, PROGRAM, ModelTest, environment

PROMPT = ("-p", "Once upon a time", "-n", "8", "--temp", "0", "--attention", "full")


class Parts(ModelTest):
    def setUp(self):
        super().setUp()
        self.paths = Gguf(MODEL).write_parts(os.path.join(self.folder, "m"), 3)

    def refused(self, path, message):
        result = self.tidal("run", "-m", path, *PROMPT)
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertEqual(result.stderr, f"tidal: {path}: {message}\n")

    def test_the_text_is_that_of_one_file(self):
        result = self.tidal("run", "-m", self.paths[0], *PROMPT)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.decode(), self.text(*PROMPT))

    def test_another_part_and_one_that_is_missing(self):
        self.refused(self.paths[1], "is part 2 of 3 of a split model, expected the first, m-00001-of-00003.gguf")
        os.remove(self.paths[2])
        self.refused(self.paths[0], "is the first of 3 parts, and these are missing beside it: m-00003-of-00003.gguf")


class Tensors(ModelTest):
    def test_tensors_that_the_family_does_not_have(self):
        model = Gguf(MODEL)
        model.tensors.append(["blk.3.attn_q_norm.weight", [64], 0, struct.pack("<64f", *[2] * 64)])
        path = os.path.join(self.folder, "more.gguf")
        model.write(path)
        result = self.tidal("run", "-m", path, *PROMPT)
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertEqual(result.stderr, f"tidal: {path}: these tensors are not supported: blk.3.attn_q_norm.weight\n")

    def test_keys_as_strict_as_libllama(self):
        model = Gguf(MODEL)
        model.set("llama.block_count", F32, 30)
        path = os.path.join(self.folder, "float.gguf")
        model.write(path)
        result = self.tidal("info", "-m", path)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr, f"tidal: {path}: key 'llama.block_count' has type f32, expected u32\n")


class TokenizerFlags(ModelTest):
    def answer(self, **flags):
        model = Gguf(MODEL)
        for name, value in flags.items():
            if value is None:
                del model.keys["tokenizer.ggml." + name]
            else:
                model.set("tokenizer.ggml." + name, BOOL, value)
        path = os.path.join(self.folder, "flags.gguf")
        model.write(path)
        result = self.tidal("run", "-m", path, *PROMPT)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def prefilled(self, result):
        return int(result.stderr.split("prefill ")[-1].split()[0])

    def test_a_beginning_is_added_and_no_end(self):
        plain = self.answer(add_bos_token=False, add_eos_token=False)
        self.assertEqual(self.prefilled(plain), 4)
        self.assertEqual(self.prefilled(self.answer(add_bos_token=True, add_eos_token=False)), 5)
        ended = self.answer(add_bos_token=False, add_eos_token=True)  # no end between a prompt and its answer
        self.assertEqual(self.prefilled(ended), 4)
        self.assertEqual(ended.stdout, plain.stdout)

    def test_a_guess_is_said(self):
        self.assertIn("warning", self.answer(pre=None).stderr)
        self.assertNotIn("warning", self.answer().stderr)


class Text(ModelTest):
    def test_a_byte_that_would_end_the_text_is_refused_where_it_is(self):
        path = self.file("nul.txt", b"Before\0after, and " * 50)
        for arguments in (
            ("run", "-m", MODEL, "-f", path, "-n", "2"),
            ("run", "-m", MODEL, "--chat", "-f", path, "-n", "2"),
            ("compare", "-m", MODEL, "-f", path, "-p", "What?"),
            ("inspect", "-m", MODEL, "-f", path, "-p", "What?", "-o", os.path.join(self.folder, "page.html")),
            ("calibrate", "-m", MODEL, "-f", path, "-o", os.path.join(self.folder, "plan.json")),
        ):
            with self.subTest(arguments=arguments[:3] + arguments[3:4]):
                result = self.tidal(*arguments)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("byte 6 is NUL", result.stderr)

    def test_file_names_that_are_no_text(self):
        model = os.path.join(os.fsencode(self.folder), b"mod\xe9l.gguf")
        os.symlink(os.path.realpath(MODEL), model)
        result = self.tidal("info", "-m", model, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(json.loads(result.stdout)["file"].endswith("mod\\xE9l.gguf"))
        result = self.tidal("bench", "-m", model, "-d", "0", "-p", "0", "-n", "2", "-r", "1", "--attention", "full", "-o",
                            "json", "--details")
        self.assertEqual(result.returncode, 0, result.stderr)
        json.loads(result.stdout)


class Kills(ModelTest):
    def test_nothing_lies_beside_the_model_after_a_kill(self):
        text = self.file("text.txt", "".join(f"Line {n} says that {n * 7919 % 10007} follows.\n" for n in range(20000)))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            folder = os.path.join(self.folder, str(number.value))
            os.mkdir(folder)
            process = subprocess.Popen(
                [PROGRAM, "calibrate", "-m", MODEL, "-f", text, "-o", os.path.join(folder, "plan.json"), "--prefix", "1024"],
                env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for _ in range(600):
                if os.path.exists(os.path.join(folder, "plan.rows.jsonl")):
                    break
                time.sleep(0.1)
            time.sleep(0.3)
            process.send_signal(number)
            self.assertEqual(process.wait(timeout=60), 128 + number.value)
            self.assertEqual([name for name in os.listdir(folder) if name.endswith(".part")], [])
            shutil.rmtree(folder)


if __name__ == "__main__":
    unittest.main()
