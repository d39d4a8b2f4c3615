"""Chromium without a window, driven by its DevTools protocol over a pipe: nothing but the standard library."""

import json
import os
import select
import shutil
import subprocess
import time

from program import TIMEOUT

BROWSER = shutil.which("chromium")  # not chromium-browser: on Ubuntu that only installs a snap

KEYS = {"Enter": (13, "\r"), "Escape": (27, None), "Tab": (9, None), "Space": (32, " ")}
SHIFT = 8


class Browser:
    """The browser; `with` ends it. Its profile is in `folder`."""

    def __init__(self, folder):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()

        def place():
            # Where the browser looks for them; away first, since either may be the other's place.
            low, high = os.dup(commands), os.dup(answers)
            for end, wanted in ((low, 3), (high, 4)):
                os.dup2(end, wanted)

        self.process = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
             "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-extensions", "--user-data-dir=" + folder],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=place, close_fds=False)
        os.close(commands)
        os.close(answers)
        self.last, self.held, self.events = 0, b"", []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def receive(self, deadline):
        while b"\0" not in self.held:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                raise AssertionError("the browser does not answer")
            data = os.read(self.answers, 1 << 20)
            if not data:
                raise AssertionError("the browser has ended")
            self.held += data
        message, self.held = self.held.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        """The result of a command; what happens meanwhile is in `events`."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data):]
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self.receive(deadline)
            if answer.get("id") != self.last:
                self.events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(self, url):
        return Page(self, url)


class Page:
    """A page of its own, without what others have stored."""

    def __init__(self, browser, url):
        self.browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context, width=1280, height=800)
        self.target = target["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def call(self, method, **parameters):
        return self.browser.call(method, session=self.session, **parameters)

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def evaluate(self, expression):
        """The value of an expression of JavaScript, of a promise when it is kept."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression):
        """Until it is true; its value."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.03)
        raise AssertionError(f"it does not come true: {expression}; the page says: " + self.evaluate("document.body.innerText"))

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, name, modifiers=0):
        code, text = KEYS[name]
        key = " " if name == "Space" else name
        event = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        """In the middle of the element, as a mouse does."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def choose_files(self, selector, paths):
        element = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=paths, objectId=element["result"]["objectId"])

    def media(self, scheme):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def happened(self, method):
        """Parameters of the events of this kind so far."""
        self.evaluate("0")  # what is on its way arrives
        return [event["params"] for event in self.browser.events
                if event.get("sessionId") == self.session and event["method"] == method]

    def happens(self, method):
        """Waits for the first event of this kind; its parameters."""
        deadline = time.monotonic() + TIMEOUT
        while not self.happened(method):
            if time.monotonic() > deadline:
                raise AssertionError(method + " does not happen")
            time.sleep(0.03)
        return self.happened(method)[0]

    def complaints(self):
        """What is in the console: exceptions, and errors that the browser reports."""
        errors = [one["exceptionDetails"]["text"] for one in self.happened("Runtime.exceptionThrown")]
        return errors + [one["entry"]["text"] for one in self.happened("Log.entryAdded") if one["entry"]["level"] == "error"]
