"""A mixed load of many clients for some seconds; tools/serve_load.py does the same for half an hour."""

import os
import subprocess
import sys
import unittest

from program import SOURCE, ModelTest
from serving import Server


class Load(ModelTest):
    def test_every_answer_is_what_it_is_alone(self):
        # Few blocks, so that sequences have to wait for each other.
        with Server("-c", "512", "--parallel", "4", "--cache-tokens", "640", "--queue", "8") as server:
            load = subprocess.run(
                [sys.executable, os.path.join(SOURCE, "tools", "serve_load.py"), "--port", str(server.port),
                 "--seconds", "3", "--clients", "6", "--long", "60"], capture_output=True, text=True, timeout=300, check=False)
            self.assertEqual(load.returncode, 0, load.stdout + load.stderr)
            self.assertIn("0 wrong", load.stdout)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
