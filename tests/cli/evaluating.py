"""What the tests of tidal eval share: a text, rows, and how each job is called."""

import json
import os
import xml.etree.ElementTree

from program import MODEL, MODELS, ModelTest

KJV = os.path.join(MODELS, "kjv.txt")


class EvalTest(ModelTest):
    def setUp(self):
        super().setUp()
        if not os.path.exists(KJV):
            self.skipTest(KJV + " is missing; run tools/kjv.sh")
        with open(KJV, encoding="utf-8") as file:
            self.words = file.read(60000)
        self.text_file = self.file("text.txt", self.words)
        self.rows_file = os.path.join(self.folder, "rows.jsonl")

    def eval(self, task, *arguments, **options):
        result = self.tidal("eval", task, "-m", MODEL, *arguments, **options)
        result.stdout = result.stdout.decode()
        return result

    def with_defaults(self, arguments, **defaults):
        for name, value in defaults.items():
            if "--" + name not in arguments:
                arguments = ("--" + name, value, *arguments)
        return arguments

    def ppl(self, *arguments, **options):
        return self.eval("ppl", "-f", self.text_file, *self.with_defaults(arguments, prefix="200", steps="6"), **options)

    def needle(self, *arguments, **options):
        arguments = self.with_defaults(arguments, lengths="180", depths="2", keys="1")
        return self.eval("needle", "-f", self.text_file, *arguments, **options)

    def succeeded(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def rows(self, path=None):
        """The header and the rows of a result file."""
        with open(path or self.rows_file, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return lines[0], lines[1:]

    def content(self):
        with open(self.rows_file, "rb") as file:
            return file.read()

    def refused(self, result, *words):
        self.assertEqual(result.returncode, 1, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("tidal: ") and "warning" not in line]
        self.assertEqual(len(errors), 1, result.stderr)
        for word in words:
            self.assertIn(word, errors[0])
        return errors[0]

    def picture(self, path):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        xml.etree.ElementTree.fromstring(text)
        return text
