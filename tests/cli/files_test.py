"""What model files may be: parts, and tensors and keys that do not belong."""

import os
import struct
import unittest

from gguf_edit import F32, Gguf
from program import MODEL, ModelTest

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


if __name__ == "__main__":
    unittest.main()
