"""The page of tidal serve, in a browser, against what the API itself says."""

import json
import math
import os
import re
import tempfile
import unittest

from browser import BROWSER, SHIFT, Browser
from program import SOURCE
from serving import Server, Shared

BUDGET = 24


def long_text():
    """Some 150 tokens, with characters of several tokens and what must not become a part of the page."""
    with open(os.path.join(SOURCE, "models", "kjv.txt"), encoding="utf-8") as file:
        text = file.read(300)
    return text + "\n<img src=x onerror=\"document.title='broken out'\"> </script> 日本語 🌊 The pass key is 71432.\n"


def shade_free(position, steps):
    """Whether the last step chose it by its score."""
    return 4 <= position <= steps[-1]["position"] - steps[-1]["recent"]


@unittest.skipIf(not BROWSER, "no chromium runs here; on Debian its package is chromium")
class Page(Shared):
    """One server and one browser for all tests; a page for each."""

    # Chunks as short as those of decoding are computed as decode steps are: nothing hangs on what was cached.
    ARGUMENTS = ("-c", "2048", "--parallel", "4", "--ubatch-size", "8")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cls.browser = Browser(cls.profile.name)

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()
        cls.profile.cleanup()
        super().tearDownClass()

    def open(self, server):
        page = self.browser.open(f"http://127.0.0.1:{server.port}/")
        self.addCleanup(page.close)
        return page

    def set(self, **fields):
        for name, value in fields.items():
            self.page.evaluate(f"$({json.dumps(name)}).value = {json.dumps(str(value))}")

    def ready(self, **fields):
        """Opens a page and fills in settings."""
        self.page = self.open(self.server)
        self.page.wait("page.ready")
        self.set(temperature=0, **fields)

    def plans(self, *names):
        """Checks them by clicks."""
        if len(names) > 1:
            self.page.click("#compare")
        for name in names:
            self.page.click(f'#plans input[value="{name}"]')

    def send(self, text):
        self.page.evaluate("$('prompt').focus()")
        self.page.type(text)
        self.page.press("Enter")

    def ended(self):
        """Waits for the answers' ends; {plan: (text, what stands below it)} of the last turn."""
        self.page.wait("page.turns.length && !running() && !$('send').hidden")
        found = self.page.evaluate("lastTurn().answers.map((a) => [a.plan, a.said.textContent, a.cost.textContent])")
        return {plan: (text, cost) for plan, text, cost in found}

    def bodies(self):
        """What the page has asked /v1/chat/completions."""
        return [json.loads(one["request"]["postData"]) for one in self.page.happened("Network.requestWillBeSent")
                if one["request"]["url"].endswith("/v1/chat/completions") and one["request"]["method"] == "POST"]

    def again(self, body):
        """The same by the API: text, usage, and the reads of a stream."""
        text, usage, reads = "", None, []
        for _, event in self.server.stream("/v1/chat/completions", body):
            if event == "[DONE]":
                break
            usage = event.get("usage", usage)
            if "tidal" in event:
                reads.append(event["tidal"])
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
        return text, usage, reads

    def calm(self, page=None):
        self.assertEqual((page or self.page).complaints(), [])

    def test_answers_as_the_api_does_and_goes_on(self):
        self.ready(most=8)
        self.send("What is the capital of France?")
        text = self.ended()["server"][0]
        # The same again, in the same place.
        self.page.click(".answer .actions button")
        again, cost = self.ended()["server"]
        self.assertEqual(again, text)
        self.assertEqual(self.page.evaluate("document.querySelectorAll('.answer').length"), 1)
        bodies = self.bodies()
        self.assertEqual(bodies[1], bodies[0])
        expected, usage, _ = self.again(bodies[0])
        self.assertEqual(text, expected)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.assertGreater(cached, 0)
        self.assertIn(f"prompt {usage['prompt_tokens']}, {cached} of them cached", cost)
        self.assertIn(f"{usage['completion_tokens']} tokens", cost)
        self.assertGreater(float(re.search(r"([\d.]+) tok/s", cost)[1]), 0)
        self.assertRegex(cost, r"first token after \d+\.\d\d s.* MB read a token")

        # On, by what was said.
        self.send("And of Italy?")
        self.ended()
        self.assertEqual(self.bodies()[-1]["messages"], [
            {"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": text},
            {"role": "user", "content": "And of Italy?"}])
        self.page.click("#new")
        self.assertEqual(self.page.evaluate("document.querySelectorAll('.turn').length"), 0)
        self.calm()

    def test_stop_and_lines_by_keys(self):
        self.ready()
        self.send("Write a very long story about the sea,")
        self.page.wait("lastTurn().answers[0].text.length > 20")
        self.page.press("Escape")
        text, cost = self.ended()["server"]
        self.assertGreater(len(text), 20)
        self.assertRegex(cost, r"^Stopped after [\d.]+ s$")
        self.assertLess(self.server.idle()["requests_processing"], 1)
        # The keyboard is back at the message; a line more is no message yet.
        self.page.type("a")
        self.page.press("Enter", SHIFT)
        self.page.type("b")
        self.assertEqual(self.page.evaluate("$('prompt').value"), "a\nb")
        self.assertEqual(self.page.evaluate("page.turns.length"), 1)
        # All else is reached by Tab, is named, and shows that it has the keyboard.
        seen = []
        for _ in range(30):
            self.page.press("Tab")
            seen.append(self.page.evaluate(
                "(() => { const e = document.activeElement, s = getComputedStyle(e.closest('fieldset label') || e);"
                " return [e.id || e.value || e.textContent || e.tagName, s.outlineStyle]; })()"))
        for name in ("attach", "send", "new", "show-reads", "show-settings", "compare", "log", "Regenerate"):
            self.assertIn([name, "solid"], seen)
        tree = self.page.call("Accessibility.getFullAXTree")["nodes"]
        for node in tree:
            names = {one["name"] for one in node.get("properties", []) if one["value"].get("value") is True}
            if "focusable" in names and not node["ignored"] and node["role"]["value"] != "RootWebArea":
                self.assertTrue(node["name"]["value"], node)
        self.calm()

    def test_system_prompt_and_files_reach_the_prompt(self):
        self.ready(most=2, system="Be brief.")
        name = '<img src=x onerror="document.title=1">.txt'
        self.page.choose_files("#file", [self.file(name, long_text()), self.file("none.bin", b"\0\1")])
        self.page.wait("page.files.length === 1 && !$('trouble').hidden")
        self.assertIn("none.bin: it is not text", self.page.evaluate("$('trouble').textContent"))
        self.send("What is <b>the</b> key?")
        cost = self.ended()["server"][1]
        messages = self.bodies()[0]["messages"]
        self.assertEqual([one["role"] for one in messages], ["system", "user"])
        self.assertEqual(messages[0]["content"], "Be brief.")
        self.assertIn(long_text().rstrip(), messages[1]["content"])
        self.assertTrue(messages[1]["content"].startswith(f"File {name}:"))
        self.assertTrue(messages[1]["content"].endswith("What is <b>the</b> key?"))
        prompt = self.post("/apply-template", messages=messages)["prompt"]
        tokens = self.post("/tokenize", content=prompt, add_special=True)["tokens"]
        self.assertIn(f"prompt {len(tokens)},", cost)
        # Shown as it is, and nothing of it is a part of the page.
        self.assertEqual(self.page.evaluate("document.querySelector('.asked p').textContent"), "What is <b>the</b> key?")
        self.assertEqual(self.page.evaluate("document.querySelectorAll('img, b').length - document.querySelectorAll('#scale b').length"), 0)
        self.assertEqual(self.page.evaluate("document.title"), "tidal")
        self.assertEqual(self.page.evaluate("page.files.length"), 0)
        self.calm()

    def test_side_by_side(self):
        self.ready(most=8, budget=BUDGET, system=long_text())
        self.plans("full", "sketch", "exact")
        self.page.click('#plans input[value="server"]')
        self.send("What is the pass key?")
        answers = self.ended()
        self.assertEqual(list(answers), ["full", "sketch", "exact"])
        self.assertEqual(answers["full"][0], answers["exact"][0])
        bodies = self.bodies()
        # The prompt once, so that all begin with the same; then together.
        self.assertEqual(bodies[0].pop("max_tokens"), 0)
        self.assertEqual([one["tidal"] for one in bodies], [
            {"attention": "full"}, {"attention": "full"}, {"attention": "sketch", "budget": BUDGET},
            {"attention": "sketch", "exact": True, "budget": BUDGET}])
        for body, (text, cost) in zip(bodies[1:], answers.values()):
            expected, usage, _ = self.again(body)
            self.assertEqual(text, expected)
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            self.assertIn(f"prompt {usage['prompt_tokens']}, {cached} of them cached", cost)
            self.assertGreater(cached, usage["prompt_tokens"] - 12)
        read = {plan: float(re.search(r"([\d.]+) MB read a token", cost)[1]) for plan, (_, cost) in answers.items()}
        self.assertLess(read["sketch"], read["full"])
        boxes = self.page.evaluate("[...document.querySelectorAll('.answer')].map((a) => a.getBoundingClientRect().toJSON())")
        self.assertEqual(len({round(box["top"]) for box in boxes}), 1, "side by side")
        # On with another one.
        self.page.evaluate("[...document.querySelectorAll('.answer[data-plan=sketch] button')].pop().click()")
        self.page.click("#compare")
        self.assertEqual(self.page.evaluate("chosenPlans()"), ["full"])
        self.set(most=1)
        self.send("And?")
        self.ended()
        self.assertEqual(self.bodies()[-1]["messages"][2], {"role": "assistant", "content": answers["sketch"][0]})
        self.calm()

    def test_what_is_read(self):
        self.ready(most=8, budget=BUDGET, system=long_text())
        self.page.click("#show-reads")
        self.plans("tidal")
        self.send("What is the pass key?")
        text, _ = self.ended()["tidal"]
        body = self.bodies()[0]
        self.assertEqual(body["tidal"], {"attention": "tidal", "budget": BUDGET, "reads": True})
        expected, usage, events = self.again(body)
        self.assertEqual(text, expected)

        # The API's texts are the prompt and the answer, token by token.
        texts, starts = [], []
        length = 0
        for event in events:
            self.assertEqual((event["first"], event["prompt"]), (length, usage["prompt_tokens"]))
            for one in event["texts"]:
                one, tokens = one if isinstance(one, list) else (one, 1)
                texts.append(one)
                starts.append(length)
                length += tokens
        prompt = self.post("/apply-template", messages=body["messages"])["prompt"]
        self.assertEqual("".join(texts), prompt + text)
        self.assertGreater(length, len(texts), "a wave has several tokens")
        self.assertEqual(length, usage["prompt_tokens"] + usage["completion_tokens"])
        steps = [event["reads"] for event in events if "reads" in event]
        self.assertEqual([step["position"] for step in steps], list(range(usage["prompt_tokens"], length - 1)))
        shares = [0.0] * length
        for step in steps:
            # Dense 0 and 1, two that select, 26 that read what these chose; the last chose within the budget.
            self.assertEqual((step["sets"], step["left_out"], step["sinks"]), (26, 0, 4))
            positions = dict(step["positions"])
            self.assertTrue(BUDGET <= len(positions) <= 2 * BUDGET)
            self.assertEqual(sum(positions.values()), 26 * BUDGET)
            for position, sets in positions.items():
                shares[position] += sets / step["sets"] / len(steps)
            for always in (*range(4), *range(step["position"] + 1 - step["recent"], step["position"] + 1)):
                self.assertEqual(positions[always], 26)

        # Shaded as they say: a level for every halving.
        def shade(text):
            level = 0
            for position in range(starts[text], starts[text + 1] if text + 1 < len(starts) else length):
                if position < 4 or position > steps[-1]["position"] - steps[-1]["recent"]:
                    return "always"
                if shares[position] > 0:
                    level = max(level, 1, math.ceil(8 + math.log2(shares[position]) - 1e-9))
            return f"heat{level}" if level else ""

        self.page.evaluate("panel.draw(), panel.parts.forEach((part) => panel.seen(part, true))")
        shown = self.page.evaluate("[...$('text').querySelectorAll('span')].map((s) => [s.textContent, s.className, Number(s.dataset.position)])")
        wanted = [[one, shade(index), starts[index]] for index, one in enumerate(texts)]
        self.assertEqual(shown, wanted)
        self.assertGreater(len({one[1] for one in wanted}), 3, "several levels")
        best = max((p for p in range(4, usage["prompt_tokens"])), key=lambda p: shares[p] if shade_free(p, steps) else 0)
        passages = self.page.evaluate("[...$('passages').querySelectorAll('span')].map((s) => Number(s.dataset.position))")
        self.assertTrue(any(abs(best - one) <= 16 for one in passages), (best, passages))
        painted = self.page.evaluate(
            "['strip', 'steps'].map((id) => { const c = $(id), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " const all = new Set(); for (let i = 0; i < d.length; i += 4) all.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]); return all.size; })")
        self.assertGreater(painted[0], 3)
        self.assertGreater(painted[1], 3)
        self.page.click("#passages button")
        self.assertIn("% of the sets of the last", self.page.evaluate("$('hint').textContent"))
        self.page.wait("(() => { const b = $('text').getBoundingClientRect(), s = document.querySelector('#text .pin').getBoundingClientRect();"
                       " return s.top >= b.top && s.bottom <= b.bottom; })()")

        # What reads everything says so.
        self.plans("full")
        self.set(most=3)
        self.send("Once more?")
        self.ended()
        self.page.evaluate("panel.draw()")
        self.assertIn("Every layer reads everything", self.page.evaluate("$('reads-note').textContent"))
        self.assertTrue(self.page.evaluate("$('drawn').hidden"))
        self.calm()

    def test_nothing_from_elsewhere(self):
        self.ready(most=1)
        self.send("Hi")
        self.ended()
        self.calm()
        origin = f"http://127.0.0.1:{self.server.port}/"
        urls = [one["request"]["url"] for one in self.page.happened("Network.requestWillBeSent")]
        self.assertGreaterEqual(len(urls), 4)
        self.assertEqual([url for url in urls if not url.startswith((origin, "data:,"))], [])
        # Even if a script wanted to.
        seen = self.page.evaluate("""new Promise((resolve) => {
            const blocked = [];
            document.addEventListener('securitypolicyviolation', (e) => { blocked.push(e.effectiveDirective); if (blocked.length === 3) resolve(blocked.sort()); });
            fetch('http://127.0.0.2:1/').catch(() => 0);
            document.body.append(element('img', {src: 'http://127.0.0.2:1/x.png'}));
            document.body.insertAdjacentHTML('beforeend', '<p onclick="document.title = 1" id="bad"></p>');
            $('bad').click();
          })""")
        self.assertEqual(seen, ["connect-src", "img-src", "script-src-attr"])
        self.assertEqual(self.page.evaluate("document.title"), "tidal")

    def test_light_and_dark_are_legible(self):
        self.ready()
        grounds = []
        for scheme in ("light", "dark"):
            self.page.media(scheme)
            pairs = self.page.evaluate("""(() => {
              const style = getComputedStyle(document.documentElement), value = (name) => style.getPropertyValue(name).trim();
              const light = (hex) => { const wide = hex.length === 4 ? hex.replace(/[^#]/g, '$&$&') : hex;
                const [r, g, b] = [1, 3, 5].map((i) => parseInt(wide.slice(i, i + 2), 16) / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
                return .2126 * r + .7152 * g + .0722 * b; };
              const ratio = (a, b) => { const [x, y] = [light(value(a)), light(value(b))]; return (Math.max(x, y) + .05) / (Math.min(x, y) + .05); };
              const pairs = ['--page', '--panel', '--said'].flatMap((ground) => ['--ink', '--muted'].map((ink) => [ink, ground]));
              pairs.push(['--on', '--accent'], ['--accent', '--panel'], ['--wrong', '--panel'], ['--mark-ink', '--always']);
              for (let level = 1; level <= 8; ++level) pairs.push(['--mark-ink', '--heat' + level]);
              return pairs.map(([ink, ground]) => [ink, ground, ratio(ink, ground)]); })()""")
            for ink, ground, ratio in pairs:
                self.assertGreaterEqual(ratio, 4.5, (scheme, ink, ground))
            grounds.append(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        self.assertNotEqual(*grounds)
        # Nothing is cut off where there is little room.
        for width in (1280, 360):
            self.page.call("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)
            self.page.evaluate("$('reads').hidden && $('show-reads').click(), $('settings').hidden = false")
            self.assertLessEqual(self.page.evaluate("document.documentElement.scrollWidth"), width)

    def test_keys_and_waiting(self):
        with Server("-c", "256", "--ubatch-size", "8", "--api-key", "secret") as server:
            self.page = page = self.open(server)
            page.wait("!$('trouble').hidden && !$('settings').hidden")
            self.assertIn("API key is wrong or missing", page.evaluate("$('trouble').textContent"))
            self.assertEqual(page.evaluate("document.activeElement.id"), "key")
            for key, ready in (("guess", False), ("secret", True)):
                page.evaluate("$('key').focus(), $('key').select()")
                page.type(key)
                page.press("Tab")
                page.wait("page.ready" if ready else "!$('trouble').hidden")
            self.assertTrue(page.evaluate("$('trouble').hidden"))
            self.set(most=2)
            self.send("Hi")
            self.assertIn("2 tokens", self.ended()["server"][1])
            # A message longer than the context: the server's words.
            self.send("word " * 400)
            self.ended()
            self.assertIn("in a context of 256", page.evaluate("$('trouble').textContent"))
            self.assertIn("Failed: ", page.evaluate("lastTurn().answers[0].cost.textContent"))
            # While the model is loaded, and when the server has gone.
            page.call("Fetch.enable", patterns=[{"urlPattern": "*/health"}])
            page.evaluate("connect(), 0")
            body = "eyJlcnJvciI6eyJtZXNzYWdlIjoidGhlIG1vZGVsIGlzIGJlaW5nIGxvYWRlZCJ9fQ=="
            paused = page.happens("Fetch.requestPaused")
            page.call("Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=503, body=body)
            page.wait("$('state').textContent === 'The model is being loaded' && $('send').disabled")
            page.call("Fetch.disable")
            page.wait("page.ready")
            server.stop()
            self.send("Anybody?")
            self.ended()
            self.assertIn("the server does not answer", page.evaluate("$('trouble').textContent"))


if __name__ == "__main__":
    unittest.main()
