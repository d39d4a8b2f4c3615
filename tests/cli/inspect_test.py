"""tidal inspect: the page, its data against what the flags say, the page in a browser, and errors."""

import json
import os
import re
import struct
import subprocess
import unittest
import zlib

from browser import BROWSER
from program import MODEL, SOURCE, TIMEOUT, ModelTest

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
QUESTION = "What is the pass key?"
BUDGET, SINKS, RECENT = 64, 4, 16


def document():
    """About 600 tokens with a pass key, characters of several tokens and what must not break the page."""
    with open(os.path.join(SOURCE, "models", "kjv.txt"), encoding="utf-8") as file:
        text = file.read(2000)
    evil = "</script><script>document.title = 'broken out'</script><!-- & \"quotes\" 日本語 🌊\n"
    return text[:1200] + "\nThe pass key is 71432. Remember it.\n" + evil + text[1200:]


def positions(encoded):
    """A set of the page's data: gaps, 5 bits a digit, lowest first."""
    found, expected, gap, shift = [], 0, 0, 0
    for digit in map(DIGITS.index, encoded):
        gap |= (digit & 31) << shift
        shift += 5
        if digit < 32:
            found.append(expected + gap)
            expected, gap, shift = found[-1] + 1, 0, 0
    return found


def shares(encoded):
    return [(DIGITS.index(a) * 64 + DIGITS.index(b)) / 4095 for a, b in zip(encoded[::2], encoded[1::2])]


def page_data(html):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found.group(1))


def png_pixels(path):
    """Rows of a PNG of 8-bit RGB or RGBA, as bytes: the filters of the format's section 9."""
    with open(path, "rb") as file:
        content = file.read()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, header = 8, b"", b""
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += size + 12
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    assert depth == 8 and colour in (2, 6)
    pixel = 3 if colour == 2 else 4
    raw, row_bytes = zlib.decompress(packed), width * pixel
    rows, above = [], bytearray(row_bytes)
    for y in range(height):
        start = y * (row_bytes + 1)
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + row_bytes])
        for x in range(row_bytes if kind else 0):
            left = row[x - pixel] if x >= pixel else 0
            corner = above[x - pixel] if x >= pixel else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = above[x]
            elif kind == 3:
                guess = (left + above[x]) // 2
            else:
                estimate = left + above[x] - corner
                guess = min((left, above[x], corner), key=lambda near: abs(estimate - near))
            row[x] = (row[x] + guess) & 255
        rows.append(row)
        above = row
    return width, height, pixel, rows


def browse(folder, page, *arguments):
    """What chromium prints for the page; nothing may be in its console."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--user-data-dir=" + os.path.join(folder, "profile"), "--virtual-time-budget=5000", *arguments, "file://" + page]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT, check=True)
    return result.stdout.decode(), [line for line in result.stderr.decode().splitlines() if "CONSOLE" in line]


class InspectTest(ModelTest):
    def setUp(self):
        super().setUp()
        self.page = os.path.join(self.folder, "report.html")

    def inspect(self, *arguments, text=None, **options):
        path = self.file("doc.txt", document() if text is None else text)
        if not {"--attention", "--sketch", "--plan"} & set(arguments):
            arguments = ("--attention", "tidal", *arguments)
        return self.tidal("inspect", "-m", MODEL, "-f", path, "-p", QUESTION, "-o", self.page, *arguments, **options)

    def html(self, *arguments, **options):
        result = self.inspect(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(self.page, encoding="utf-8") as file:
            return file.read(), result


class Page(InspectTest):
    def test_data(self):
        html, result = self.html("--budget", str(BUDGET), "-n", "8")
        data = page_data(html)
        self.assertIsNone(re.search(r"https?:|src=|url\(|@import", html))
        pieces = [1] * len(data["text"]["texts"])
        for index, count in data["text"]["wide"]:
            pieces[index] = count
        self.assertTrue(data["text"]["wide"], "the wave takes several tokens")
        text = "".join(data["text"]["texts"])
        self.assertIn(document().strip(), text)
        self.assertIn(QUESTION, text)
        self.assertTrue(text.endswith(result.stdout.decode().rstrip("\n")))

        prompt = data["document"] + data["question"]
        answer = sum(pieces) - prompt
        self.assertTrue(1 <= answer <= 8)
        self.assertEqual(data["first"], data["document"])
        self.assertEqual(len(data["steps"]), data["question"] + answer - (0 if data["end"] else 1))
        self.assertEqual([layer for layer, role in enumerate(data["roles"]) if role == "Select"], [2, 17])
        for index, step in enumerate(data["steps"]):
            context = data["first"] + index + 1
            self.assertEqual(len(step["sets"]), 2)
            for (encoded,) in step["sets"]:
                chosen = positions(encoded)
                self.assertEqual(len(chosen), BUDGET)
                self.assertEqual(chosen[:SINKS], list(range(SINKS)))
                self.assertEqual(chosen[-RECENT:], list(range(context - RECENT, context)))
            masses = shares(step["mass"])
            self.assertEqual(len(masses), len(data["roles"]) * data["heads"])
            for layer, role in enumerate(data["roles"]):
                heads = masses[layer * data["heads"] : (layer + 1) * data["heads"]]
                if role == "Sparse":
                    # Ten times as many positions are left out: some head must miss some mass.
                    self.assertLess(min(heads), 1)
                    self.assertGreater(max(heads), 0)
                else:
                    self.assertEqual(set(heads), {1})
            self.assertTrue(0 < step["p"] <= 1)

    def test_sketch(self):
        html, _ = self.html("--attention", "sketch", "--dense-layers", "2", "--budget", str(BUDGET), "--sinks", str(SINKS),
                            "--recent", str(RECENT), "-n", "4")
        data = page_data(html)
        self.assertEqual(data["roles"], ["Dense"] * 2 + ["Scan"] * 28)
        self.assertEqual((data["unit"], data["units"]), ("KV head", 3))
        self.assertEqual(data["recent"], max(RECENT, (data["document"] + data["question"]) % 64))
        for index, step in enumerate(data["steps"]):
            context = data["first"] + index + 1
            filling = context % 64  # the block still filling is selected whole, on top of the budget
            self.assertEqual([len(layer) for layer in step["sets"]], [3] * 28)
            for encoded in (unit for layer in step["sets"] for unit in layer):
                chosen = positions(encoded)
                self.assertEqual(len(chosen), BUDGET + filling)
                self.assertEqual(chosen[:SINKS], list(range(SINKS)))
                self.assertEqual(chosen[-max(RECENT, filling):], list(range(context - max(RECENT, filling), context)))
            masses = shares(step["mass"])
            self.assertEqual(set(masses[: 2 * data["heads"]]), {1})
            self.assertLess(min(masses), 1)
            self.assertGreater(min(masses[2 * data["heads"] :]), 0)

    def test_dense_question_answers_as_run_does(self):
        html, result = self.html("--budget", str(BUDGET), "-n", "8", "--question", "dense")
        prompt = document().strip() + "\n\n" + QUESTION
        said = self.text("--chat", "--attention", "tidal", "--temp", "0", "--budget", str(BUDGET), "-n", "8", "-f", self.file("p", prompt))
        self.assertEqual(result.stdout.decode().rstrip("\n"), said.rstrip("\n"))
        data = page_data(html)
        self.assertEqual(data["first"], data["document"] + data["question"])

    def test_exact_mode(self):
        html, _ = self.html("--budget", str(BUDGET), "-n", "8", "--exact", "3")
        exact = page_data(html)["exact"]
        self.assertTrue(1 <= exact["accepted"] + exact["rounds"] <= 8)
        self.assertTrue(0 <= exact["accepted"] <= exact["tried"] <= 3 * exact["rounds"])
        prompt = self.file("p", document().strip() + "\n\n" + QUESTION)
        said = self.text("--chat", "--temp", "0", "--attention", "full", "-n", "8", "-f", prompt)
        self.assertEqual(exact["answer"].rstrip("\n"), said.rstrip("\n"))
        # A context that fits in the budget is decoded by full attention anyway: nothing to draft.
        html, _ = self.html("--budget", "4096", "-n", "8", "--exact", "--question", "dense")
        exact = page_data(html)["exact"]
        self.assertEqual((exact["tried"], exact["accepted"], exact["same"]), (0, 0, True))

    def test_sets_of_every_head(self):
        html, _ = self.html("--budget", "32", "--scope", "head", "-n", "2")
        data = page_data(html)
        self.assertEqual((data["unit"], data["units"], data["heads"]), ("head", 9, 9))
        for step in data["steps"]:
            for layer in step["sets"]:
                self.assertEqual([len(positions(unit)) for unit in layer], [32] * 9)
        self.assertGreater(len({unit for unit in data["steps"][-1]["sets"][1]}), 1)

    def test_context_that_fits_in_the_budget(self):
        html, result = self.html("--budget", "256", "-n", "2", text="A short text.")
        self.assertIn("fits in the budget", result.stderr)
        for step in page_data(html)["steps"]:
            self.assertEqual(step["sets"], [[""], [""]])
            self.assertEqual(set(shares(step["mass"])), {1})

    def test_link(self):
        target = self.file("target.html", "older")
        os.symlink(target, self.page)
        html, _ = self.html("--budget", str(BUDGET), "-n", "1")
        self.assertTrue(os.path.islink(self.page))
        with open(target, encoding="utf-8") as file:
            self.assertEqual(file.read(), html)

    def test_same_again(self):
        def without_speed(html):
            return re.sub(r"[\d.]+ tok/s", "", html)

        arguments = ("--budget", str(BUDGET), "-n", "2")
        first, _ = self.html(*arguments)
        second, _ = self.html(*arguments)
        self.assertEqual(without_speed(first), without_speed(second))
        self.assertEqual(sorted(os.listdir(self.folder)), ["doc.txt", "report.html"])


@unittest.skipIf(not BROWSER, "no chromium runs here; on Debian its package is chromium")
class Browser(InspectTest):
    def browse(self, *arguments, page=None):
        return browse(self.folder, page or self.page, *arguments)

    def with_script(self, html, script):
        return self.file("driven.html", html.replace("</body>", "<script>" + script + "</script></body>"))

    def test_page(self):
        html, _ = self.html("--budget", str(BUDGET), "-n", "8")
        data = page_data(html)
        dom, console = self.browse("--dump-dom")
        self.assertEqual(console, [])
        self.assertIn('data-ready="true"', dom)
        self.assertRegex(dom, r'<p id="summary"[^>]*>\d+ steps wrote the answer. Layers 2 and 17 selected \d+ different')
        self.assertNotIn("<title>broken out", dom)
        text = dom[dom.index('<div id="text"') : dom.index('<p id="hint"')]
        words = re.sub(r"</?span[^>]*>", "", text)
        self.assertIn("&lt;/script&gt;&lt;script&gt;document.title", words)
        self.assertIn("日本語 🌊", words)
        # A span per character or token, shaded where some step selected it.
        self.assertEqual(len(re.findall(r"<span", text)), len(data["text"]["texts"]))
        chosen = {p for s in data["steps"][data["question"] - 1 :] for layer in s["sets"] for p in positions(layer[0])}
        spans, position = 0, 0
        wide = dict(data["text"]["wide"])
        for index in range(len(data["text"]["texts"])):
            count = wide.get(index, 1)
            spans += any(p in chosen for p in range(position, position + count))
            position += count
        self.assertEqual(len(re.findall(r'<span class="heat', text)), spans)
        self.check_picture()

    def check_picture(self):
        for arguments in ((), ("--blink-settings=preferredColorScheme=0",)):
            path = os.path.join(self.folder, "page.png")
            self.browse("--window-size=800,600", "--screenshot=" + path, *arguments)
            width, height, pixel, rows = png_pixels(path)
            self.assertEqual((width, height), (800, 600))
            colours = {bytes(row[x : x + 3]) for row in rows[::3] for x in range(0, width * pixel, 3 * pixel)}
            self.assertGreater(len(colours), 50, "a blank page has one")
            # Heat and bars: some pixels far more red than blue, some the other way round.
            self.assertTrue(any(c[0] > c[2] + 60 for c in colours), "nothing is shaded")
            self.assertTrue(any(c[2] > c[0] + 60 for c in colours), "there are no bars")

    def test_page_of_a_sketch_plan(self):
        self.html("--budget", str(BUDGET), "--attention", "sketch", "-n", "4")
        dom, console = self.browse("--dump-dom")
        self.assertEqual(console, [])
        self.assertIn('data-ready="true"', dom)
        self.assertRegex(dom, r'<p id="summary"[^>]*>.*The Scan layers captured \d+')
        self.assertIn("selects by a sketch of its keys and reads that:", dom)

    def test_keys(self):
        html, _ = self.html("--budget", str(BUDGET), "--scope", "kv", "-n", "4")
        steps = len(page_data(html)["steps"])
        script = """
          const seen = [];
          for (const key of ['a', 'Home', 'ArrowRight', 'End', 'ArrowRight', 'l', 'h', 'a', 'n']) {
            document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
            seen.push([key, state.view, state.step, state.layer, state.unit]);
          }
          document.title = JSON.stringify({seen, pin: state.pin, passages: passages.map((one) => one.first),
            text: $('slider').getAttribute('aria-valuetext'), value: $('slider').value});"""
        dom, console = self.browse("--dump-dom", page=self.with_script(html, script))
        self.assertEqual(console, [])
        found = json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))
        last = steps - 1
        first_answer = page_data(html)["question"] - 1
        self.assertEqual(found["seen"], [
            ["a", "token", first_answer, -1, -1], ["Home", "token", 0, -1, -1], ["ArrowRight", "token", 1, -1, -1],
            ["End", "token", last, -1, -1], ["ArrowRight", "token", last, -1, -1], ["l", "token", last, 0, -1],
            ["h", "token", last, 0, 0], ["a", "answer", last, 0, 0], ["n", "answer", last, 0, 0]])
        self.assertEqual(found["pin"], min(found["passages"]))
        self.assertEqual(found["value"], str(last))
        self.assertIn(f"step {last + 1}: reads", found["text"])

    def test_console_errors_would_be_seen(self):
        page = self.file("broken.html", "<script>throw new Error('on purpose')</script>")
        _, console = self.browse("--dump-dom", page=page)
        self.assertEqual(len(console), 1)


class Errors(InspectTest):
    def refused(self, result, *words):
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(result.stdout, b"")
        lines = result.stderr.strip().splitlines()
        self.assertTrue(lines[-1].startswith("tidal: "), result.stderr)
        for word in words:
            self.assertIn(word, lines[-1])
        self.assertEqual([name for name in os.listdir(self.folder) if "report" in name], [])

    def test_documents(self):
        self.refused(self.inspect(text=""), "doc.txt: is empty, expected a text file")
        self.refused(self.inspect(text=" \n\t\n"), "document: it is empty")
        self.refused(self.inspect(text=b"\n\nab\xff"), "doc.txt: byte 4 (0xff) is not valid UTF-8")
        for path, words in ((os.path.join(self.folder, "none"), "cannot be opened"), (self.folder, "is a directory")):
            self.refused(self.tidal("inspect", "-m", MODEL, "-f", path, "-p", "x", "-o", self.page), path + ": " + words)

    def test_question(self):
        result = self.tidal("inspect", "-m", MODEL, "-f", self.file("d", "text"), "-p", "  ", "-o", self.page)
        self.refused(result, "question: it is empty")

    def test_longer_than_the_context(self):
        self.refused(self.inspect(text="a " * 9000), "tokens", "do not fit in a context of 8192")
        self.refused(self.inspect("-c", "100"), "doc.txt", "do not fit in a context of 100; -c makes it longer")

    def test_numbers_and_words(self):
        for arguments, words in ((("-n", "0"), "--n-predict: 0 given"), (("-c", "0"), "--ctx-size: 0 given"),
                                 (("--budget", "0"), "--budget: 0 given"), (("--question", "maybe"), "'maybe'"),
                                 (("--attention", "full"), "selects nothing"), (("--attention", "half"), "'half'"),
                                 (("--exact", "0"), "--exact: 0 drafts"),
                                 (("--exact", "--correct", "16"), "--exact: every round corrects"),
                                 (("--scope", "galaxy"), "'galaxy'"), (("-t", "0"), "--threads: 0 given")):
            with self.subTest(arguments=arguments):
                self.refused(self.inspect(*arguments), words)

    def test_outputs(self):
        document_path = self.file("doc.txt", document())
        for path, words in ((os.path.join(self.folder, "none", "x.html"), "cannot be written: No such file"),
                            (self.folder, "is a directory"), ("/dev/full", "is not a regular file")):
            result = self.tidal("inspect", "-m", MODEL, "-f", document_path, "-p", "x", "-o", path)
            self.refused(result, path + ": " + words)

    def test_failure_keeps_an_older_page(self):
        older = self.file("kept.html", "older")
        result = self.tidal("inspect", "-m", MODEL, "-f", self.file("doc.txt", document()), "-p", "x", "-o", older,
                            "-c", "100")
        self.refused(result, "do not fit")
        with open(older, encoding="utf-8") as file:
            self.assertEqual(file.read(), "older")
        self.assertEqual(sorted(os.listdir(self.folder)), ["doc.txt", "kept.html"])


if __name__ == "__main__":
    unittest.main()
