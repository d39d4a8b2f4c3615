"""The built program, run from outside: what the tests of this folder share."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get("TIDAL_PROGRAM", os.path.join(SOURCE, "build", "src", "tidal"))
MODELS = os.environ.get("TIDAL_MODELS", os.path.join(SOURCE, "models"))
MODEL = os.path.join(MODELS, "smollm2-135m.gguf")
TIMEOUT = 120  # seconds; generous, since the machine may be busy with other things

CLOSING = re.compile(
    r"prefill (?P<prefill>\d+) tokens, (?P<prefill_rate>[\d.]+) tok/s; "
    r"decode (?P<decode>\d+) tokens, (?P<decode_rate>[\d.]+) tok/s, "
    r"(?P<megabytes>[\d.]+) MB read per token, (?P<gigabytes>[\d.]+) GB/s"
)


def environment(**variables):
    """The environment without anybody's TIDAL_* settings. One thread: two would wait for each other when the machine is
    busy, and the text must not depend on it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TIDAL_", "NO_COLOR", "OMP_", "GOMP_"))}
    return {**clean, "TIDAL_THREADS": "1", "TERM": "xterm", **variables}


def closing(text):
    """The numbers of the last closing line in `text`."""
    matches = list(CLOSING.finditer(text))
    if not matches:
        raise AssertionError("no closing line in: " + text)
    return {name: float(value) for name, value in matches[-1].groupdict().items()}


class ProgramTest(unittest.TestCase):
    """Runs the program; stdin is empty unless given."""

    def setUp(self):
        if not os.access(PROGRAM, os.X_OK):
            self.skipTest(PROGRAM + " is missing; build it first")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def file(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as out:
            out.write(content if isinstance(content, bytes) else content.encode())
        return path

    def tidal(self, *arguments, stdin=b"", variables=None, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": TIMEOUT, **options}
        result = subprocess.run(
            [PROGRAM, *arguments], input=stdin, env=environment(**(variables or {})), check=False, **options
        )
        result.stderr = result.stderr.decode(errors="backslashreplace")  # names of files need not be UTF-8
        return result


class ModelTest(ProgramTest):
    """Tests that need the small model."""

    def setUp(self):
        super().setUp()
        if not os.path.exists(MODEL):
            self.skipTest(MODEL + " is missing; run tools/get_model.sh smollm2-135m")

    def run_model(self, *arguments, **options):
        return self.tidal("run", "-m", MODEL, *arguments, **options)

    def text(self, *arguments, **options):
        """What a run that must succeed prints."""
        result = self.run_model(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode()


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, *arguments, variables=None):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *arguments], environment(**(variables or {})))
        # Wide enough that no line is ever wrapped.
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        self.seen = ""  # everything so far
        self.read = 0  # how much of it expect() has gone past

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)

    def _more(self, deadline):
        """Reads what has come; False at the end of the program's output."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.terminal], [], [], left)[0]:
            raise AssertionError("timed out, the terminal shows: " + self.seen)
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def expect(self, pattern, timeout=TIMEOUT):
        """Waits for a regular expression; returns what came since the last one, up to its end."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.compile(pattern, re.DOTALL).search(self.seen, self.read)
            if match:
                before, self.read = self.read, match.end()
                return self.seen[before : match.end()]
            if not self._more(deadline):
                raise AssertionError(f"ended without {pattern!r}, the terminal shows: " + self.seen)

    def send(self, text):
        os.write(self.terminal, text.encode())

    def wait(self, timeout=TIMEOUT):
        """Waits for the program's end; returns its status as subprocess has it."""
        deadline = time.monotonic() + timeout
        while self._more(deadline):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)
