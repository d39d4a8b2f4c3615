"""tidal info: what it says about a model file."""

import json
import os
import re
import unittest

from program import MODEL, ModelTest


class Info(ModelTest):
    def info(self, *arguments):
        result = self.tidal("info", "-m", MODEL, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        return result.stdout.decode()

    def test_json_describes_the_model(self):
        info = json.loads(self.info("--json"))
        expected = {
            "architecture": "llama", "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_size": 64,
            "ffn": 1536, "vocab": 49152, "context": 8192, "file_bytes": os.path.getsize(MODEL),
            # K and V, two bytes an element, of every KV head and layer
            "kv_bytes_per_token": 2 * 2 * 3 * 64 * 30,
            "kv_bytes_at_context": 2 * 2 * 3 * 64 * 30 * 8192,
        }
        self.assertEqual({key: info[key] for key in expected}, expected)
        self.assertEqual(info["rope"]["base"], 100000)
        self.assertTrue(0.9 * info["file_bytes"] < info["weight_bytes_per_token"] < info["file_bytes"])

    def test_memory_on_devices(self):
        """What is on the device and what in host memory are the cache, and a larger device never has less of it."""
        for context in (8192, 8000000):
            table = json.loads(self.info("--json", "-c", str(context)))["gpu_memory"]
            self.assertEqual(table["context"], context)
            bytes_of = {"bf16": 2 * 2 * 3 * 64 * 30, "q8_0": 144 * 3 * 30}
            for kind in bytes_of:
                blocks = -(-context // 64)
                last = 0
                for card in table["cards"]:
                    place = card[kind]
                    if place is None:
                        self.assertEqual(last, 0, "a smaller device has room")
                        continue
                    self.assertEqual(place["device"] + place["host"], blocks * 64 * bytes_of[kind])
                    self.assertLess(place["device"] + table["weight_bytes"] + table["sketch_bytes"], card["bytes"])
                    self.assertGreaterEqual(place["device"], last)
                    last = place["device"]
                self.assertEqual(table["cards"][-1][kind]["host"] == 0, context == 8192)
            self.assertEqual(table["without_gpu"]["weight_bytes"], os.path.getsize(MODEL))
            self.assertEqual(table["without_gpu"]["q8_0"], blocks * 64 * bytes_of["q8_0"])
        self.assertIn("memory on a GPU at a context of 8192", self.info())
        self.assertRegex(self.info(), r"without a GPU, in GiB: .*K and V 0\.18 \(bf16\) or .*--kv-dir")
        shape = self.tidal("info", "--shape", "llama-3-8b", "-c", "131072", "--json")
        self.assertEqual(shape.returncode, 0, shape.stderr)
        card = json.loads(shape.stdout)["cards"][3]
        self.assertEqual(card["bytes"], 24 << 30)
        self.assertEqual(card["bf16"]["device"] + card["bf16"]["host"], 131072 * 2 * 2 * 8 * 128 * 32)

    def test_threads_wait_shortly_unless_the_user_says_how(self):
        """GCC's OpenMP runtime says what it has read when it is loaded; the last time counts."""
        def spins(**variables):
            result = self.tidal("--version", variables={"OMP_DISPLAY_ENV": "verbose", **variables})
            self.assertEqual(result.returncode, 0, result.stderr)
            return re.findall(r"GOMP_SPINCOUNT = '(\w+)'", result.stderr)

        if len(spins(GOMP_SPINCOUNT="77")) != 1:
            self.skipTest("another OpenMP runtime")
        self.assertEqual(spins(GOMP_SPINCOUNT="77"), ["77"])
        self.assertEqual(len(spins(OMP_WAIT_POLICY="active")), 1)
        self.assertEqual(spins()[1:], ["1000"])

    def test_names_that_are_not_utf8(self):
        """JSON is UTF-8 whatever the name, and the name can be had back from it."""
        path = os.path.join(self.folder.encode(), b"mod\xe9l.gguf")
        os.symlink(MODEL.encode(), path)
        plan = os.path.join(self.folder.encode(), b"pl\xe4n.json")
        result = self.tidal("run", "-m", path, "-p", "x", "-n", "0", "--save-plan", plan)
        self.assertEqual(result.returncode, 0, result.stderr)
        result = self.tidal("info", "-m", path, "--json", "--plan", plan)
        self.assertEqual(result.returncode, 0, result.stderr)
        info = json.loads(result.stdout.decode("utf-8"))
        self.assertEqual(info["file"], self.folder + r"/mod\xE9l.gguf")
        self.assertEqual(info["plan"]["source"], "from " + self.folder + r"/pl\xE4n.json")
        for format in ("json", "jsonl", "csv"):
            result = self.tidal(
                "bench", "-m", path, "-d", "0", "-p", "0", "-n", "1", "-r", "1", "--attention", "full", "-o", format, "--details"
            )
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn(r"mod\xE9l.gguf" if format == "csv" else r"mod\\xE9l.gguf", result.stdout.decode("utf-8"))

    def test_bytes_read_follow_from_the_plan(self):
        info = json.loads(self.info("--json", "--attention", "tidal", "--budget", "128"))
        roles = info["plan"]["roles"]
        self.assertEqual(roles["dense"], [0, 1])
        self.assertEqual(roles["select"][0], 2)
        attending = len(roles["dense"]) + len(roles["select"])
        per_layer = info["kv_bytes_per_token"] // info["layers"]
        for read in info["decode_bytes"]:
            self.assertEqual(read["full"], info["weight_bytes_per_token"] + info["kv_bytes_per_token"] * read["depth"])
            rows = attending * read["depth"] + (info["layers"] - attending) * 128
            self.assertEqual(read["tidal"], info["weight_bytes_per_token"] + rows * per_layer)
        self.assertEqual(info["decode_bytes"][-1]["depth"], 8192)

    def test_sketches(self):
        for bits in (1, 2, 4):
            info = json.loads(self.info("--json", "--sketch", str(bits), "--dense-layers", "2", "--budget", "128"))
            self.assertEqual(info["plan"]["roles"]["scan"], list(range(2, 30)))
            # Of 64 keys of a KV head: minimum and scale, 2 bytes each, of 64 channels, and codes.
            block = 2 * 2 * 64 + 64 * 64 * bits // 8
            self.assertEqual(info["sketch_bits"], bits)
            self.assertEqual(info["sketch_bytes_per_token"], 30 * 3 * block // 64)
            self.assertEqual(info["sketch_bytes_at_context"], 30 * 3 * block // 64 * 8192)
            per_layer = info["kv_bytes_per_token"] // info["layers"]
            for read in info["decode_bytes"]:
                self.assertEqual(read["depth"] % 64, 0)  # no block is still filling
                kv = (2 * read["depth"] + 28 * 128) * per_layer
                self.assertEqual(read["sketch"], info["weight_bytes_per_token"] + kv + 28 * 3 * block * read["depth"] // 64)
                self.assertLess(read["tidal"], read["full"])
        info = json.loads(self.info("--json", "--complete", "2:4", "--budget", "128"))
        # And of its values: means of 2 bytes, a scale of 2 bytes and codes of 16 a row.
        self.assertEqual(info["sketch_bytes_per_token"], 30 * 3 * (1280 + 2 * 64 + 64 * (2 + 16)) // 64)
        for read in info["decode_bytes"]:
            kv = 128 * per_layer + (256 - 128) * per_layer // 2  # of the others that are ranked, keys
            blocks = read["depth"] // 64 * (1280 + 2 * 64)  # and means
            self.assertEqual(read["sketch"], info["weight_bytes_per_token"] + 30 * kv + 30 * 3 * (blocks + (512 - 128) * (16 + 2)))
        text = self.info("--attention", "sketch")
        self.assertIn("2 bits: 1.80 kB per token, 14.7 MB at the trained context", text)
        self.assertIn("sketch attention: Scan all 30 by 2 bits (default)", text)
        self.assertIn("tidal attention: Dense 0, 1; Select 2, 17", self.info("--attention", "tidal"))

    def test_json_holds_a_plan_that_run_takes(self):
        plan = json.loads(self.info("--json", "--reselect", "9"))["plan"]
        source = plan.pop("source")
        self.assertEqual(source, "given")
        path = self.file("plan.json", json.dumps(plan))
        result = self.run_model("-p", "Hi", "-n", "1", "--plan", path)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Select 2, 9", result.stderr)

    def test_text_says_the_same(self):
        text = self.info()
        for words in ("llama", "9 of size 64, 3 KV heads", "8192 tokens", "49152 tokens", "23.0 kB per token",
                      "188.7 MB at the trained context", "Scan all 30 by 2 bits"):
            self.assertIn(words, text)

    def test_a_cache_in_8_bits(self):
        whole, report = (json.loads(self.info("--json", *flags)) for flags in ((), ("-ctk", "q8_0", "-ctv", "q8_0")))
        self.assertEqual(whole["kv_type"], "bf16")
        self.assertEqual(report["kv_type"], "q8_0")
        # A head of 64: 128 codes and 4 scales of 2 bytes, in multiples of 16.
        self.assertEqual(report["kv_bytes_per_token"], 30 * 3 * 144)
        self.assertEqual(report["kv_bytes_at_context"], 8192 * 30 * 3 * 144)
        for with_bf16, read in zip(whole["decode_bytes"], report["decode_bytes"]):
            saved = read["depth"] * 30 * 3 * (256 - 144)
            self.assertEqual(with_bf16["full"] - read["full"], saved)
        self.assertIn("q8_0: 13.0 kB per token, 106.2 MB at the trained context",
                      self.info("--cache-type-k", "q8_0", "--cache-type-v", "q8_0"))
        self.assertEqual(self.info("-ctk", "f16", "-ctv", "f16"), self.info())

    def test_what_a_gpu_makes_of_the_weights(self):
        # Only in a build with CUDA; no device is needed.
        report = json.loads(self.info("--json"))
        types = report.get("gpu_types")
        if types is None:
            self.assertNotIn("GPU weights", self.info())
            return
        self.assertLessEqual(set(types), set(report["tensor_types"]))
        for name, there in types.items():
            self.assertIn(there, (name, "bf16"))
        self.assertEqual(types["q4_1"], "q4_1")
        self.assertRegex(self.info(), r"GPU weights +as in the file\n")

    BEGINS = r"(?m)^on a GPU "

    def test_where_sketch_attention_begins_on_a_gpu(self):
        number = json.loads(self.info("--json")).get("gpu_full_below")
        if number is None:  # a build without CUDA says nothing of it
            self.assertNotRegex(self.info(), self.BEGINS)
            return
        self.assertGreater(number, 8192)
        self.assertIn(f"full attention below {number} positions, sketch attention from there on", self.info())
        self.assertNotIn("full_below", json.loads(self.info("--json"))["plan"])
        for asked in (("--attention", "sketch"), ("--attention", "full"), ("--sketch", "4"), ("--reselect", "9")):
            self.assertEqual(json.loads(self.info("--json", *asked))["gpu_full_below"], 0)
            self.assertNotRegex(self.info(*asked), self.BEGINS)

    def test_bad_input_is_refused(self):
        for arguments, words in (((), "give either a model file (-m) or a known shape (--shape)"), (("-m", self.folder), "is a directory"),
                                 (("-m", MODEL, "--budget", "9000"), "more than the context of 8192")):
            result = self.tidal("info", *arguments)
            self.assertEqual(result.returncode, 1)
            self.assertEqual(result.stdout, b"")
            self.assertIn(words, result.stderr)


if __name__ == "__main__":
    unittest.main()
