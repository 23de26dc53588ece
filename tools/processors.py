"""Run the tests on this processor and on each that it can emulate, with one, two and four threads (takes hours).

    .venv/bin/python -m tools.processors [arguments of pytest …]

The exit code is 1 if a test fails in any run. A single run:

    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 HW1_TEST_THREADS=4 .venv/bin/python -m pytest -n 1
"""

import os
import re
import subprocess
import sys

from hw1lib import cpus, paths

THREADS = (1, 2, 4)
EMULATED = (("default", "SSE41"), ("avx2", "AVX2"), ("avx512", "AVX512_CORE_BF16"))  # ATen's and oneDNN's limits
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
SUMMARY = re.compile(r"\d+ \w+.* in [\d.]+s.*")  # such as 2 failed, 2039 passed in 542.03s (0:09:02)


def processors(onednn):
    """Return the environment variables of each processor to test, {name: dict}, or why it is skipped, {name: text}.

    Args:
        onednn: the best instruction set of this processor, one of cpus.ONEDNN, or "" on other CPUs than x86-64.
    """
    chosen, names = {"this processor": {}}, list(cpus.ONEDNN)
    for limits in EMULATED:
        can = onednn and names.index(onednn) >= names.index(limits[1])
        chosen[f"{limits[0]} {limits[1]}"] = dict(zip(LIMITS, limits)) if can else f"skipped: it has {onednn or 'none'}"
    return chosen


def run(environment, threads, arguments):
    """Run pytest once and print its output; return its exit code and its last line."""
    command = [sys.executable, "-m", "pytest", "-n", "2" if threads == 1 else "1", *arguments]
    environment = os.environ | environment | {"HW1_TEST_THREADS": str(threads)}
    summary = "no test ran to its end"
    with subprocess.Popen(command, cwd=paths.ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            summary = line.strip("= \n") if SUMMARY.search(line) else summary
    return process.returncode, summary


def main(arguments):
    for name in LIMITS:
        os.environ.pop(name, None)
    rows, failed = [("processor", "threads", "result")], False
    for processor, environment in processors(cpus.instruction_sets()[1]).items():
        for threads in THREADS:
            if isinstance(environment, dict):
                print(f"\n{processor}, {threads} threads", flush=True)
                code, result = run(environment, threads, arguments)
                failed = failed or code != 0
            else:
                result = environment
            rows.append((processor, str(threads), result))
    widths = [max(map(len, column)) for column in zip(*rows)]
    print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
