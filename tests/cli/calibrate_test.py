"""tidal calibrate: what it writes, that it goes on after a kill, and what it refuses."""

import json
import os
import signal
import subprocess
import time
import unittest
import xml.etree.ElementTree

from program import MODEL, PROGRAM, TIMEOUT, ModelTest, environment

# A text of some 4,000 tokens that needs no download.
TEXT = " ".join(
    f"On day {day} the {who} went to the {where} and found {day * 37 % 101} {what}s there."
    for day in range(1, 61)
    for who, where, what in (("miller", "river", "stone"), ("smith", "market", "apple"), ("monk", "library", "book"))
)
# A sweep over the 81 tidal plans with one reselect layer, or over some 35 that scan, in a second or two.
SMALL = {"--kinds": "tidal", "--prefix": "200", "--budget": "64", "--steps": "2", "--places": "2", "--prompts": "0",
         "--held-out": "1", "--stretches": "1"}


class Calibrate(ModelTest):
    def setUp(self):
        super().setUp()
        self.text_file = self.file("text.txt", TEXT)
        self.plan = os.path.join(self.folder, "plan.json")

    def arguments(self, *more, output=None):
        small = [word for flag in SMALL if flag not in more for word in (flag, SMALL[flag])]
        return ("calibrate", "-m", MODEL, "-f", self.text_file, "-o", output or self.plan, *small, *more)

    def calibrate(self, *more, output=None):
        result = self.tidal(*self.arguments(*more, output=output))
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode()

    def read(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def rows(self, name="plan.rows.jsonl"):
        return [json.loads(line) for line in self.read(name).splitlines()]

    def table(self, text):
        """Cells of every line by the names of the columns."""
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        return [dict(zip(lines[0], line)) for line in lines[2:]]


class Output(Calibrate):
    def test_the_plan_is_the_best_of_the_measured_ones_and_runs(self):
        table = self.table(self.calibrate("--selects", "1"))
        plan = json.loads(self.read("plan.json"))
        first, reselect = plan["roles"]["select"]
        self.assertEqual(plan["roles"]["dense"], list(range(first)))
        self.assertEqual(plan["policy"]["budget"], 64)
        chosen = [line for line in table if "chosen" in line[""]]
        self.assertEqual([(line["kind"], line["plan"]) for line in chosen], [("tidal", f"Select {first} + {reselect}")])
        # By the rows: the lowest mean of the plans that were measured at both places, and the table says so.
        losses = {}
        for row in self.rows()[1:]:
            if row.get("text") in (0, 1):
                losses.setdefault(tuple(row["select"]), {})[row["text"]] = row["kl_sum"]
        means = {select: sum(by_text.values()) / 4 for select, by_text in losses.items() if len(by_text) == 2}
        self.assertEqual(min(means, key=means.get), (first, reselect))
        self.assertTrue(chosen[0]["KL"].startswith(f"{means[first, reselect]:.4f} ± "), chosen)
        self.assertIn(f"KL {means[first, reselect]:.4f} ", plan["about"])
        self.assertIn("text.txt", plan["about"])
        # A place held out for every plan of the table.
        held_out = {tuple(row["select"]) for row in self.rows()[1:] if row.get("text") == 2}
        self.assertEqual(len(held_out), len(table) - 1)
        self.assertEqual(table[-1]["kind"], "full")
        self.text("-p", "A text", "-n", "1", "--plan", self.plan)
        for name, words in (("plan.frontier.svg", b"bytes read per token"), ("plan.sweep.svg", b"reselect layer")):
            picture = self.read(name)
            xml.etree.ElementTree.fromstring(picture)
            self.assertIn(words, picture)
        names = ["plan.frontier.svg", "plan.json", "plan.rows.jsonl", "plan.sweep.svg", "text.txt"]
        self.assertEqual(sorted(os.listdir(self.folder)), names)

    def test_more_select_layers_and_retrieval_prompts(self):
        table = self.table(self.calibrate("--selects", "2", "--prompts", "1", "--places", "1"))
        sizes = {len(json.loads("[" + line["plan"].removeprefix("Select ").replace(" +", ",") + "]")) for line in table[:-1]}
        self.assertEqual(sizes, {2, 3})
        for line in table[:-1]:
            self.assertRegex(line["on retrieval"], r"^\d+\.\d{4} ± \d+\.\d{4}$")
        kl = {line["plan"]: float(line["KL"].split()[0]) for line in table[:-1]}
        chosen = [line["plan"] for line in table if "chosen" in line[""]]
        self.assertEqual(kl[chosen[0]], min(kl.values()))

    def test_target(self):
        # All plans meet it: the cheapest of all.
        table = self.table(self.calibrate("--target-kl", "100", "--places", "1"))
        self.assertIn("chosen", table[0][""])
        self.assertEqual(float(table[0]["MB per token"]), min(float(line["MB per token"]) for line in table))
        os.remove(self.plan)
        # None does. Another target asks for no new measurement.
        rows = self.read("plan.rows.jsonl")
        result = self.tidal(*self.arguments("--target-kl", "1e-9", "--places", "1"))
        self.assertEqual(result.returncode, 1)
        self.assertRegex(
            result.stderr.splitlines()[-1],
            r"^tidal: --target-kl: no plan has a KL of at most 1e-09; the best one found, Select [\d +,]+, has [\d.]+",
        )
        self.assertFalse(os.path.exists(self.plan))
        self.assertTrue(result.stdout.decode().startswith("| kind "))
        self.assertEqual(self.read("plan.rows.jsonl"), rows)


class Sketch(Calibrate):
    """Plans that scan, beside the others."""

    def tables(self, text):
        plans, reuse = text.split("\n\n")
        return self.table(plans), self.table(reuse)

    def test_both_kinds(self):
        table, reuse = self.tables(self.calibrate("--kinds", "tidal,sketch", "--selects", "1"))
        kinds = [line["kind"] for line in table]
        self.assertEqual(set(kinds), {"tidal", "sketch", "full"})
        # One line for every plan that scans: 3 counts of Dense layers, 2 more widths, 1 to 16 layers that reuse.
        self.assertEqual(kinds.count("sketch"), 3 + 2 + 5)
        widths = {line["plan"][0] for line in table if line["kind"] == "sketch"}
        self.assertEqual(widths, {"1", "2", "4"})
        # The frontier is that of both kinds together.
        points = [(float(line["MB per token"]), float(line["KL"].split()[0]), "frontier" in line[""]) for line in table[:-1]]
        for megabytes, kl, on in points:
            if on:
                self.assertFalse([other for other in points if other[0] < megabytes and other[1] < kl], points)
        # Every layer behind the first one that scans, from the least loss on.
        title = next(iter(reuse[0]))
        self.assertEqual(reuse[0][title], "none")
        layers = [int(line[title]) for line in reuse[1:]]
        self.assertEqual(layers and len(set(layers)), len(layers))
        self.assertGreaterEqual(len(layers), 27)
        self.assertEqual(max(layers), 29)
        losses = [float(line["KL"].split()[0]) for line in reuse[1:]]
        self.assertEqual(losses, sorted(losses))
        picture = self.read("plan.frontier.svg")
        for word in (b">tidal<", b">sketch<"):
            self.assertIn(word, picture)
        self.assertIn(b"all scan", self.read("plan.reuse.svg"))
        # Rows tell the kinds apart, and a run for one of them goes on with those of both.
        rows = self.rows()[1:]
        self.assertTrue(all(("select" in row) != ("bits" in row) for row in rows if "text" in row))
        before = self.read("plan.rows.jsonl")
        self.calibrate("--kinds", "sketch")
        self.assertEqual(self.read("plan.rows.jsonl"), before)

    def test_the_chosen_plan_scans_and_runs(self):
        table, _ = self.tables(self.calibrate("--kinds", "sketch", "--target-kl", "100"))
        plan = json.loads(self.read("plan.json"))
        self.assertTrue(plan["roles"]["scan"])
        self.assertEqual(plan["policy"]["scope"], "kv")
        self.assertEqual({line["kind"] for line in table}, {"sketch", "full"})
        self.assertIn("chosen", table[0][""])  # the cheapest
        self.text("-p", "A text", "-n", "1", "--plan", self.plan)
        names = ["plan.frontier.svg", "plan.json", "plan.reuse.svg", "plan.rows.jsonl", "text.txt"]
        self.assertEqual(sorted(os.listdir(self.folder)), names)

    def test_width_and_dense_layers_given(self):
        table, reuse = self.tables(self.calibrate("--kinds", "sketch", "--sketch", "4", "--dense-layers", "2"))
        plans = {line["plan"] for line in table[:-1]}
        self.assertTrue(all(plan.startswith("4-bit Scan, Dense 0, 1") for plan in plans), plans)
        self.assertIn("4-bit Scan, Dense 0, 1", plans)
        self.assertEqual(len(reuse), 1 + 27)


class Resume(Calibrate):
    def test_nothing_is_measured_twice(self):
        self.calibrate("--selects", "1")
        plan, rows = self.read("plan.json"), self.read("plan.rows.jsonl")
        output = self.calibrate("--selects", "1")
        self.assertEqual(self.read("plan.json"), plan)
        self.assertEqual(self.read("plan.rows.jsonl"), rows)
        self.assertIn("chosen", output)
        keys = [(tuple(row["select"]), row["text"]) for row in self.rows()[1:] if "text" in row]
        self.assertEqual(len(keys), len(set(keys)))

    def test_threads_and_batch_change_nothing(self):
        self.calibrate("--selects", "1")
        self.calibrate("--selects", "1", "-t", "2", "--batch", "4", output=os.path.join(self.folder, "other.json"))
        self.assertEqual(self.read("other.json"), self.read("plan.json"))
        losses = [[row for row in self.rows(name) if "text" in row] for name in ("plan.rows.jsonl", "other.rows.jsonl")]
        self.assertEqual(*losses)

    def test_after_a_kill_the_same_plan(self):
        self.calibrate("--selects", "1", output=os.path.join(self.folder, "whole.json"))
        rows = os.path.join(self.folder, "plan.rows.jsonl")
        program = subprocess.Popen(
            [PROGRAM, *self.arguments("--selects", "1")], env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and program.poll() is None:
            if os.path.exists(rows) and self.read("plan.rows.jsonl").count(b"\n") > 20:
                break
            time.sleep(0.005)
        program.send_signal(signal.SIGKILL)
        program.wait(TIMEOUT)
        # And its last row only half written.
        with open(rows, "r+b") as file:
            file.truncate(os.path.getsize(rows) - 9)
        self.assertFalse(os.path.exists(self.plan))
        before = self.read("plan.rows.jsonl").splitlines()[:-1]
        self.calibrate("--selects", "1")
        self.assertEqual(self.read("plan.json"), self.read("whole.json"))
        self.assertEqual(self.read("plan.rows.jsonl").splitlines()[: len(before)], before)
        self.assertEqual(
            [row for row in self.rows() if "text" in row], [row for row in self.rows("whole.rows.jsonl") if "text" in row]
        )

    def test_ctrl_c_and_kills_keep_the_rows(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.keeps_the_rows(number)

    def keeps_the_rows(self, number):
        if os.path.exists(os.path.join(self.folder, "plan.rows.jsonl")):
            os.remove(os.path.join(self.folder, "plan.rows.jsonl"))
        program = subprocess.Popen(
            [PROGRAM, *self.arguments("--selects", "4")], env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        rows = os.path.join(self.folder, "plan.rows.jsonl")
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and not (os.path.exists(rows) and self.read("plan.rows.jsonl").count(b"\n") > 4):
            time.sleep(0.005)
        program.send_signal(number)
        out, err = program.communicate(timeout=TIMEOUT)
        self.assertEqual(program.returncode, 128 + number, err)
        self.assertEqual(out, b"")
        self.assertIn(b"the same command goes on from here", err)
        self.assertGreater(len(self.rows()), 4)
        self.assertEqual(sorted(os.listdir(self.folder)), ["plan.rows.jsonl", "text.txt"])


class Refused(Calibrate):
    def refused(self, result, *words):
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertFalse(result.stdout, result.stdout)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("tidal: "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])

    def test_values_out_of_range(self):
        for arguments, words in (
            (("--selects", "0"), ("--selects: 0 given, at least 1",)),
            (("--selects", "-3"), ("--selects: -3 given",)),
            (("--selects", "29"), ("--selects: 29 given, at most 28", "30 layers")),
            (("--target-kl", "0"), ("--target-kl: 0 given",)),
            (("--target-kl", "-1"), ("--target-kl: -1 given",)),
            (("--target-kl", "nan"), ("--target-kl: nan given",)),
            (("--target-kl", "inf"), ("--target-kl: inf given",)),
            (("--target-kl", "low"), ("--target-kl", "low")),
            (("--selects", "2", "--target-kl", ".1"), ("--selects and --target-kl",)),
            (("--kinds", "paper"), ("--kinds: 'paper' is not known, expected tidal, sketch or both",)),
            (("--kinds", "sketch", "--selects", "2"), ("--selects: only tidal plans select",)),
            (("--kinds", "tidal", "--sketch", "2"), ("--sketch: only sketch plans scan",)),
            (("--kinds", "sketch", "--dense-layers", "30"), ("--dense-layers: 30 given",)),
            (("--reselect", "9"), ("--reselect: calibrate looks for the layers itself",)),
            (("--plan", "x.json"), ("--plan: calibrate looks for the layers itself",)),
            (("--policy", "best"), ("'best'", "default or paper")),
            (("--budget", "0"), ("--budget: 0 given",)),
            (("--budget", "200"), ("prefix of 200", "budget of 200")),
            (("--budget", "100%,64"), ("--budget: 200 positions of a prefix of 200",)),
            (("--steps", "0"), ("0 steps",)),
            (("--places", "0"), ("0 places",)),
            (("--batch", "0"), ("--batch: 0 given",)),
        ):
            with self.subTest(arguments=arguments):
                self.refused(self.tidal(*self.arguments(*arguments)), *words)
                self.assertEqual(os.listdir(self.folder), ["text.txt"])

    def test_text(self):
        self.text_file = self.file("text.txt", "Too short.")
        self.refused(self.tidal(*self.arguments()), "text.txt", "too few", "at least 206 are needed")
        self.text_file = self.file("text.txt", "")
        self.refused(self.tidal(*self.arguments()), "is empty, expected a text file")
        self.text_file = self.file("text.txt", b"caf\xe9 " * 2000)
        self.refused(self.tidal(*self.arguments()), "byte 3 (0xe9)")
        self.text_file = os.path.join(self.folder, "none")
        self.refused(self.tidal(*self.arguments()), "none: cannot be opened")

    def test_output_that_cannot_be_written(self):
        missing = os.path.join(self.folder, "missing", "plan.json")
        self.refused(self.tidal(*self.arguments(output=missing)), missing, "cannot be written")
        self.refused(self.tidal(*self.arguments(output=self.folder)), "is a directory")

    def test_rows_of_other_settings(self):
        self.calibrate("--selects", "1")
        rows = self.read("plan.rows.jsonl")
        for change, words in ((("--steps", "4"), "'steps' is 2 there and 4 now"), (("--sinks", "2"), "'policy'")):
            result = self.tidal(*self.arguments("--selects", "1", *change))
            self.refused(result, "plan.rows.jsonl", "another run", words)
        self.assertEqual(self.read("plan.rows.jsonl"), rows)

    def test_rows_that_are_none(self):
        self.calibrate("--selects", "1")
        rows = self.read("plan.rows.jsonl").splitlines()
        for line, words in ((b"{ nonsense", "line 3 is broken"), (b'{"text": 1}', "no measurement of a plan")):
            self.file("plan.rows.jsonl", b"\n".join(rows[:2] + [line] + rows[3:]) + b"\n")
            self.refused(self.tidal(*self.arguments("--selects", "1")), "plan.rows.jsonl", words)


if __name__ == "__main__":
    unittest.main()
