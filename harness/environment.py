"""Which interpreter runs each backend, and under which environment variables."""

import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from harness import words
from harness.backend import BACKENDS, PACKAGES
from harness.errors import CallError

ROOT = Path(__file__).resolve().parent.parent
"""Where `harness` and `backends` are importable from."""


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs a backend's worker."""

    path: str
    origin: str
    """`this environment`, `--python`, an environment variable's name or a file's."""


def backends(names: str | None) -> tuple[str, ...]:
    """`torch,jax` as backends. Raises CallError."""
    if names is None:
        return BACKENDS
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in BACKENDS]
    if unknown or not chosen:
        what = f"unknown backend '{unknown[0]}'{words.hint(unknown[0], BACKENDS)}" if unknown else "no backend given"
        raise CallError(f"{what} (backends: {', '.join(BACKENDS)})")
    return chosen


def interpreters(given: tuple[str, ...] = ()) -> dict[str, Interpreter]:
    """Each backend's interpreter: `--python`, then HARNESS_PYTHON_<BACKEND>, then pyproject.toml, then this one."""
    found = {name: Interpreter(sys.executable, "this environment") for name in BACKENDS}
    project = Path("pyproject.toml")
    if project.is_file():
        try:
            table = (
                tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {}).get("harness", {}).get("python", {})
            )
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CallError(f"pyproject.toml: {error}") from None
        for name, path in table.items():
            found[_backend(name, "pyproject.toml, [tool.harness.python]")] = Interpreter(str(path), "pyproject.toml")
    for name in BACKENDS:
        variable = f"HARNESS_PYTHON_{name.upper()}"
        if path := os.environ.get(variable):
            found[name] = Interpreter(path, variable)
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise CallError(f"--python takes BACKEND=PATH, like torch=/usr/bin/python3; got '{text}'")
        found[_backend(name, "--python")] = Interpreter(str(Path(path).expanduser()), "--python")
    # What has no slash would be looked for on PATH when it is run.
    found = {name: Interpreter(os.path.abspath(own.path), own.origin) for name, own in found.items()}  # noqa: PTH100 - links stay
    for name, interpreter in found.items():
        if not Path(interpreter.path).exists():
            raise CallError(f"{interpreter.origin}: the interpreter of {name}, {interpreter.path}, does not exist")
    return found


def _backend(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise CallError(f"{where}: unknown backend '{name}' (backends: {', '.join(BACKENDS)})")
    return name


def importable(backend: str, interpreter: Interpreter) -> bool:
    """Whether this interpreter has the backend's framework; another one is asked when its worker starts."""
    if interpreter.path != sys.executable:
        return True
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES[backend])


def scratch() -> Path:
    """A new folder for what a worker's framework would leave behind when it is ended, which SCRATCH tells it of.

    Whoever starts the worker removes it. Raises OSError.
    """
    return Path(tempfile.mkdtemp(prefix="harness-worker-"))


def worker_environment(device: str, threads: int) -> dict[str, str]:
    """A worker's environment variables: this process's, with device and threads pinned."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONSTARTUP", "PYTHONINSPECT"))}
    own |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
    }
    own.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the emitted programs do; it is read when TensorFlow is imported
    # Settings that would change numbers behind a program's back.
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "JAX_ENABLE_X64",
                 "JAX_DEFAULT_MATMUL_PRECISION", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):  # fmt: skip
        own.pop(name, None)
    if device == "cpu":
        own |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    else:
        own.setdefault("JAX_PLATFORMS", "cuda")
        # JAX takes three quarters of the memory at once unless told not to.
        own.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return own


def cores(threads: int) -> list[int]:
    """The cores that a worker is pinned to: of those that this process may use, the idlest just now."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    busy = psutil.cpu_percent(interval=0.1, percpu=True)
    load = {core: busy[core] if core < len(busy) else 0.0 for core in allowed}
    return sorted(sorted(allowed, key=lambda core: (load[core], -core))[:threads])


VECTORS = {"avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "avx_vnni"}
"""Of a processor's flags, those that decide which kernels a library takes."""


def machine() -> dict[str, Any]:
    """What this machine is: operating system, processor and what it can do, cores, memory."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text(errors="replace")
        names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        model = names[0] if names else model
        flags = set(" ".join(re.findall(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)[:1]).split())
    return {
        "flags": sorted(flags & VECTORS),
        "system": f"{platform.system()} {platform.release()}",
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def free_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that more processes can have: what the machine has left, or less where a limit of this process leaves less.

    Limits are of its control group and of all above it, versions 2 and 1 (kernel documentation, cgroup-v2.rst and
    cgroup-v1/memory.rst): `root` is where Linux shows them, `own` tells which group that is. What a group keeps of files it
    would give back.
    """
    free: float = psutil.virtual_memory().available
    for line in own.read_text().splitlines() if own.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        free = min(free, *(_left(base / above, *names) for above in (group, *group.parents)))
    return max(0, int(free))


def _left(group: Path, limit: str, used: str, files: str) -> float:
    """What a control group's limit leaves; infinite where it has none, or none that can be seen from here."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
    except OSError:
        return math.inf
    stat = group / "memory.stat"
    kept = re.search(rf"^{files} (\d+)$", stat.read_text(), re.MULTILINE) if stat.is_file() else None
    return math.inf if most == "max" else int(most) - now + int(kept[1] if kept else 0)


def require_device(device: str, backends: Sequence[str], pythons: Mapping[str, Interpreter]) -> None:
    """Raise CallError unless every backend that can be imported finds a GPU, where one is asked for.

    A framework that finds none trains on the CPU, and says nothing. A backend that cannot be imported is a row of the run.
    """
    if device != "gpu":
        return
    with ThreadPoolExecutor(max(1, len(backends))) as pool:
        known = dict(
            zip(backends, pool.map(lambda name: _examined(name, pythons[name], device), backends), strict=True)
        )
    without = [name for name, facts in known.items() if "error" not in facts and not finds_gpu(facts)]
    # A framework that is told to use a GPU alone may refuse to start without one: that is no failed import.
    without += [name for name, facts in known.items() if "error" in facts and not _gpu_nodes()]
    if without:
        said = "; ".join(f"{name}: {_spell_facts(known[name])}" for name in backends if name in without)
        raise CallError(
            f"--device gpu: no GPU is found here ({said}); `harness doctor --device gpu` looks again, --device cpu needs none"
        )


def finds_gpu(facts: Mapping[str, Any]) -> bool:
    """Whether what a backend says of itself names a device that is no CPU."""
    return any(device.lower() != "cpu" for device in facts["devices"])


def _gpu_nodes() -> bool:
    """Whether the operating system shows a GPU at all: NVIDIA's, AMD's, or that of Windows below Linux."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "kfd", "dxg"))


def _spell_facts(facts: Mapping[str, Any]) -> str:
    if "error" in facts:
        return str(facts["error"])[:160]
    versions = ", ".join(f"{name} {version}" for name, version in list(facts["versions"].items())[:1])
    build = f", built for {facts['build']}" if "build" in facts else ""
    return f"{versions}{build}, sees {', '.join(facts['devices'])}"


@lru_cache(maxsize=32)
def _examined(backend: str, interpreter: Interpreter, device: str) -> Mapping[str, Any]:
    """`examine`, once in this process: a run that needs float64 evidence asks twice."""
    return examine(backend, interpreter, device)


def machine_name() -> str:
    """The machine's processor and its cores as a folder's name: `amd-epyc-9r14-2-cores`."""
    own = machine()
    name = re.sub(r"\((r|tm)\)|\b(processor|cpu|core)\b|@.*", " ", own["processor"].lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{own['cores']}-cores"


PROBE = """
import importlib, importlib.metadata, json, sys
out = {"python": sys.version.split()[0], "versions": {}}
try:
    for name in sys.argv[2].split(","):
        module = importlib.import_module(name)
        out["versions"][name] = getattr(module, "__version__", None) or importlib.metadata.version(name)
    out |= importlib.import_module(f"backends.{sys.argv[1]}.session").environment()
except BaseException as error:
    out["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print("\\n" + json.dumps(out))
"""


def examine(backend: str, interpreter: Interpreter, device: str = "cpu", timeout: float = 180) -> dict[str, Any]:
    """What `harness doctor` says of a backend: versions and devices, or why it cannot be imported."""
    found: dict[str, Any] = {"interpreter": interpreter.path, "origin": interpreter.origin}
    command = [interpreter.path, "-P", "-c", PROBE, backend, ",".join(PACKAGES[backend])]
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
            env=worker_environment(device, 1),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return found | {"error": str(error)}
    lines = done.stdout.strip().splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError, RecursionError):
        said = None
    if not (isinstance(said, dict) and ("error" in said or _tells(said))):
        tail = done.stderr.strip().splitlines()
        return found | {"error": f"exited with status {done.returncode}: {tail[-1] if tail else 'no output'}"}
    return found | said


def _tells(said: dict[str, Any]) -> bool:
    """Whether an interpreter's answer has what it was asked for: another program may have printed something else."""
    versions, devices = said.get("versions"), said.get("devices")
    return isinstance(versions, dict) and isinstance(devices, list) and all(isinstance(d, str) for d in devices)
