"""Specs in memory -> programs and live sessions, for tests."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, spec_of

from harness import initial, spec
from harness.backend import BACKENDS, PACKAGES, Session
from harness.data.inputs import cast, prepare
from harness.graph import Program
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.runs import describe

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

REQUIRED = tuple(filter(None, os.environ.get("HARNESS_TEST_BACKENDS", "").split(",")))
"""Backends that this environment must have (nox's tests_backend): a missing one is an error, not a skip."""
INSTALLED = tuple(b for b in BACKENDS if b in REQUIRED or all(importlib.util.find_spec(name) for name in PACKAGES[b]))
EACH = [
    pytest.param(b, marks=() if b in INSTALLED else pytest.mark.skip(reason=f"{PACKAGES[b][0]} is not installed"))
    for b in BACKENDS
]
"""Every backend; those whose framework is missing are skipped, and say so."""


def program_of(text: Mapping[str, object] | str, **options: Any) -> Program:
    """A spec as a mapping or as YAML, resolved."""
    loaded, source = spec.loads(text if isinstance(text, str) else json.dumps(text))
    return compile_spec(loaded, source, **options)


@cache
def program_of_case(name: str) -> Program:
    """A case's program, once: tests are collected by what it is, in several modules."""
    return program_of(spec_of(CASES[name]))


@dataclass
class Live:
    """A session with the arrays that it was given."""

    program: Program
    session: Session
    inputs: Arrays
    parameters: Arrays


def as_started(backend: str) -> None:
    """Set what programs of this process have changed for all of it back to what a fresh process has."""
    if backend == "torch":
        import torch  # noqa: PLC0415 - where it is installed

        torch.set_default_dtype(torch.float32)
    elif backend == "jax":
        import jax  # noqa: PLC0415

        jax.config.update("jax_enable_x64", False)
    else:
        import keras  # noqa: PLC0415

        keras.config.set_floatx("float32")
        # Keras keeps the dtype of the first layer of a process as its policy, whatever floatx becomes later.
        keras.utils.clear_session(free_memory=False)


def live(
    backend: str, program: Program, folder: Path, precision: str = "float64", text: str | None = None, *,
    observe: bool = False, strategy: str | None = None,
) -> Live:  # fmt: skip
    """An emitted program, or the given text of one, imported into this process, its parameters loaded."""
    variant = "_observed" if observe else f"_{strategy}" if strategy else ""
    name = f"{program.name}_{backend}_{folder.name.replace('-', '_')}{variant}"
    path = folder / f"{name}.py"
    path.write_text(text or emitted(program, backend, precision, observe=observe, strategy=strategy))
    as_started(backend)
    made = importlib.util.spec_from_file_location(name, path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module
    made.loader.exec_module(module)
    sessions = importlib.import_module(f"backends.{backend}.session")
    made_by = sessions.SESSIONS.get(strategy, sessions.Session)
    session = made_by(module, describe(program) | {"observe": observe, "strategy": strategy})
    data = prepare(program)
    inputs = cast({f"train.{n}": a for n, a in data.train.items()}, precision)
    inputs |= cast({"order": data.order, **data.noise}, precision)
    parameters = cast(initial.parameters(program), precision)
    session.load(parameters)
    return Live(program, session, inputs, parameters)


def drawn(inputs: Arrays) -> Arrays:
    """What is drawn for each step: the order of examples, noise."""
    return {name: array for name, array in inputs.items() if not name.startswith("train.")}
