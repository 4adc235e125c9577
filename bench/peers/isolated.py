#!/usr/bin/env python3
"""Each test of a program that cargo made of tests, in a process of its own, several at once.

    isolated.py [options] PROGRAM [WORD...]     the tests whose names hold a WORD; all without one

An error of a card stays in the context of its process: every later test of the process fails of
it, and a crash ends them all. So here each test has its own, and its own time. What ends is listed
at once, with its seconds; after the last, what failed, with the end of what it printed. What did
not run within --total is listed too: the exit status is 0 only if every test ran and passed.
What passed and launched nothing on the card is counted apart: compute-sanitizer saw nothing of it.

    isolated.py --skip emulated target/release/deps/golden-0123456789abcdef
    isolated.py --prefix 'compute-sanitizer --tool memcheck' target/gpu/programs/test-kernels rope

Tests get the environment of this process. Standard library only; called by bench/gpu.sh.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

SHOWN = 3000  # characters of what a test that failed printed last
LAUNCHED_NOTHING = "ok, launched nothing"
# What compute-sanitizer says then, and makes an error of.
SAW_NOTHING = "Target application terminated before first instrumented API call"


class Tests:
    """The tests of a program, and those of them that run now."""

    def __init__(self, options):
        self.options = options
        self.deadline = time.monotonic() + options.total
        self.running = set()
        self.lock = threading.Lock()

    def names(self):
        """Names as the program lists them; it knows what its words mean."""
        skip = [part for word in self.options.skip for part in ("--skip", word)]
        command = [self.options.program, "--list", *self.options.words, *skip]
        listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = (line.rpartition(": ") for line in listed.splitlines())
        return [name for name, _, kind in lines if kind == "test"]

    def run(self, name):
        """How it ended (`ok` or why not), in what seconds, and the end of what it printed."""
        begin = time.monotonic()
        command = shlex.split(self.options.prefix) + [self.options.program, "--exact", name]
        with tempfile.TemporaryFile() as printed:
            with self.lock:
                left = min(self.options.limit, self.deadline - begin)
                if left <= 0:
                    return "not run", 0.0, ""
                # A group, so that what a prefix starts ends with it.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.running.add(process)
            try:
                status = process.wait(left)
                how = "ok" if status == 0 else f"status {status}"
            except subprocess.TimeoutExpired:
                how = "too long"
                end(process)
                process.wait()
            with self.lock:
                self.running.discard(process)
            seconds = time.monotonic() - begin
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - SHOWN))
            text = printed.read().decode(errors="replace").strip()
            if how == "status 255" and SAW_NOTHING in text and "test result: ok" in text:
                how = LAUNCHED_NOTHING
            return how, seconds, text

    def stop(self, *_):
        """Ends what runs, and lets nothing more begin: a signal of who wants the report now."""
        self.deadline = 0.0
        for process in list(self.running):
            end(process)


def end(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


def main():
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--skip", action="append", default=[], metavar="WORD",
                        help="leave out tests whose names hold it; more than once")
    parser.add_argument("--prefix", default="", metavar="COMMAND", help="run each test under it")
    parser.add_argument("--workers", type=int, default=cores, help=f"tests at once ({cores})")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one test (60)")
    parser.add_argument("--total", type=float, default=300.0, help="seconds of all (300)")
    options = parser.parse_args()

    begin = time.monotonic()
    tests = Tests(options)
    signal.signal(signal.SIGTERM, tests.stop)
    signal.signal(signal.SIGINT, tests.stop)
    names = tests.names()
    if not names:
        sys.exit(f"isolated.py: {options.program}: no test is named so")
    counts, bad = Counter(), []
    with ThreadPoolExecutor(options.workers) as pool:
        tasks = {pool.submit(tests.run, name): name for name in names}
        for task in as_completed(tasks):
            how, seconds, printed = task.result()
            failed = how not in ("ok", LAUNCHED_NOTHING, "not run")
            counts["failed" if failed else how] += 1
            print(f"{how:20} {seconds:6.1f} s  {tasks[task]}", flush=True)
            if failed:
                bad.append((tasks[task], how, printed))
    for name, how, printed in bad:
        print(f"\n---- {name}: {how}\n{printed}")
    took = time.monotonic() - begin
    said = (f"{len(names)} tests: {counts['ok']} passed, "
            f"{counts[LAUNCHED_NOTHING]} passed and launched nothing, {counts['failed']} failed, "
            f"{counts['not run']} not run, {took:.0f} s")
    print(f"\n{said}")
    if counts["failed"] or counts["not run"]:
        sys.exit(said)


if __name__ == "__main__":
    main()
