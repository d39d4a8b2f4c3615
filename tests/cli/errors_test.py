"""Bad input: each is refused with one sentence and status 1, and nothing crashes or hangs."""

import json
import os
import resource
import tempfile
import unittest

from program import MODEL, ModelTest, ProgramTest


class Refusal:
    def refused(self, result, *words):
        """One line `tidal: ...` on stderr with all `words`, nothing on stdout, status 1."""
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertFalse(result.stdout, result.stdout)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("tidal: warning: ")]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("tidal: "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])


class Flags(Refusal, ProgramTest):
    def test_unknown_flag_and_command(self):
        self.refused(self.tidal("run", "-m", "x", "--bogus"), "--bogus", "tidal run --help")
        self.refused(self.tidal("--bogus"), "--bogus", "tidal --help")
        self.refused(self.tidal("frobnicate"), "frobnicate")

    def test_values_that_are_missing_or_no_numbers(self):
        self.refused(self.tidal("run", "-p", "x"), "--model is required")
        self.refused(self.tidal("run", "-m", "x", "-p"), "--prompt")
        self.refused(self.tidal("run", "-m", "x", "-p", "x", "-n", "many"), "--n-predict", "many")

    def test_values_out_of_range(self):
        for arguments, words in (
            (("-n", "-2"), ("--n-predict", "-2")),
            (("-c", "-1"), ("--ctx-size", "-1")),
            (("-c", "99999999999"), ("--ctx-size", "99999999999")),
            (("--ubatch-size", "0"), ("--ubatch-size", "0")),
            (("-s", "-2"), ("--seed", "-2")),
            (("-ngl", "0", "--backend", "reference"), ("--n-gpu-layers: 0", "--backend reference")),
            (("-ngl", "-1", "--backend", "cpu"), ("--n-gpu-layers: -1", "--backend cpu")),
            (("--weights", "fp8"), ("--weights", "fp8", "bf16")),
            (("--weights", "bf16", "--backend", "cpu"), ("--weights: bf16", "--backend cuda", "--backend cpu")),
            (("--kv-device", "some", "--backend", "cpu"), ("--kv-device: 'some'", "expected all, auto or one like 2GiB")),
            (("--kv-device", "-1", "--backend", "cpu"), ("--kv-device: '-1'",)),
            (("--kv-device", "2GiB", "--backend", "cpu"), ("--kv-device: 2GiB is for --backend cuda", "--backend cpu")),
            (("--kv-dir", "/none", "--backend", "cpu"), ("--kv-dir: /none: there is no such folder",)),
            (("--kv-dir", __file__, "--backend", "cpu"), ("--kv-dir: " + __file__, "is a file, expected a folder")),
            (("-nkvo", "--kv-device", "all"), ("--no-kv-offload", "--kv-device all is given")),
            (("-ctk", "q4_0"), ("--cache-type-k: 'q4_0'", "expected bf16, f16", "or q8_0")),
            (("-ctv", "turbo3"), ("--cache-type-v: 'turbo3'", "or q8_0")),
            (("-ctk", "q8_0"), ("--cache-type-k: q8_0 given, but --cache-type-v is bf16", "give both the same")),
            (("-ctk", "f16", "--cache-type-v", "q8_0"), ("--cache-type-k: f16", "--cache-type-v is q8_0")),
            (("-t", "0"), ("threads", "0 given")),
            (("-t", "-1"), ("threads", "-1 given")),
            (("--attention", "half"), ("half", "full, tidal or sketch")),
            (("--attention", "tidal", "--sketch", "2"), ("--sketch", "--attention is tidal")),
            (("--attention", "tidal", "--dense-layers", "2"), ("--dense-layers", "--attention is tidal")),
            (("--attention", "tidal", "--complete", "4:8"), ("--complete", "--attention is tidal")),
            (("--attention", "sketch", "--reselect", "9"), ("--reselect", "--attention is sketch")),
            (("--attention", "sketch", "--policy", "paper"), ("--policy paper", "--attention is sketch")),
            (("--sketch", "2", "--reselect", "9"), ("--reselect", "--sketch", "only one of the two")),
            (("--attention", "full", "--exact"), ("--exact", "--attention full leaves none")),
            (("-f", "y"), ("-p or -f",)),
            (("--grammar", "x", "--grammar-file", "y"), ("--grammar-file",)),
            (("--backend", "abacus"), ("abacus", "expected auto, cpu")),
        ):
            with self.subTest(arguments=arguments):
                self.refused(self.tidal("run", "-m", "x", "-p", "x", *arguments), *words)

    def test_every_command_that_computes_says_where_k_and_v_are(self):
        with tempfile.TemporaryDirectory() as folder:
            page = os.path.join(folder, "page.html")
            for command in (
                ("run", "-p", "x"),
                ("serve",),
                ("bench",),
                ("eval", "ppl"),
                ("compare", "-f", "x", "-p", "x"),
                ("inspect", "-f", __file__, "-p", "x", "-o", page),
                ("calibrate",),
            ):
                with self.subTest(command=command):
                    given = ("-m", "x", "--backend", "cpu", "--kv-device", "some")
                    self.refused(self.tidal(*command, *given), "--kv-device: 'some'", "expected all, auto")
                    given = ("-m", "x", "--backend", "cpu", "--kv-dir", os.path.join(folder, "none"))
                    self.refused(self.tidal(*command, *given), "--kv-dir: ", "there is no such folder")

    def test_help_on_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            result = self.tidal("--help", stdout=full)
        self.refused(result, "stdout: cannot be written", "No space left")


class ModelFile(Refusal, ProgramTest):
    def run_file(self, path, **options):
        return self.tidal("run", "-m", path, "-p", "x", **options)

    def test_missing_directory_and_empty(self):
        self.refused(self.run_file(os.path.join(self.folder, "none")), "none: cannot be opened", "No such file")
        self.refused(self.run_file(self.folder), self.folder + ": is a directory, expected a GGUF file")
        self.refused(self.run_file(self.file("empty", "")), "is empty, expected a GGUF file")

    def test_fifo_does_not_hang(self):
        path = os.path.join(self.folder, "fifo")
        os.mkfifo(path)
        self.refused(self.run_file(path, timeout=20), "is not a regular file")

    def test_no_permission(self):
        if os.geteuid() == 0:
            self.skipTest("root may read everything")
        path = self.file("secret", "GGUF")
        os.chmod(path, 0)
        self.refused(self.run_file(path), "cannot be opened", "Permission denied")

    def test_other_files(self):
        self.refused(self.run_file(self.file("text", "a text, no model " * 9)), "text")
        if os.path.exists(MODEL):
            with open(MODEL, "rb") as file:
                self.refused(self.run_file(self.file("cut.gguf", file.read(1 << 20))), "cut.gguf")


class Prompt(Refusal, ModelTest):
    def test_empty(self):
        self.refused(self.run_model("-p", ""), "prompt: it is empty")
        self.refused(self.run_model("-f", self.file("empty", "")), "prompt: it is empty")
        self.refused(self.run_model("-f", self.file("line", "\n")), "prompt: it is empty")
        self.refused(self.run_model(), "prompt: it is empty")

    def test_longer_than_the_context_says_both_numbers(self):
        self.refused(self.run_model("-p", "a b c d e f g h i j", "-c", "4"), "10 tokens", "context of 4")
        # Never cut silently: not to the trained context either.
        words = self.run_model("-p", "a " * 8999 + "a")
        self.refused(words, "9000 tokens", "context of 8192")

    def test_not_utf8(self):
        self.refused(self.run_model("-p", b"ab\xff"), "byte 2 (0xff) is not valid UTF-8")
        self.refused(self.run_model(stdin=b"\xc3"), "byte 0 (0xc3) is not valid UTF-8")
        self.refused(self.run_model("-f", self.file("latin", b"caf\xe9 noir")), "byte 3 (0xe9)")
        self.refused(self.run_model("-p", "Hi", "--system", b"\xed\xa0\x80"), "is not valid UTF-8")

    def test_nul(self):
        """No text: it would end where a library in C reads it."""
        note = self.file("note.txt", b"caf\xc3\xa9\0the code is 4711\n")
        words = ("note.txt: byte 5 is NUL", "expected text")
        question = ("-f", note, "-p", "What is the code?")
        self.refused(self.run_model("-f", note), *words)
        self.refused(self.run_model("--chat", "-f", note), *words)
        self.refused(self.run_model("--chat", stdin=b"ab\0c"), "stdin: byte 2 is NUL")
        self.refused(self.run_model("-p", "x", "--grammar-file", note), *words)
        self.refused(self.tidal("compare", "-m", MODEL, *question), *words)
        self.refused(self.tidal("inspect", "-m", MODEL, *question, "-o", os.path.join(self.folder, "page.html")), *words)
        self.refused(self.tidal("calibrate", "-m", MODEL, "-f", note, "-o", os.path.join(self.folder, "p.json")), *words)
        self.refused(self.tidal("eval", "ppl", "-m", MODEL, "-f", note), *words)
        self.refused(self.tidal("bench", "-m", MODEL, "-f", note, "-n", "1", "-p", "0", "-r", "1"), *words)
        self.assertEqual(os.listdir(self.folder), ["note.txt"])

    def test_a_disk_that_has_no_room_for_k_and_v(self):
        context = 2000000000  # 46 TB
        if os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize > context * 23040:
            self.skipTest("the disk has")
        self.refused(self.run_model("-p", "x", "--backend", "cpu", "-c", str(context), "--kv-dir", self.folder),
                     self.folder + ": the KV cache needs ", " GiB on disk, ", " GiB are free there")
        self.assertEqual(os.listdir(self.folder), [])

    def test_nul_in_a_chat(self):
        """The message is refused, the chat goes on."""
        result = self.run_model("-i", "-n", "1", "--temp", "0", stdin=b"one\0two\nHi\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("warning: message: byte 3 is NUL", result.stderr)
        self.assertEqual(result.stdout.count(b"\n"), 1)

    def test_file_that_cannot_be_read(self):
        self.refused(self.run_model("-f", self.folder), "is a directory, expected a file of text")
        self.refused(self.run_model("-f", os.path.join(self.folder, "none")), "cannot be opened", "No such file")


class Sampling(Refusal, ModelTest):
    def test_bad_grammar(self):
        for grammar, words in (
            ("root ::= missing", "missing"),
            ("root ::= (", "grammar: "),
            ("rule ::= \"x\"", "root"),
            ("root ::= root \"x\"", "left recursion"),
            ("no rule at all", "grammar: "),
        ):
            with self.subTest(grammar=grammar):
                self.refused(self.run_model("-p", "x", "--grammar", grammar), "tidal: grammar: ", words)
        self.refused(self.run_model("-p", "x", "--grammar-file", self.file("g", "root = 1")), "grammar: ")
        self.refused(self.run_model("-p", "x", "--grammar-file", self.file("e", "")), "is empty, expected a grammar")
        self.refused(self.run_model("-p", "x", "--grammar-file", self.folder), "is a directory")

    def test_grammar_without_a_way_on(self):
        result = self.run_model("-p", "x", "--grammar", 'root ::= "yes"', "--ignore-eos")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout, b"yes")
        self.assertIn("tidal: sampler: no token can continue the text; the grammar or the logits rule out all", result.stderr)

    def test_out_of_range(self):
        for flag, value, words in (("--temp", "nan", "temperature"), ("--top-p", "1.5", "top-p"),
                                   ("--min-p", "-0.1", "min-p"), ("--repeat-penalty", "0", "repeat penalty"),
                                   ("--repeat-last-n", "-2", "repeat-last-n")):
            self.refused(self.run_model("-p", "x", flag, value), words)


class Plans(Refusal, ModelTest):
    def test_budget(self):
        self.refused(self.run_model("-p", "x", "--budget", "0"), "--budget: 0 given, at least 1 is needed")
        self.refused(self.run_model("-p", "x", "--budget", "-5"), "--budget: -5 given, at least 1 is needed")
        self.refused(self.run_model("-p", "x", "--budget", "9000"), "9000", "context of 8192")
        self.refused(self.run_model("-p", "x", "--budget", "300", "-c", "200"), "300", "context of 200")

    def test_words_and_layers(self):
        self.refused(self.run_model("-p", "x", "--policy", "best"), "'best'", "default or paper")
        self.refused(self.run_model("-p", "x", "--scope", "layer"), "'layer'", "head, kv, shared")
        for layer in ("-1", "2", "30"):
            self.refused(self.run_model("-p", "x", "--reselect", layer), "reselect", layer)
        for bits in ("0", "3", "8", "-2"):
            self.refused(self.run_model("-p", "x", "--sketch", bits), f"--sketch: {bits} bits", "1, 2 or 4")
        self.refused(self.run_model("-p", "x", "--sketch", "two"), "--sketch", "two")
        for tiers in ("4", "8:4", "4:8:9", "0:8", "4:65", "on", "4294967300:8", " 4:8", "4:"):
            self.refused(self.run_model("-p", "x", "--complete", tiers), f"--complete: '{tiers}' given, expected off, or "
                         "budgets", "up to 64, like 4:8")
        self.refused(self.run_model("-p", "x", "--complete", "4:8", "--scope", "head"), "not selected", "scope kv")
        for layers in ("-1", "30"):
            self.refused(self.run_model("-p", "x", "--dense-layers", layers), f"--dense-layers: {layers} given", "0 to 29")

    def plan(self, change):
        """A sound plan, then changed."""
        path = os.path.join(self.folder, "plan.json")
        self.assertEqual(self.run_model("-p", "x", "-n", "0", "--attention", "tidal", "--save-plan", path).returncode, 0)
        with open(path, encoding="utf-8") as file:
            plan = json.load(file)
        change(plan)
        return self.file("plan.json", json.dumps(plan))

    def test_plan_files(self):
        def set_value(group, key, value):
            return lambda plan: plan[group].__setitem__(key, value)

        for change, words in (
            (set_value("model", "layers", 24), ("24 layers", "30 layers")),
            (set_value("roles", "select", [5, 9]), ("layer 2 is Sparse", "no layer before it is Select or Scan")),
            (set_value("roles", "select", []), ("no layer before it is Select or Scan",)),
            (set_value("roles", "select", [2, 99]), ("layer 99",)),
            (set_value("roles", "scan", [5, 5]), ("layer 5 stands there twice",)),
            (set_value("roles", "scan", [2]), ("layer 2 stands there twice",)),
            (set_value("roles", "scam", [3]), ("'scam' is not known",)),
            (set_value("policy", "sketch", 3), ("sketch of 3 bits",)),
            (set_value("policy", "budget", 0), ("budget",)),
            (set_value("policy", "scope", "galaxy"), ("galaxy",)),
            (lambda plan: plan.pop("roles"), ("'roles' is missing",)),
        ):
            path = self.plan(change)
            self.refused(self.run_model("-p", "x", "--plan", path), path, *words)

    def test_files_that_are_no_plans(self):
        self.refused(self.run_model("-p", "x", "--plan", self.file("plan", "{ nonsense")), "not valid JSON")
        self.refused(self.run_model("-p", "x", "--plan", self.file("plan", "[]")), "not a JSON object")
        self.refused(self.run_model("-p", "x", "--plan", self.file("plan", "")), "is empty, expected a plan")
        self.refused(self.run_model("-p", "x", "--plan", self.folder), "is a directory, expected a plan")

    def test_plan_and_flags_that_contradict_it(self):
        path = self.plan(lambda plan: None)
        self.refused(self.run_model("-p", "x", "--plan", path, "--reselect", "9"), "--reselect", "--plan")
        self.refused(self.run_model("-p", "x", "--plan", path, "--policy", "paper"), "--policy", "--plan")
        self.refused(self.run_model("-p", "x", "--plan", path, "--dense-layers", "2"), "--dense-layers", "--plan")
        self.refused(self.run_model("-p", "x", "--plan", path, "--sketch", "2"), "--sketch", path, "scans no layer")
        self.refused(self.run_model("-p", "x", "--plan", path, "--attention", "sketch"), "--plan", "is for tidal attention")
        path = self.plan(lambda plan: plan["roles"].update(dense=[], select=[], scan=list(range(30))))
        self.refused(self.run_model("-p", "x", "--plan", path, "--attention", "tidal"), "--plan", "is for sketch attention")


class ChatTemplate(Refusal, ModelTest):
    def changed(self, old, new):
        """The model with other bytes of the same length in and after the template's key."""
        with open(MODEL, "rb") as file:
            content = file.read()
        start = content.index(b"tokenizer.chat_template")
        end = start + 2048
        return self.file("changed.gguf", content[:start] + content[start:end].replace(old, new) + content[end:])

    def test_one_that_is_no_jinja(self):
        path = self.changed(b"endfor", b"endfoo")
        result = self.tidal("run", "-m", path, "--chat", "-p", "Hi", "-n", "1")
        self.refused(result, path, "its chat template cannot be used: it is not valid Jinja: ")
        result = self.tidal("run", "-m", path, "-p", "Hi", "-n", "1")  # needs none
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_none(self):
        path = self.changed(b"tokenizer.chat_template", b"tokenizer.chat_templatE")
        for flags in (("--chat", "-p", "Hi"), ("-i",)):
            self.refused(self.tidal("run", "-m", path, *flags), path, "it has no chat template",
                         "--chat-template FILE|NAME")
        for choice in ("chatml", self.file("mine.jinja", "{{ messages[0].content }}")):
            result = self.tidal("run", "-m", path, "--chat", "-p", "Hi", "-n", "1", "--chat-template", choice)
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_another_one(self):
        def chat(text, *flags):
            return self.run_model("--chat", "-p", "Hi", "-n", "1", "--chat-template", text, *flags)

        self.refused(chat("/no/such"), "'/no/such' is neither a file nor one of libllama's: ", "chatml")
        self.refused(chat(self.folder), "is neither a file nor one of libllama's: ")
        self.refused(chat(self.file("empty", "")), "is empty or cannot be read, expected a chat template")
        self.refused(chat(self.file("bytes", b"a\xff")), "is not UTF-8, expected a chat template")
        path = self.file("raises", "{{ raise_exception('Only ' + kind + ' here') }}")
        self.refused(chat(path, "--chat-template-kwargs", '{"kind": "poems"}'), path,
                     "its chat template refuses this conversation: Only poems here")
        for variables in ("[]", "{", "3"):
            self.refused(chat(path, "--chat-template-kwargs", variables), "are not a JSON object")
        self.refused(chat("chatml", "--chat-template-kwargs", "{}"), "'chatml' is libllama's own and has no variables")


class Resources(Refusal, ModelTest):
    def test_disk_full(self):
        with open("/dev/full", "wb") as full:
            result = self.run_model("-p", "The", "-n", "4", stdout=full)
        self.assertEqual(result.returncode, 1)
        self.assertIn("tidal: stdout: cannot be written: No space left on device", result.stderr)
        result = self.run_model("-p", "x", "--save-plan", "/dev/full")
        self.refused(result, "/dev/full: cannot be written", "No space left")

    def test_no_memory_for_the_cache(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

        result = self.run_model("-p", "x", "-c", "4000000", preexec_fn=limit)
        self.refused(result, "out of memory", "KV cache")
        # Whatever runs out first is said: the program and its libraries take 100 MB, the model's file 98 MB, the cache 189 MB.
        for megabytes in (125, 150, 180, 190, 200, 210, 220, 250):
            with self.subTest(megabytes=megabytes):
                limits = (megabytes << 20, megabytes << 20)
                result = self.run_model("-p", "x", "-n", "1", "-c", "8192",
                                        preexec_fn=lambda l=limits: resource.setrlimit(resource.RLIMIT_AS, l))
                self.refused(result, "tidal: ", "memory")


if __name__ == "__main__":
    unittest.main()
