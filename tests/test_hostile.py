"""A short run of tests/hostile.py, and that it finds what it looks for."""

import subprocess
import sys
from pathlib import Path

import hostile
import pytest

SCRIPT = Path(hostile.__file__)


def test_hostile_specs_and_files_end_in_sentences() -> None:
    command = [sys.executable, str(SCRIPT), "--specs", "18", "--files", "10", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, rows, last = done.stdout.splitlines()
    assert rows.startswith("all")
    assert sum(map(int, rows.split()[1:3])) == 28, "each is accepted or refused"
    assert last.startswith("18 specs and 10 files of seed 7 in ")


def test_the_same_seed_makes_the_same_cases() -> None:
    one, two = ([hostile.hostile_spec(seed, i) for i in range(12)] for seed in (3, 3))
    assert one == two
    assert one != [hostile.hostile_spec(4, i) for i in range(12)]
    assert len({kind for kind, _, _ in one}) == 4


WRONG = {
    "traceback": "raise ZeroDivisionError",
    "code was run": "os.system('true')",
    "written elsewhere": "open('../elsewhere', 'w').close()",
    "more than 5 s": "[x for x in iter(time.process_time, None) if x < 1 or sys.exit(2)]",
    "more than 1 GB": "bytearray(1_100_000_000)",
    "refused": "pass",
}


@pytest.mark.parametrize("verdict", WRONG)
def test_what_must_not_be_is_found(verdict: str, tmp_path: Path) -> None:
    code = f"""
import os, sys, time, hostile
from pathlib import Path
def main():
    {WRONG[verdict]}
    sys.exit(2)
hostile.cli.main, hostile.SECONDS = main, 0.5
print(hostile.run(("planted", hostile.BASE, {{}}), Path({str(tmp_path)!r}), 0).verdict)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert done.stdout.split("\n")[-2] == verdict, done.stdout + done.stderr
