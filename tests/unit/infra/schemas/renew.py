"""Cut the schemas of Kubernetes and Compose down to what the files of infra/ need.

    python tests/unit/infra/schemas/renew.py KUBERNETES_DEFINITIONS COMPOSE_SPEC

In: `kubernetes-json-schema/v1.34.0-local-strict/_definitions.json` of the wheel kubernetes-validate
1.37.0 and `compose/config/compose_spec.json` of the wheel docker-compose 1.29.2. Out, beside this
file: kubernetes.json and compose.json, without descriptions. See README.md for the licences.
"""

import json
import sys
from pathlib import Path
from typing import Any

PREFIX = "io.k8s."
KINDS = (
    "api.batch.v1.CronJob",
    "api.batch.v1.Job",
    "api.core.v1.ConfigMap",
    "api.core.v1.PersistentVolumeClaim",
    "api.core.v1.PodTemplateSpec",
    "api.core.v1.Secret",
    "api.core.v1.Service",
    "api.core.v1.ServiceAccount",
    "api.networking.v1.NetworkPolicy",
    "api.rbac.v1.Role",
    "api.rbac.v1.RoleBinding",
)
VOLUMES = {"name", "configMap", "emptyDir", "nfs", "persistentVolumeClaim", "projected", "secret"}
"""Kinds of volumes that are kept; using another one fails the test until it is added here."""


def cut(node: Any) -> Any:
    """Return a schema without what does not validate, its references made local."""
    if isinstance(node, list):
        return [cut(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: cut(value)
        for key, value in node.items()
        if not ((key == "description" and isinstance(value, str)) or key.startswith("x-kubernetes"))
    }
    if PREFIX in str(kept.get("$ref")):
        kept["$ref"] = "#/$defs/" + kept["$ref"].rpartition("/")[2].removeprefix(PREFIX)
    return kept


def reachable(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the kinds and all that they refer to."""
    found: dict[str, Any] = {}
    waiting = list(KINDS)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        schema = definitions[PREFIX + name]
        properties = schema.get("properties", {})
        if name in KINDS:
            properties.pop("status", None)
        properties.pop("managedFields", None)
        if name == "api.core.v1.Volume":
            schema["properties"] = {key: properties[key] for key in sorted(VOLUMES)}
        found[name] = cut(schema)
        waiting += [part.split('"')[0] for part in json.dumps(found[name]).split("#/$defs/")[1:]]
    return {name: found[name] for name in sorted(found)}


def write(name: str, schema: dict[str, Any]) -> None:
    """Write a schema compactly, broken into lines that a diff can show."""
    lines = json.dumps(schema, sort_keys=True, separators=(",", ":")).replace("},", "},\n")
    Path(__file__).with_name(name).write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    kubernetes, compose = (json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:])
    write("kubernetes.json", {"$defs": reachable(kubernetes["$defs"])})
    compose.pop("id", None)  # relative, so nothing could refer to it
    write("compose.json", cut(compose))
