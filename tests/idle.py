#!/usr/bin/env python3
"""Time from start to listening and idle memory of ps0, over ten starts.

usage: idle.py HFL
"""
import socket
import statistics
import subprocess
import sys
import tempfile
import time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port):
    with open("/proc/net/tcp") as table:
        return any(f":{port:04X} " in line and " 0A " in line for line in table)


def measure(program, directory):
    port = free_port()
    args = [program, "--role", "ps0", "--attestation", "sim", "--model-dir", directory]
    start = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*args, "--ps-hosts", f"localhost:{port}"], **quiet)
    while not is_listening(port):
        if process.poll() is not None or time.perf_counter() - start > 10:
            sys.exit("ps0 does not listen")
    elapsed = time.perf_counter() - start
    time.sleep(0.3)
    with open(f"/proc/{process.pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    process.kill()
    process.wait()
    return elapsed, resident / 1024


def main():
    with tempfile.TemporaryDirectory() as directory:
        runs = [measure(sys.argv[1], directory) for _ in range(10)]
    times, memory = zip(*runs)
    print(f"listening after {1e3 * statistics.median(times):.1f} ms (median), "
          f"{1e3 * max(times):.1f} ms (worst); idle {max(memory):.1f} MiB")


if __name__ == "__main__":
    main()
