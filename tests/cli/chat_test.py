"""tidal run at a terminal: turns of a chat, Ctrl-C, progress and colour."""

import os
import signal
import subprocess
import unittest

from program import MODEL, PROGRAM, TIMEOUT, ModelTest, Terminal, closing, environment

READY = r"\n\S*> "  # the prompt of the next turn, coloured or not
GREEDY = ("--temp", "0", "-n", "24")
ENDLESS = ("--temp", "0", "--ignore-eos")
PLAIN = {"NO_COLOR": "1"}


class Chat(ModelTest):
    def chat(self, *arguments, variables=None):
        return Terminal("run", "-m", MODEL, *arguments, variables=PLAIN if variables is None else variables)

    def test_second_turn_prefills_only_what_is_new(self):
        with self.chat(*GREEDY, "--ignore-eos") as terminal:
            terminal.expect(READY)
            terminal.send("Tell me about the sea.\n")
            first = closing(terminal.expect(READY))
            self.assertEqual(first["decode"], 23)
            terminal.send("Tell me about the sea.\n")
            second = closing(terminal.expect(READY))
            # The same message, the end of the answer before it, and its last token.
            self.assertLess(second["prefill"], first["prefill"] + 8)
            terminal.send("/clear\n")
            terminal.expect(READY)
            terminal.send("Tell me about the sea.\n")
            self.assertEqual(closing(terminal.expect(READY))["prefill"], first["prefill"])
            terminal.send("/exit\n")
            self.assertEqual(terminal.wait(), 0)

    def test_turns_are_one_conversation(self):
        """The second answer begins as that to the whole conversation in one prompt."""
        lines = "Hi\nWhat is the capital of France?\n"
        turns = self.text("-i", "--temp", "0", "-n", "3", "--ignore-eos", stdin=lines.encode())
        first, second = turns.removesuffix("\n").split("\n", 1) if turns.count("\n") == 2 else (None, None)
        self.assertIsNotNone(first, turns)
        whole = (
            f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{first}<|im_end|>\n"
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        )
        alone = self.text("--temp", "0", "-n", "3", "--ignore-eos", stdin=(whole + "\n").encode())
        self.assertEqual(second + "\n", alone)

    def test_ctrl_c_stops_the_answer_and_then_the_program(self):
        with self.chat(*ENDLESS) as terminal:
            terminal.expect(READY)
            terminal.send("Count to a million.\n")
            terminal.expect(r"Count to a million\.\r\n.{20,}")  # the answer has begun
            terminal.send("\x03")
            stopped = terminal.expect(READY, timeout=30)
            self.assertIn("stopped", stopped)
            self.assertGreater(closing(stopped)["decode"], 0)
            terminal.send("And again.\n")  # the program goes on
            terminal.expect(r"And again\.\r\n.{20,}")
            terminal.send("\x03")
            terminal.expect(READY, timeout=30)
            terminal.send("\x03")
            self.assertEqual(terminal.wait(timeout=30), -signal.SIGINT)

    def test_ctrl_d_leaves(self):
        with self.chat() as terminal:
            terminal.expect(READY)
            terminal.send("\x04")
            self.assertEqual(terminal.wait(timeout=30), 0)

    def test_ctrl_c_during_prefill_takes_the_message_back(self):
        message = self.file("long", "In the beginning God created the heaven and the earth. " * 500)
        with self.chat("-i", "-f", message, "--ubatch-size", "32", *GREEDY) as terminal:
            terminal.expect(r"prefill: \d+ of \d{4} tokens, \d+ tok/s")
            terminal.send("\x03")
            self.assertIn("stopped", terminal.expect(READY, timeout=30))
            terminal.send("Hi\n")
            self.assertLess(closing(terminal.expect(READY))["prefill"], 40)  # the default system message too

    def test_bad_messages_do_not_end_the_chat(self):
        with self.chat("-c", "64", *GREEDY) as terminal:
            terminal.expect(READY)
            terminal.send("word " * 80 + "\n")
            self.assertRegex(terminal.expect(READY), r"tidal: warning: prompt: \d+ tokens do not fit in a context of 64")
            terminal.send("Hi\n")
            self.assertLess(closing(terminal.expect(READY))["prefill"], 40)  # the default system message too

    def test_colour_unless_refused(self):
        for variables, coloured in (({}, True), (PLAIN, False)):
            with self.chat("-n", "1", variables=variables) as terminal:
                terminal.expect(READY)
                terminal.send("/exit\n")
                self.assertEqual(terminal.wait(), 0)
                self.assertEqual("\033[2m" in terminal.seen, coloured, terminal.seen)
                self.assertEqual("\033[1;32m>" in terminal.seen, coloured, terminal.seen)

    def test_a_prompt_is_answered_once_at_a_terminal_too(self):
        with self.chat("-p", "The capital of France is", *GREEDY) as terminal:
            self.assertEqual(terminal.wait(), 0)
            self.assertIn("Paris", terminal.seen)
            self.assertNotIn("> ", terminal.seen)


class Interrupted(ModelTest):
    def test_kills_end_an_answer_as_ctrl_c_does(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            program = subprocess.Popen(
                [PROGRAM, "run", "-m", MODEL, "-p", "Once upon a time", *ENDLESS],
                env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            with program:
                self.assertTrue(program.stdout.read(1))
                program.send_signal(number)
                _, errors = program.communicate(timeout=TIMEOUT)
            self.assertEqual(program.returncode, 128 + number, errors)
            self.assertIn("stopped", errors.decode())

    def test_a_kill_ends_a_chat_as_well(self):
        with Terminal("run", "-m", MODEL, *ENDLESS, variables=PLAIN) as terminal:
            terminal.expect(READY)
            terminal.send("Count to a million.\n")
            terminal.expect(r"Count to a million\.\r\n.{20,}")
            os.kill(terminal.pid, signal.SIGTERM)
            self.assertEqual(terminal.wait(), 128 + signal.SIGTERM)

    def test_nohup_is_respected(self):
        program = subprocess.Popen(
            [PROGRAM, "run", "-m", MODEL, "-p", "Once upon a time", "--temp", "0", "--ignore-eos", "-n", "64"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        with program:
            self.assertTrue(program.stdout.read(1))
            program.send_signal(signal.SIGHUP)
            _, errors = program.communicate(timeout=TIMEOUT)
        self.assertEqual(program.returncode, 0, errors)
        self.assertEqual(closing(errors.decode())["decode"], 63)

    def test_ctrl_c_ends_a_single_answer(self):
        program = subprocess.Popen(
            [PROGRAM, "run", "-m", MODEL, "-p", "Once upon a time", *ENDLESS],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        with program:
            self.assertTrue(program.stdout.read(1))  # the answer has begun
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=TIMEOUT)
        self.assertEqual(program.returncode, 128 + signal.SIGINT, errors)
        self.assertIn("stopped", errors.decode())
        self.assertGreater(closing(errors.decode())["prefill"], 0)


if __name__ == "__main__":
    unittest.main()
