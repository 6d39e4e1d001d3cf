"""What there is: specs, ops, data sets and the rest by name, and the JSON Schema of a spec."""

from collections.abc import Callable, Iterable
from typing import Any

from harness import spec
from harness.backend import BACKENDS, PACKAGES
from harness.data.datasets import DATASETS
from harness.errors import CallError, SpecError
from harness.initializers import INITIALIZERS
from harness.lanes import STRATEGIES
from harness.losses import LOSSES
from harness.metrics import METRICS
from harness.optimizers import CLIPS, OPTIMIZERS, SCHEDULES
from harness.record import Kind


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _kinds(family: Iterable[type[Kind]]) -> dict[str, str]:
    return {cls.kind: f"{_signature(cls)}{_first_sentence(cls.__doc__)}" for cls in family}


def _signature(cls: type[Kind]) -> str:
    fields = ", ".join(
        name if f.is_required() else f"{name}={_spell(f.default)}" for name, f in cls.model_fields.items()
    )
    return f"({fields}) " if fields else ""


def _spell(value: object) -> str:
    return value.kind if isinstance(value, Kind) else str(value)


def _specs() -> dict[str, str]:
    found = {}
    for path in sorted(spec.directory().glob("*.yaml")):
        try:
            found[path.stem] = " ".join(spec.load(path)[0].about.split())
        except SpecError as error:
            found[path.stem] = f"cannot be read: {error.problems[0].message}"
    return found


def _datasets() -> dict[str, str]:
    names = {}
    for cls in DATASETS:
        for name in cls.model_fields["dataset"].annotation.__args__:  # type: ignore[union-attr]
            names[name] = _first_sentence(cls.__doc__)
    return names


LISTINGS: dict[str, Callable[[], dict[str, str]]] = {
    "specs": _specs,
    "ops": lambda: _kinds(spec.LAYERS),
    "backends": lambda: {name: ", ".join(PACKAGES[name]) for name in BACKENDS},
    "datasets": _datasets,
    "losses": lambda: _kinds(LOSSES),
    "optimizers": lambda: _kinds(OPTIMIZERS),
    "schedules": lambda: _kinds(SCHEDULES),
    "clips": lambda: _kinds(CLIPS),
    "initializers": lambda: _kinds(INITIALIZERS),
    "strategies": lambda: {f"{s.backend} {s.name}": f"{s.about} ({', '.join(s.lanes)})" for s in STRATEGIES.values()},
    "metrics": lambda: _kinds(METRICS),
}


def listing(what: str) -> dict[str, str]:
    """Name -> one line about it. Raises CallError."""
    if what not in LISTINGS:
        raise CallError(f"there is no list of '{what}' (lists: {', '.join(LISTINGS)})")
    return LISTINGS[what]()


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a spec; a spec's own `blocks:` are words that it cannot know."""
    schema = spec.Spec.model_json_schema(mode="validation")
    layer = schema["$defs"]["Layer"]
    own = {name: layer["properties"][name] for name in ("name", "inputs")}
    own["inputs"] = {"anyOf": [own["inputs"], {"type": "string"}]}
    alternatives = layer["properties"]["op"]["anyOf"]
    for alternative in alternatives:
        for reference in _references(alternative):
            definition = schema["$defs"][reference]
            definition["properties"] = {**definition["properties"], **own}
    schema["$defs"]["Layer"] = {"anyOf": alternatives}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "harness spec"}


def _references(alternative: dict[str, Any]) -> list[str]:
    values = alternative.get("properties", {}).values()
    forms = [form for value in values for form in value.get("anyOf", [value])]
    return [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]
