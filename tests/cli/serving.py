"""A running `tidal serve`, and requests to it: what the tests of the server share."""

import http.client
import json
import re
import signal
import subprocess
import tempfile
import time

from program import MODEL, PROGRAM, TIMEOUT, ModelTest, environment

# What follows a beginning from the cache is computed in other chunks: rounding may then decide for another token.
GREEDY = {"temperature": 0, "cache_prompt": False}


class Server:
    """The program, serving; `with` ends it."""

    def __init__(self, *arguments, model=MODEL, wait=True, threads="1"):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "-m", model, "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env=environment(TIDAL_THREADS=threads),
        )
        self.port = self.wait_for_port() if wait else None

    def log(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="backslashreplace")

    def wait_for_port(self):
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            match = re.search(r"listening on http://\S+:(\d+)", self.log())
            if match:
                return int(match[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError("it does not listen: " + self.log())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.errors.close()

    def stop(self, how=signal.SIGTERM):
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait(TIMEOUT)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and the body: JSON where it is some."""
        connection = self.connect()
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, body=data, headers=headers or {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers.get("Content-Type", "").startswith("application/json") and content:
                content = json.loads(content)
            return answer.status, answer.headers, content
        finally:
            connection.close()

    def post(self, path, **body):
        """The JSON of an answer that must be right."""
        status, _, content = self.ask("POST", path, body)
        if status != 200:
            raise AssertionError(f"{path}: {status} {content}")
        return content

    def stream(self, path, body, headers=None):
        """The events of a stream as they come: (name or None, JSON or the bare text)."""
        connection = self.connect()
        try:
            connection.request("POST", path, body=json.dumps({**body, "stream": True}).encode(), headers=headers or {})
            answer = connection.getresponse()
            if answer.status != 200:
                raise AssertionError(f"{path}: {answer.status} {answer.read()}")
            name = None
            for line in answer:
                line = line.decode().rstrip("\r\n")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data = line[6:]
                    yield name, json.loads(data) if data.startswith("{") else data
                    name = None
        finally:
            connection.close()

    def metrics(self):
        text = self.ask("GET", "/metrics")[2].decode()
        return {line.split()[0].removeprefix("tidal:"): float(line.split()[1]) for line in text.splitlines()
                if not line.startswith("#")}

    def idle(self):
        """Waits until nothing runs or waits; the metrics then."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            metrics = self.metrics()
            if metrics["requests_processing"] == 0 and metrics["requests_deferred"] == 0:
                return metrics
            time.sleep(0.02)
        raise AssertionError("it is still busy")


def text_of(answer):
    choice = answer["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


class Shared(ModelTest):
    """One server for all tests of a class."""

    ARGUMENTS = ("-c", "1024")

    @classmethod
    def setUpClass(cls):
        probe = cls("setUp")
        probe.setUp()  # skips the class where there is no model
        probe.doCleanups()
        cls.server = Server(*cls.ARGUMENTS)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def post(self, path, **body):
        return self.server.post(path, **body)

    def refused(self, path, status, words, body=None, method="POST", headers=None):
        given, answer_headers, content = self.server.ask(method, path, body, headers)
        self.assertEqual(given, status, content)
        self.assertIn(words, content["error"]["message"])
        self.assertEqual(content["error"]["code"], status)
        return content["error"], answer_headers
