"""`make bench`: every bench_*.py beside this file, one after the other, each with its own defaults; one table.

A bench is a plain script with `--help` whose defaults finish in minutes; what it measures and prints is its own
business. Here: its output as it comes, then seconds, peak memory (of its largest process) and its last line.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def scripts(wanted: list[str]) -> list[Path]:
    """The bench scripts, all or those whose names contain one of `wanted`; SystemExit names what there is."""
    there = sorted(HERE.glob("bench_*.py"))
    if not wanted:
        return there
    chosen = [path for path in there if any(word in path.stem for word in wanted)]
    if not chosen:
        raise SystemExit(f"no bench matches {' or '.join(wanted)}; there are: {', '.join(p.stem for p in there)}")
    return chosen


def run(path: Path, timeout: float) -> tuple[str, float, float, str]:
    """One script: (outcome, seconds, peak MB, last line of its output)."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as last:
        process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=HERE.parents[1],
        )
        ending = None
        overdue = threading.Timer(timeout, process.kill)
        overdue.start()
        try:
            for line in process.stdout:
                print("   ", line, end="", flush=True)
                if line.strip():
                    last.seek(0)
                    last.truncate()
                    last.write(line.strip())
        except KeyboardInterrupt:
            process.kill()
            ending = "interrupted"
        if not overdue.is_alive() and time.monotonic() - begun >= timeout:
            ending = f"over {timeout:.0f} s"
        overdue.cancel()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        last.seek(0)
        outcome = ending or ("ok" if process.returncode == 0 else f"exit {process.returncode}")
        return outcome, time.monotonic() - begun, usage.ru_maxrss / 1024, last.read()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python tests/bench/run.py fingerprint pairs")
    parser.add_argument("names", nargs="*", help="only benches whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each (default 1800)")
    args = parser.parse_args()
    chosen = scripts(args.names)
    if args.list:
        print("\n".join(path.stem for path in chosen))
        return 0
    rows = []
    for path in chosen:
        print(f"== {path.stem}", flush=True)
        rows.append((path.stem, *run(path, args.timeout)))
        if rows[-1][1] == "interrupted":
            break
    width = max((len(row[0]) for row in rows), default=5)
    print(f"\n{'bench':<{width}}  {'outcome':<10} {'seconds':>8} {'peak MB':>8}  last line")
    for name, outcome, seconds, peak, last in rows:
        print(f"{name:<{width}}  {outcome:<10} {seconds:>8.1f} {peak:>8.0f}  {last[:90]}")
    return 0 if all(row[1] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
