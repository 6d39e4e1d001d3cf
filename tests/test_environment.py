"""What this machine has left for more processes. Needs no framework."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import environment

NESTED = {
    "memory.max": "2000", "memory.current": "900", "memory.stat": "anon 1\ninactive_file 300\n", "a/memory.max": "1000",
    "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 300\n", "a/b/memory.max": "max",
    "a/b/memory.current": "900", "c/memory.max": "1000", "c/memory.current": "900",
}  # fmt: skip
FIRST = {
    "memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "900",
    "memory/job/memory.stat": "inactive_file 7\ntotal_inactive_file 200\n",
    "memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "900",
}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "group", "left"),
    [
        ({}, None, None),
        ({}, "0::/", None),
        (NESTED, "0::/", 1400),
        (NESTED, "0::/a", 400),
        (NESTED, "0::/a/b", 400),
        (NESTED, "0::/c", 100),
        (NESTED, "0::/../else", 1400),
        (NESTED | {"a/memory.current": "1500"}, "0::/a/b", 0),
        (FIRST, "5:cpu,cpuacct:/job\n4:memory:/job\n0::/", 300),
        (FIRST, "4:memory:/", None),
        (FIRST, "5:cpu,cpuacct:/job", None),
    ],
)
def test_free_memory_is_what_limits_leave(
    files: dict[str, str], group: str | None, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / "seen" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "seen" / name).write_text(text + "\n")
    if group is not None:
        (tmp_path / "own").write_text(group + "\n")
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert environment.free_memory(tmp_path / "seen", tmp_path / "own") == (2**40 if left is None else left)
