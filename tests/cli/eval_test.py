"""tidal eval: rows, resuming, tables, pictures, and bad input."""

import json
import os
import re
import signal
import subprocess
import time
import unittest

from evaluating import EvalTest
from program import MODEL, PROGRAM, SOURCE, Terminal, environment

LONGBENCH = os.path.join(SOURCE, "tests", "data", "longbench")


class Perplexity(EvalTest):
    def test_plans_side_by_side(self):
        result = self.ppl("--budget", "32,300", "--policy", "default,paper", "--places", "2", "-o", self.rows_file)
        table = self.succeeded(result)
        names = ["full", "K=32, select 2+17", "K=300, select 2+17", "K=32, select 2+17, paper",
                 "K=300, select 2+17, paper"]
        header, rows = self.rows()
        self.assertEqual(header["tidal"], "eval ppl")
        self.assertEqual(header["model"]["layers"], 30)
        self.assertEqual([row["plan"] for row in rows], names * 2)
        self.assertEqual(len({row["place"] for row in rows}), 2)
        for name in names:
            self.assertIn("| " + name, table)
        for row in rows:
            if row["plan"].startswith("K=32"):
                self.assertGreater(row["kl"], 0)
                self.assertGreater(row["kl_error"], 0)
                self.assertLess(row["bytes_per_token"], rows[0]["bytes_per_token"])
            else:
                # A budget above the context is full attention, bit for bit.
                self.assertEqual(row["kl"], 0)
                self.assertEqual(row["nll"], next(r["nll"] for r in rows if r["place"] == row["place"]))
                self.assertEqual(row["same"], 1)
        picture = self.picture(os.path.join(self.folder, "rows.svg"))
        self.assertIn("select 2+17, paper", picture)
        # What the table says is the mean over the places.
        of_plan = [row["kl"] for row in rows if row["plan"] == names[1]]
        self.assertIn(f"{sum(of_plan) / 2:.4f}", next(line for line in table.splitlines() if names[1] + " " in line))

    def test_budgets_as_shares_and_repeated_flags(self):
        self.succeeded(self.ppl("--attention", "tidal", "--budget", "64,10%,16", "--budget", "5%", "-o", self.rows_file))
        self.assertEqual([row["plan"] for row in self.rows()[1]],
                         ["full", "K=64, select 2+17", "K=10%,16, select 2+17", "K=5%,64, select 2+17"])

    def test_kinds_of_attention_side_by_side(self):
        table = self.succeeded(self.ppl("--attention", "tidal,sketch", "--budget", "32,300", "--sketch", "2,4", "--reselect",
                                        "9", "--dense-layers", "0,2", "-o", self.rows_file))
        sketches = [f"K={budget}, sketch {bits} bits{dense}" for dense in ("", ", dense 0-1") for bits in (2, 4)
                    for budget in (32, 300)]
        names = ["full", "K=32, select 2+9", "K=300, select 2+9", *sketches]
        rows = self.rows()[1]
        self.assertEqual([row["plan"] for row in rows], names)
        kl = {row["plan"]: row["kl"] for row in rows}
        self.assertLess(kl["K=32, sketch 2 bits"], kl["K=32, select 2+9"])
        for name in names:
            self.assertIn("| " + name + " ", table)
            if name.startswith("K=32"):
                self.assertGreater(kl[name], 0)
            else:
                self.assertEqual(kl[name], 0)  # the context fits in the budget
        picture = self.picture(os.path.join(self.folder, "rows.svg"))
        for words in ("select 2+9", "sketch 2 bits", "sketch 4 bits, dense 0-1"):
            self.assertIn(words, picture)

    def test_lists_that_no_plan_takes(self):
        self.refused(self.ppl("--attention", "tidal", "--sketch", "2"), "--sketch", "none of the plans")
        self.refused(self.ppl("--attention", "sketch", "--reselect", "9"), "--reselect", "none of the plans")
        self.refused(self.ppl("--attention", "dense"), "'dense'", "tidal, sketch or both")

    def test_a_plan_file_beside_flags(self):
        plan = os.path.join(self.folder, "plan.json")
        self.succeeded(self.tidal("run", "-m", MODEL, "-p", "x", "-n", "0", "--reselect", "9", "--save-plan", plan))
        self.succeeded(self.ppl("--plan", plan, "--reselect", "14", "--budget", "32", "-o", self.rows_file))
        self.assertEqual([row["plan"] for row in self.rows()[1]], ["full", "K=32, select 2+14", "K=32, select 2+9"])

    def test_more_plans_later(self):
        first = self.ppl("--attention", "tidal", "--budget", "32", "-o", self.rows_file)
        self.succeeded(first)
        later = self.succeeded(self.ppl("--attention", "tidal", "--budget", "32,64", "-o", self.rows_file))
        _, rows = self.rows()
        self.assertEqual([row["plan"] for row in rows], ["full", "K=32, select 2+17", "K=64, select 2+17"])
        whole = os.path.join(self.folder, "whole.jsonl")
        self.assertEqual(self.succeeded(self.ppl("--attention", "tidal", "--budget", "32,64", "-o", whole)), later)
        self.assertEqual(self.rows(whole)[1], rows)


class Resume(EvalTest):
    def cut(self, path, keep):
        """Keeps `keep` whole lines and the half of the next one, as a kill would leave it."""
        with open(path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        with open(path, "wb") as file:
            file.write(b"".join(lines[:keep]) + lines[keep][: len(lines[keep]) // 2])

    def resumes(self, run):
        """A run that goes on behind a cut file ends with what the whole run has."""
        table = self.succeeded(run())
        whole = self.rows()
        for keep in (1, 2, len(whole[1])):
            self.cut(self.rows_file, keep)
            result = run()
            self.assertEqual(self.succeeded(result), table)
            header, rows = self.rows()
            self.assertEqual(header, whole[0])
            self.assertEqual(sorted(rows, key=json.dumps), sorted(whole[1], key=json.dumps))
            if keep > 1:
                self.assertIn(f"behind {keep - 1} finished rows", result.stderr)
        self.assertEqual(self.succeeded(run()), table, "nothing left to do")

    def test_ppl(self):
        self.resumes(lambda: self.ppl("--budget", "32", "--places", "2", "-o", self.rows_file))

    def test_needle(self):
        # Longer than a chunk, so that prompts share a beginning when they run together and none when resumed.
        self.resumes(lambda: self.needle("--lengths", "640", "--depths", "85,95", "--budget", "64", "-o",
                                         self.rows_file))

    def test_recall(self):
        self.resumes(lambda: self.eval("recall", "-f", self.text_file, "--prefix", "150", "--steps", "2", "--places",
                                       "1", "--budget", "32", "-o", self.rows_file))

    def test_killed(self):
        arguments = [PROGRAM, "eval", "needle", "-m", MODEL, "-f", self.text_file, "--lengths", "200", "--depths", "5",
                     "--keys", "2", "--budget", "32", "-o", self.rows_file]
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.exists(self.rows_file) and self.content().count(b"\n") > 4:
                break
            time.sleep(0.02)
        process.kill()
        process.wait()
        done = self.rows()[1] if process.returncode else []
        result = self.tidal(*arguments[1:])
        self.assertEqual(result.returncode, 0, result.stderr)
        _, rows = self.rows()
        self.assertEqual(len(rows), 5 * 2 * 2 * 2)
        self.assertEqual(rows[: len(done)], done)
        self.assertEqual(len({json.dumps([row[key] for key in ("depth", "key", "plan", "question")]) for row in rows}),
                         40, "no row twice")

    def test_interrupted(self):
        with Terminal("eval", "needle", "-m", MODEL, "-f", self.text_file, "--lengths", "300", "--depths", "5", "-o",
                      self.rows_file) as terminal:
            terminal.expect(r"eval needle: \d+ %, [^\r]* left")
            os.kill(terminal.pid, signal.SIGINT)
            terminal.expect("stopped; the same command goes on behind the rows in")
            self.assertEqual(terminal.wait(), 130)
        self.assertEqual(self.rows()[0]["tidal"], "eval needle")
        self.assertFalse([name for name in os.listdir(self.folder) if name.endswith(".part")])


class Needle(EvalTest):
    def test_grid(self):
        table = self.succeeded(self.needle("--lengths", "180,260", "--budget", "64", "--keys", "2", "-o",
                                           self.rows_file))
        _, rows = self.rows()
        self.assertEqual(len(rows), 2 * 2 * 2 * 2 * 2)
        cells = {(row["length"], row["depth"], row["key"]) for row in rows}
        self.assertEqual(cells, {(l, d, k) for l in (180, 260) for d in (0.25, 0.75) for k in (0, 1)})
        self.assertEqual({row["question"] for row in rows}, {"sparse", "dense"})
        self.assertEqual(len({row["expected"] for row in rows}), 8, "every prompt has a key of its own")
        for row in rows:
            self.assertEqual(row["found"], row["answer"].lstrip(" ").startswith(row["expected"]))
        full = [row for row in rows if row["plan"] == "full"]
        self.assertGreater(sum(row["found"] for row in full), len(full) * 0.7, "full attention finds short ones")
        for question in ("sparse", "dense"):
            found = sum(row["found"] for row in full if row["question"] == question and row["length"] == 180)
            self.assertRegex(table, rf"\| full +\| {question} +\| +180 \| +{found} of 4 \|")
        self.assertIn("question sparse", self.picture(os.path.join(self.folder, "rows.svg")))

    def test_seed_and_sentence(self):
        rows = []
        for number, flags in enumerate((("--seed", "1"), ("--seed", "2"), ("--needle", "sentence"))):
            path = os.path.join(self.folder, f"{number}.jsonl")
            self.succeeded(self.needle("--question", "dense", "--depths", "50%", *flags, "-o", path))
            rows.append(self.rows(path)[1])
        self.assertEqual([len(own) for own in rows], [2, 2, 2])
        self.assertNotEqual(rows[0][0]["expected"], rows[1][0]["expected"])
        self.assertRegex(rows[2][0]["expected"], r"^[a-z]+( [a-z]+)+$")
        self.assertTrue(rows[2][0]["found"], rows[2][0])

    def test_without_output_says_that_nothing_is_kept(self):
        result = self.needle("--question", "dense", "--depths", "50%")
        self.succeeded(result)
        self.assertIn("rows are not kept", result.stderr)
        self.assertEqual(os.listdir(self.folder), ["text.txt"])


class Recall(EvalTest):
    def test_rows_and_picture(self):
        table = self.succeeded(self.eval("recall", "-f", self.text_file, "--prefix", "150", "--steps", "3", "--places",
                                         "1", "--attention", "tidal", "--budget", "32,64", "-o",
                                         self.rows_file))
        _, rows = self.rows()
        self.assertEqual(len(rows), 2 * 30)
        for row in rows:
            self.assertEqual(row["role"], "select" if row["layer"] in (2, 17) else
                             "dense" if row["layer"] < 2 else "sparse")
            if row["role"] == "sparse":
                self.assertTrue(0 < row["mass"] < 1, row)
            else:
                self.assertEqual(row["mass"], 1)
        mean = {budget: sum(row["mass"] for row in rows if row["plan"].startswith(f"K={budget},")) for budget in (32, 64)}
        self.assertGreater(mean[64], mean[32])
        self.assertEqual(len(re.findall(r"^\| \d+ ", table, re.MULTILINE)), 30)
        self.assertIn("attention mass", self.picture(os.path.join(self.folder, "rows.svg")).lower())

    def test_scan_layers(self):
        table = self.succeeded(self.eval("recall", "-f", self.text_file, "--prefix", "250", "--steps", "3", "--places", "1",
                                         "--budget", "32", "--attention", "tidal,sketch", "--sketch", "1,4",
                                         "--dense-layers", "1", "-o", self.rows_file))
        _, rows = self.rows()
        agreement, excess = {}, {}
        for row in rows:
            if row["role"] != "scan":
                self.assertNotIn("agreement", row)
                self.assertNotIn("excess", row)
                continue
            self.assertTrue(0 < row["mass"] < 1, row)
            self.assertTrue(0 < row["agreement"] <= 1, row)
            self.assertTrue(0 < row["mass"] + row["excess"] <= 1.00001, row)
            agreement.setdefault(row["plan"], []).append(row["agreement"])
            excess.setdefault(row["plan"], []).append(abs(row["excess"]))
        rough, fine = (agreement[f"K=32, sketch {bits}, dense 0"] for bits in ("1 bit", "4 bits"))
        self.assertEqual((len(agreement), len(rough), len(fine)), (2, 29, 29))
        self.assertGreater(sum(fine), sum(rough))
        rough_excess, fine_excess = (excess[f"K=32, sketch {bits}, dense 0"] for bits in ("1 bit", "4 bits"))
        self.assertGreater(sum(rough_excess), 2 * sum(fine_excess))
        # One table of the mass, and two of what sketches make of it, where tidal plans have no place.
        self.assertEqual(len(re.findall(r"^\| \d+ ", table, re.MULTILINE)), 3 * 30)
        self.assertEqual(len(re.findall(r"^\| layer .*select 2\+17", table, re.MULTILINE)), 1)
        self.assertIn(f"{100 * fine[0]:.1f} %", table)


class Exact(EvalTest):
    def test_both_kinds_of_drafts(self):
        table = self.succeeded(self.eval("exact", "-f", self.text_file, "--lengths", "300", "--prompts", "2", "-n", "16",
                                         "--budget", "48", "--attention", "tidal,sketch", "--no-copies", "-o",
                                         self.rows_file))
        _, rows = self.rows()
        self.assertEqual([row["plan"] for row in rows], ["full", "K=48, select 2+17", "K=48, sketch 2 bits"] * 2)
        for row in rows:
            if row["plan"] != "full":
                self.assertTrue(row["same"], row)
                self.assertTrue(0 < row["drafts_tried"], row)
                self.assertTrue(0 <= row["drafts_accepted"] <= row["drafts_tried"], row)
        for name in ("K=48, select 2+17", "K=48, sketch 2 bits"):
            self.assertRegex(table, re.escape("| " + name) + r" +\| +300 \| +2 of 2 \| +\d+ of \d+")


class LongBench(EvalTest):
    def test_scores_and_broken_lines(self):
        run = lambda folder: self.eval("longbench", folder, "--prompt", "300", "--budget", "32", "-o", self.rows_file)
        table = self.succeeded(run(LONGBENCH))
        _, rows = self.rows()
        self.assertEqual({row["task"] for row in rows}, {"qasper", "trec", "repobench-p"})
        self.assertEqual(len(rows), 4 * 2)
        for row in rows:
            self.assertTrue(0 <= row["score"] <= 1, row)
        for metric in ("f1", "accuracy", "edit similarity"):
            self.assertIn(metric, table)
        self.assertEqual(self.succeeded(run(LONGBENCH)), table)
        # A folder of the same name whose second line is broken: the first one's row stays, the error is the run's.
        os.mkdir(os.path.join(self.folder, "longbench"))
        with open(os.path.join(LONGBENCH, "qasper.jsonl"), encoding="utf-8") as file:
            line = file.readline()
        self.file("longbench/qasper.jsonl", line + line[: len(line) // 2] + "\n")
        os.remove(self.rows_file)
        result = run(os.path.join(self.folder, "longbench"))
        self.refused(result, "qasper.jsonl", "line 2")
        self.assertIn("| qasper", result.stdout)
        self.assertEqual(len(self.rows()[1]), 2)

    def test_refused(self):
        self.refused(self.eval("longbench", os.path.join(self.folder, "none")), "none")
        self.refused(self.eval("longbench", self.folder), self.folder)
        self.refused(self.eval("longbench", LONGBENCH, "--tasks", "juggling"), "juggling")


class BadInput(EvalTest):
    def test_texts(self):
        empty = self.file("empty.txt", "")
        short = self.file("short.txt", "In the beginning")
        for task in ("needle", "ppl", "recall", "ruler"):
            with self.subTest(task=task):
                self.refused(self.eval(task, "-f", empty, "-o", self.rows_file), "empty.txt: is empty")
                self.refused(self.eval(task, "-f", os.path.join(self.folder, "none.txt")), "none.txt")
                self.refused(self.eval(task, "-f", self.folder), "is a directory")
                self.refused(self.eval(task, "-f", self.file("bad.txt", b"ab\xff")), "bad.txt: ", "UTF-8")
                error = self.refused(self.eval(task, "-f", short, "-o", self.rows_file), "short.txt: holds")
                self.assertRegex(error, r"holds \d+ tokens, but \d+ are needed")
        self.assertFalse(os.path.exists(self.rows_file))

    def test_numbers_out_of_range(self):
        for flags, words in ((("--prefix", "0"), ("--prefix: 0 given",)), (("--steps", "0"), ("--steps: 0 given",)),
                             (("--places", "-1"), ("--places: -1 given",)), (("--budget", "0"), ("--budget: 0",)),
                             (("--budget", "64,x"), ("--budget", "'x'")), (("--policy", "best"), ("'best'",)),
                             (("--reselect", "9,y"), ("--reselect", "'y'")), (("--reselect", "99"), ("99",)),
                             (("--select-top-p", "nan"), ("--select-top-p",)), (("--select-top-p", "1.5"), ("1.5",)),
                             (("--correct", "-1"), ("--correct",)), (("--plan", "none.json"), ("none.json",))):
            with self.subTest(flags=flags):
                self.refused(self.ppl(*flags), *words)
        for flags, words in ((("--lengths", "0"), ("--lengths: 0",)), (("--lengths", "x"), ("--lengths", "'x'")),
                             (("--depths", "0,101"), ("--depths", "101")), (("--depths", "0"), ("--depths: 0",)),
                             (("--keys", "0"), ("--keys: 0",)), (("--needle", "pin"), ("'pin'", "passkey or sentence")),
                             (("--question", "loud"), ("'loud'", "sparse, dense or both")),
                             (("--lengths", "20"), ("needle: with its question", "prompt of 20"))):
            with self.subTest(flags=flags):
                self.refused(self.needle(*flags), *words)
        self.refused(self.tidal("eval"), "subcommand")

    def test_output_files(self):
        broken = self.file("broken.jsonl", "no result file\n")
        self.refused(self.ppl("-o", broken), "broken.jsonl")
        self.refused(self.ppl("-o", self.folder), self.folder)
        self.refused(self.ppl("--svg", os.path.join(self.folder, "none", "x.svg")), "x.svg")
        self.refused(self.ppl("-o", self.rows_file, "--svg", self.rows_file), "--svg")
        self.succeeded(self.ppl("--budget", "32", "-o", self.rows_file))
        before = self.content()
        self.refused(self.ppl("--budget", "32", "--steps", "5", "-o", self.rows_file), "another run", "steps")
        self.refused(self.needle("-o", self.rows_file), "another run")
        self.assertEqual(self.content(), before)



if __name__ == "__main__":
    unittest.main()
