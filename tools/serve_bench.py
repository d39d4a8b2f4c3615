#!/usr/bin/env python3
"""Times `tidal serve`, and llama-server beside it, as their clients see them: one after the other, each alone.

    tools/serve_bench.py -m FILE --text models/kjv.txt [--tidal PROGRAM] [--llama-server PROGRAM] [--threads N]
                         [--lines clients,conversation,gap,token,idle,restart] [--client-cpus 2,3]

Four clients with long prompts of their own, a conversation that grows, the gaps of a stream while another prompt is
read, the tokens of one stream beside `tidal run`'s, the memory of idle connections, and for tidal a 32K text that is on
disk when the server starts. llama-server comes from the llama.cpp that tidal is built with (-DLLAMA_BUILD_SERVER=ON)."""

import argparse
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CHARACTERS = 3.9  # of a token, about; the servers say what it was


class Server:
    """A server of its own port, alone on the machine until it is closed."""

    cpus = None  # its processors; None: the client's

    def __init__(self, name, command):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.name = name
        self.log = tempfile.TemporaryFile()
        started = time.monotonic()
        self.process = subprocess.Popen(command + ["--port", str(self.port)], stdout=self.log, stderr=self.log,
                                        preexec_fn=on_own_processors())
        while not self.healthy():
            if self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"{name} ended: {self.log.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - started

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def healthy(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def memory(self):
        """MiB of memory of its own, without mapped files."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

    def stream(self, path, body, each=lambda: None):
        """The text, the times of its pieces since the request, and the last event that has usage or timings."""
        body = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, **body}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1200)
        started = time.monotonic()
        connection.request("POST", path, body=json.dumps(body), headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{self.name}: {answer.status} {answer.read()[:500]}")
        text, times, last = "", [], {}
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event.get("choices", []):
                piece = choice.get("text") or choice.get("delta", {}).get("content")
                if piece:
                    text += piece
                    times.append(time.monotonic() - started)
                    each()
            if event.get("usage") or event.get("timings"):
                last.update({key: event[key] for key in ("usage", "timings") if event.get(key)})
        connection.close()
        return text, times, last

    def complete(self, prompt, tokens, each=lambda: None, **more):
        body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more}
        return self.stream("/v1/completions", body, each)


def on_own_processors():
    return Server.cpus and (lambda: os.sched_setaffinity(0, Server.cpus))


class Text:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.text = file.read()

    def part(self, number, tokens):
        """Another part for every number, about so many tokens long."""
        size = int(tokens * CHARACTERS)
        begin = number * 60000 % (len(self.text) - size)
        return self.text[begin:begin + size]


def four_clients(server, text):
    """Seconds until four clients have 64 tokens each after 4K of their own; tokens of their prompts."""
    server.complete("Once", 4)
    lasts = [None] * 4

    def client(i):
        lasts[i] = server.complete(text.part(i, 4096), 64, cache_prompt=False)[2]

    threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started, [last["usage"]["prompt_tokens"] for last in lasts]


def conversation(server, text):
    """Seconds to the first token of turns 1 to 8 of a conversation that begins with 8K, what the server says of its
    reading from turn 2 on (milliseconds and tokens, means), and the conversation's tokens at the end."""
    messages = [{"role": "user", "content": text.part(7, 8000) + "\n\nWhat is this text about?"}]
    firsts, engine, last = [], [], {}
    for turn in range(8):
        answer, times, last = server.stream("/v1/chat/completions", {"messages": messages, "max_tokens": 32})
        firsts.append(times[0])
        engine.append((last["timings"]["prompt_ms"], last["timings"]["prompt_n"]))
        messages += [{"role": "assistant", "content": answer},
                     {"role": "user", "content": f"Question {turn + 1}: who is spoken of next, and why?"}]
    milliseconds, tokens = (statistics.mean(values) for values in zip(*engine[1:]))
    return firsts, milliseconds, tokens, last["usage"]["prompt_tokens"]


def longest_gap(server, text):
    """The longest gap of a stream while a prompt of 8K is read, the seconds that the reading took, those of a last
    chunk alone, and its tokens."""
    times = []
    running = threading.Thread(target=server.complete, args=("It was a dark and stormy night.", 1200),
                               kwargs={"each": lambda: times.append(time.monotonic()), "cache_prompt": False})
    running.start()
    while len(times) < 20:
        time.sleep(0.01)
    started = time.monotonic()
    seconds = server.complete(text.part(11, 8192), 1, cache_prompt=False)[1][0]
    ended = time.monotonic()
    running.join()
    near = [t for t in times if t >= started - 0.5]
    gap = max(b - a for a, b in zip(near, near[1:]) if b > started and a < ended)
    # A last chunk alone: all before it is cached. The text is another one, for the first is cached by now.
    whole = text.part(15, 8192)
    server.complete(whole[:-int(511 * CHARACTERS)], 1)
    _, times, last = server.complete(whole, 1)
    usage = last["usage"]
    return gap, seconds, times[0], usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def token_time(server, text):
    """Milliseconds between tokens of one stream of 256 after 4K, by the client's clock."""
    rounds = []
    for _ in range(3):
        times = server.complete(text.part(3, 4096), 256, cache_prompt=True)[1]
        rounds.append(1000 * (times[-1] - times[0]) / 255)
    return statistics.median(rounds)


def run_token_time(options, text):
    """What `tidal run` prints for the same: milliseconds a token."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write(text.part(3, 4096))
        prompt.flush()
        rounds = []
        for _ in range(3):
            said = subprocess.run([options.tidal, "run", "-m", options.model, "-f", prompt.name, "-n", "256", "-c", "10240",
                                   "-t", str(options.threads), "--temp", "0", "--ignore-eos"], capture_output=True,
                                  text=True, check=True, preexec_fn=on_own_processors()).stderr
            rounds.append(1000 / float(re.findall(r"([0-9.]+) tok/s", said)[-1]))
    return statistics.median(rounds)


def idle_connections(server):
    """MiB that 500 connections without a request take."""
    before = server.memory()
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(500)]
    time.sleep(1)
    taken = server.memory() - before
    for connection in sockets:
        connection.close()
    return taken


def restart(command, text):
    """Seconds of a new server until it is ready, and from then to the first token of a text of 32K that an earlier one
    left on disk, with a question behind it; how long the earlier one took to read it; the answer's last event."""
    with tempfile.TemporaryDirectory() as folder:
        command = command + ["-c", "34000", "--cache-dir", folder]
        prompt = text.part(13, 32000)
        with Server("tidal serve", command) as server:
            read = server.complete(prompt, 4)[1][0]
        with Server("tidal serve", command) as server:
            _, times, last = server.complete(prompt + "\nWho is meant by this?", 4)
            return server.start_seconds, times[0], read, last


def measure(server, text, lines):
    def say(line):
        print("  " + line, flush=True)

    with server:
        print(f"{server.name}: ready after {server.start_seconds:.2f} s", flush=True)
        if "idle" in lines:
            say(f"500 idle connections: {idle_connections(server):.1f} MiB")
        if "clients" in lines:
            seconds, prompts = four_clients(server, text)
            say(f"4 clients, prompts of {prompts} tokens, 64 more each: {seconds:.1f} s")
        if "conversation" in lines:
            firsts, engine, read, tokens = conversation(server, text)
            later = ", ".join(f"{1000 * first:.0f}" for first in firsts[1:])
            say(f"conversation of 8 turns, {tokens} tokens at the end: first token of turn 1 after {firsts[0]:.2f} s, "
                f"of turns 2 to 8 {1000 * statistics.mean(firsts[1:]):.0f} ms ({later}), {engine:.0f} ms of that reading {read:.0f} tokens")
        if "gap" in lines:
            gap, seconds, chunk, tokens = longest_gap(server, text)
            say(f"longest gap of a stream while 8K is read: {1000 * gap:.0f} ms; reading took {seconds:.1f} s, "
                f"its last {tokens} tokens alone {1000 * chunk:.0f} ms")
        if "token" in lines:
            say(f"a token of one stream after 4K: {token_time(server, text):.2f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--text", required=True, help="a long text that the prompts are parts of")
    parser.add_argument("--tidal", help="the program; left out: not measured")
    parser.add_argument("--llama-server", help="the program; left out: not measured")
    parser.add_argument("--threads", type=int, default=2)
    every = "idle,clients,conversation,gap,token,restart"
    parser.add_argument("--lines", default=every, help=f"what to measure (default: {every})")
    parser.add_argument("--client-cpus", help="processors for the clients alone, such as 2,3; the servers keep the others")
    options = parser.parse_args()
    lines = options.lines.split(",")
    if unknown := set(lines) - set(every.split(",")):
        parser.error(f"--lines: there is no {', '.join(sorted(unknown))}")
    text = Text(options.text)
    common = ["-m", options.model, "--host", "127.0.0.1", "-t", str(options.threads), "--parallel", "4"]
    if options.client_cpus:
        clients = {int(cpu) for cpu in options.client_cpus.split(",")}
        Server.cpus = os.sched_getaffinity(0) - clients
        os.sched_setaffinity(0, clients)
    if options.tidal:
        serve = [options.tidal, "serve", *common]
        measure(Server("tidal serve", serve + ["-c", "10240"]), text, lines)
        if "token" in lines:
            print(f"  the same by tidal run: {run_token_time(options, text):.2f} ms", flush=True)
        if "restart" in lines:
            start, first, read, last = restart(serve, text)
            usage, timings = last["usage"], last["timings"]
            print(f"  {usage['prompt_tokens_details']['cached_tokens']} of {usage['prompt_tokens']} tokens on disk: ready "
                  f"after {start:.2f} s, first token {1000 * first:.0f} ms later, {timings['queue_ms']:.0f} ms of that "
                  f"loading and {timings['prompt_ms']:.0f} ms reading, where reading all took {read:.1f} s", flush=True)
    if options.llama_server:
        # Its context is shared by the slots: four of 10240.
        measure(Server("llama-server", [options.llama_server, *common, "-c", str(4 * 10240), "-tb", str(options.threads)]),
                text, lines)


if __name__ == "__main__":
    main()
