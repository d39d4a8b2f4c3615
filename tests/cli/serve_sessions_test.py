"""tidal serve --cache-dir: texts that are there after a restart."""

import os
import resource
import tempfile
import unittest

from program import MODEL, ModelTest
from serving import Server

PROMPT = "In the beginning was a long story about a fox, a crow and a piece of cheese. " * 40


class Sessions(ModelTest):
    def answer(self, server, prompt=PROMPT, **more):
        said = server.post("/v1/completions", prompt=prompt, max_tokens=12, temperature=0, **more)
        return said["choices"][0]["text"], said["usage"]["prompt_tokens_details"]["cached_tokens"]

    def test_a_text_outlives_the_server(self):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ("-c", "2048", "--cache-dir", os.path.join(folder, "made", "by it"), "--cache-size", "1G")
            with Server(*arguments) as server:
                text, cached = self.answer(server)
                self.assertEqual(cached, 0)
                in_memory, of_memory = self.answer(server)
                self.assertGreater(of_memory, 500)
                self.assertEqual(server.stop(), 0)
            with Server(*arguments) as server:
                again, cached = self.answer(server)
                self.assertEqual((again, cached), (in_memory, of_memory))
                self.assertEqual(self.answer(server, PROMPT + " And then", cache_prompt=False)[1], 0)
                self.assertEqual(server.stop(), 0)
                self.assertIn("files of earlier texts", server.log())

    def test_what_is_damaged_is_not_served(self):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ("-c", "2048", "--cache-dir", folder)
            with Server(*arguments) as server:
                text, _ = self.answer(server)
                server.stop()
            paths = [os.path.join(folder, name) for name in os.listdir(folder)]
            self.assertEqual(len(paths), 1)
            os.truncate(paths[0], os.path.getsize(paths[0]) - 1)
            with Server(*arguments) as server:
                self.assertEqual(self.answer(server), (text, 0))
                self.assertEqual(server.log().count("it is ignored"), 1)

    def test_a_disk_that_is_full(self):
        # A limit on the size of files refuses what is written as a full disk does.
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            try:
                server = Server("-c", "2048", "--cache-dir", folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            with server:
                text, _ = self.answer(server)
                self.assertEqual(self.answer(server)[0], text)
                self.assertEqual(server.stop(), 0)
                self.assertEqual(server.log().count("cannot be written: File too large; the session is not kept"), 1)
            self.assertEqual(os.listdir(folder), [])

    def test_a_folder_that_cannot_be_one(self):
        with Server("--cache-dir", MODEL, wait=False) as server:
            self.assertEqual(server.process.wait(60), 1)
            self.assertIn("is no folder, expected one for sessions", server.log())
        with Server("--cache-dir", "x", "--cache-size", "much", wait=False) as server:
            self.assertEqual(server.process.wait(60), 1)
            self.assertIn("--cache-size", server.log())


if __name__ == "__main__":
    unittest.main()
