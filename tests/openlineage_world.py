"""Whether events are what the specification of OpenLineage says, by its own schemas in `tests/openlineage`, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

SCHEMAS = Path(__file__).with_name("openlineage")
EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
OWN = f"{EVENT}#/$defs/BaseFacet"
# Where facets stand in an event -> the part of a schema's address that says so, and the fields that the place may have beside them.
PLACES = {
    "run": ("RunFacet", {"runId", "facets"}),
    "job": ("JobFacet", {"namespace", "name", "facets"}),
    "inputs": ("DatasetFacet", {"namespace", "name", "facets", "inputFacets"}),
    "outputs": ("DatasetFacet", {"namespace", "name", "facets", "outputFacets"}),
}
FIELDS = {"eventType", "eventTime", "producer", "schemaURL", *PLACES}


def registry() -> Registry[Any]:
    """The schemas by their addresses. Any other address fails: nothing is fetched."""
    found = [Resource.from_contents(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(SCHEMAS.glob("*.json"))]
    return Registry().with_resources((str(resource.id()), resource) for resource in found)


def problems(event: Any) -> list[str]:
    """What is wrong with one event: by the schema that it names, by those of its facets, and words of ours outside of facets."""
    schemas = registry()
    found = [f"schemaURL {event.get('schemaURL')}"] if event.get("schemaURL") != f"{EVENT}#/$defs/RunEvent" else []
    found += _against(EVENT, event, schemas, closed=False)
    found += [f"'{field}' is no field of an event" for field in sorted(set(event) - FIELDS)]
    if event.get("eventType") not in ("START", "COMPLETE"):
        found.append(f"eventType {event.get('eventType')}")
    for place, (kind, fields) in PLACES.items():
        for part in event[place] if isinstance(event.get(place), list) else [event.get(place, {})]:
            found += [f"{place}: '{field}' is no field of it" for field in sorted(set(part) - fields)]
            for name, facet, wanted in _facets(part, kind, place):
                found += [f"{place}.{name}: {problem}" for problem in _facet(name, facet, wanted, schemas)]
    return found


def problems_of(events: Any) -> list[str]:
    """The same for all events as JSON carries them, and that each run begins and ends once, for one job."""
    plain = json.loads(json.dumps(events, default=str, allow_nan=False))
    found = [f"event {number}: {problem}" for number, event in enumerate(plain) for problem in problems(event)]
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in plain:
        runs.setdefault(event["run"]["runId"], []).append(event)
    for run, told in runs.items():
        if sorted(event["eventType"] for event in told) != ["COMPLETE", "START"]:
            found.append(f"run {run}: {[event['eventType'] for event in told]}")
        if len({(event["job"]["namespace"], event["job"]["name"]) for event in told}) != 1:
            found.append(f"run {run} is one of several jobs")
    return found if plain else ["there are no events"]


def _facets(part: Any, kind: str, place: str) -> Iterator[tuple[str, Any, str]]:
    for name, facet in part.get("facets", {}).items():
        yield name, facet, kind
    side = {"inputs": "inputFacets", "outputs": "outputFacets"}.get(place, "")
    for name, facet in part.get(side, {}).items():
        yield name, facet, "OutputDatasetFacet" if place == "outputs" else "InputDatasetFacet"


def _facet(name: str, facet: Any, kind: str, schemas: Registry[Any]) -> list[str]:
    """A facet is one of the specification, in its place and without a word of ours, or bears our name and the basic schema."""
    address = str(facet.get("_schemaURL"))
    if name.startswith("scalingnote_"):
        return _against(address, facet, schemas, closed=False) if address == OWN else [f"_schemaURL {address}"]
    file, _, pointer = address.partition("#/$defs/")
    title = file.rpartition("/")[2].removesuffix(".json")
    sides = ("InputDatasetFacet", "OutputDatasetFacet")
    if pointer != title or not title.endswith(kind) or (kind not in sides and title.endswith(sides)):
        return [f"_schemaURL {address} is none of a {kind}"]
    if file not in schemas:
        return [f"{address} is no schema that is known here"]
    named = list(schemas[file].contents["properties"])
    return _against(address, facet, schemas, closed=True) + ([] if named == [name] else [f"the specification calls it {named}"])


def _against(address: str, value: Any, schemas: Registry[Any], closed: bool) -> list[str]:
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": address}
    if closed:  # the basic facet allows any field, which would let a misspelt one pass: named ones alone then
        schema = _named_alone(address, schemas)
    validator = Draft202012Validator(schema, registry=schemas, format_checker=FormatChecker())
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in validator.iter_errors(value)]


def _named_alone(address: str, schemas: Registry[Any]) -> dict[str, Any]:
    file, _, pointer = address.partition("#/$defs/")
    parts = schemas[file].contents["$defs"][pointer]["allOf"]
    named = {field for part in parts for field in part.get("properties", {})} | {"_producer", "_schemaURL"}
    return {"$ref": address, "propertyNames": {"enum": sorted(named)}}
