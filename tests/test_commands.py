"""What times whole commands: its specs are specs, its words are right, and a command that fails ends it. Needs no framework."""

import importlib.util
import sys
from pathlib import Path

import pytest
from build import program_of

from harness import flops

PLACE = Path(__file__).parent.parent / "benchmarks" / "commands.py"
SPECIFICATION = importlib.util.spec_from_file_location("commands", PLACE)
assert SPECIFICATION is not None
assert SPECIFICATION.loader is not None
commands = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(commands)


@pytest.mark.parametrize("layers", [2, 250])
def test_a_deep_network_has_as_many_layers_as_it_says(layers: int) -> None:
    (graph,) = program_of(commands.deep(layers)).networks.values()
    assert len([node for node in graph.nodes if node.op.kind in ("dense", "relu")]) == layers + 1  # and the output's


def test_seconds_are_of_the_command_and_a_failure_says_what_it_said(tmp_path: Path) -> None:
    assert commands.seconds([sys.executable, "-c", "import time; time.sleep(0.3)"], tmp_path) >= 0.3
    with pytest.raises(SystemExit, match=r"(?s)status 3.*said this"):
        commands.seconds([sys.executable, "-c", "import sys; sys.stderr.write('said this'); sys.exit(3)"], tmp_path)


def test_what_a_command_costs_is_of_all_processes_that_it_starts(tmp_path: Path) -> None:
    block = "held = b'x' * 100_000_000; import time; until = time.process_time() + 0.5\nwhile time.process_time() < until: pass\ntime.sleep(0.5)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {block!r}], check=True)"
    found = commands.cost([sys.executable, "-c", child], tmp_path)
    assert found.status == 0
    assert found.seconds > found.cpu >= 0.5, "half of it waits"
    assert found.peak > 100_000_000 > found.own > 1_000_000
    with pytest.raises(SystemExit, match=r"(?s)status 3.*said this"):
        commands.cost([sys.executable, "-c", "import sys; sys.stderr.write('said this'); sys.exit(3)"], tmp_path)
    assert commands.cost([sys.executable, "-c", "import sys; sys.exit(1)"], tmp_path, fine=(0, 1)).status == 1


@pytest.mark.parametrize("name", commands.LARGE)
def test_large_networks_are_specs_that_take_minutes(name: str) -> None:
    program = program_of((PLACE.parent / "specs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert program.steps == 60
    assert flops.step(program) > 1e9


def test_figures_are_the_median_and_the_quartiles() -> None:
    assert commands.spelled([5.0, 1.0, 2.0, 4.0, 3.0]) == "3 s (2 to 4)"
    assert commands.spelled([1.234567] * 2, "") == "1.23 (1.23 to 1.23)"
