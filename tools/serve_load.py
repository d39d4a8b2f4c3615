#!/usr/bin/env python3
"""Mixed load on a running `tidal serve`: long and short prompts, streams, clients that go, read slowly or send nonsense.

    tools/serve_load.py --port 8080 --seconds 1800 --clients 16 [--long WORDS] [--pid PID]

Prints what was asked and answered, and fails when an answer was lost, was not the one that the same prompt had alone
(greedy), or when blocks are missing at the end. With --pid it prints the server's memory on the way. The server must
have a context of 4096 at least and room for the clients (--parallel 8 --queue 64, say)."""

import argparse
import http.client
import json
import random
import socket
import sys
import threading
import time

WORDS = "the sea was calm and the men sang of home while a cold wind came over the hills and nobody spoke".split()


def prompt_of(number, length):
    chosen = random.Random(number)
    return f"Story {number}. " + " ".join(chosen.choice(WORDS) for _ in range(length))


class Load:
    def __init__(self, options):
        self.options = options
        self.lock = threading.Lock()
        self.counts = {}
        self.wrong = []
        self.expected = {}
        self.end = 0

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def fail(self, what):
        with self.lock:
            self.wrong.append(what)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.options.port, timeout=300)

    def post(self, body, **how):
        connection = self.connect()
        connection.request("POST", "/v1/completions", body=json.dumps(body), **how)
        return connection, connection.getresponse()

    def whole(self, body):
        connection, answer = self.post(body)
        content = json.loads(answer.read())
        connection.close()
        if answer.status == 429:
            return None
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {content}")
        return content["choices"][0]["text"]

    def streamed(self, body, pause=0.0, most=None):
        connection, answer = self.post({**body, "stream": True})
        if answer.status == 429:
            answer.read()
            connection.close()
            return None
        text, done, events = "", False, 0
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                break
            text += json.loads(line[6:])["choices"][0]["text"]
            events += 1
            if most is not None and events >= most:
                connection.close()
                return text
            time.sleep(pause)
        connection.close()
        if not done:
            raise RuntimeError("a stream ended without [DONE]")
        return text

    def client(self, seed):
        chosen = random.Random(seed)
        while time.monotonic() < self.end:
            number = chosen.randrange(8)
            body = self.body(number)
            kind = chosen.choice(["whole", "stream", "stream", "slow", "gone", "nonsense", "cut"])
            try:
                if kind == "nonsense":
                    connection, answer = self.post({"prompt": 7, "n": 10**9})
                    answer.read()
                    connection.close()
                    if answer.status != 400:
                        self.fail(f"nonsense got {answer.status}")
                elif kind == "cut":
                    raw = socket.create_connection(("127.0.0.1", self.options.port))
                    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{")
                    raw.close()
                elif kind == "gone":
                    self.streamed(body, most=chosen.randrange(4))
                else:
                    text = self.whole(body) if kind == "whole" else self.streamed(body, 0.1 if kind == "slow" else 0)
                    if text is None:
                        self.count("told to wait")
                        time.sleep(0.5)
                        continue
                    if text != self.expected[number]:
                        self.fail(f"prompt {number}, {kind}: another text than alone: {text!r}")
                self.count(kind)
            except (OSError, RuntimeError, ValueError) as error:
                self.fail(f"{kind}: {error!r}")

    def body(self, number):
        return {"prompt": prompt_of(number, 40 if number % 4 else self.options.long), "max_tokens": 24, "temperature": 0,
                "ignore_eos": True, "cache_prompt": False}

    def metrics(self):
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {line.split()[0].removeprefix("tidal:"): float(line.split()[1])
                for line in text.splitlines() if not line.startswith("#")}

    def memory(self):
        with open(f"/proc/{self.options.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    def run(self):
        for number in range(8):
            self.expected[number] = self.whole(self.body(number))
        self.end = time.monotonic() + self.options.seconds
        threads = [threading.Thread(target=self.client, args=(seed,)) for seed in range(self.options.clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for _ in range(60):
                time.sleep(0.5)
                if not any(thread.is_alive() for thread in threads):
                    break
            if self.options.pid:
                print(f"{time.monotonic() - self.end + self.options.seconds:6.0f} s  {self.memory():8.1f} MiB", flush=True)
        time.sleep(2)
        metrics = self.metrics()
        if metrics["requests_processing"] + metrics["requests_deferred"] > 0:
            self.fail("something still runs")
        if metrics["kv_blocks_free"] + metrics["kv_blocks_prefix"] != metrics["kv_blocks"]:
            self.fail(f"blocks are missing: {metrics}")
        print("answers:", json.dumps(self.counts, sort_keys=True))
        print("preemptions:", int(metrics["preemptions_total"]))
        for what in self.wrong[:20]:
            print("WRONG:", what)
        print(f"{len(self.wrong)} wrong")
        return 1 if self.wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--long", type=int, default=900, help="words of the long prompts, a quarter of all (900)")
    parser.add_argument("--pid", type=int, help="of the server, whose memory is printed")
    return Load(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
