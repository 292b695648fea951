"""JSON schemas of KubeRay 1.5's RayCluster and RayJob with the fields that we use: any other field in a manifest is a mistake.

They follow the fields of the API `ray.io/v1`; pod templates are Kubernetes' own and only checked where it matters.
"""

from __future__ import annotations

from typing import Any

QUANTITY = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9.]+([KMGTPE]i?|[numk])?$"}]}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def _exactly(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


RESOURCES = _exactly(
    {name: {"type": "object", "additionalProperties": QUANTITY} for name in ("requests", "limits")},
    "requests",
    "limits",
)
CONTAINER = {
    "type": "object",
    "required": ["name", "image", "resources", "securityContext"],
    "properties": {
        "resources": RESOURCES,
        "ports": {
            "type": "array",
            "items": _exactly(
                {"name": {"type": "string", "maxLength": 15}, "containerPort": COUNT}, "name", "containerPort"
            ),
        },
    },
}
TEMPLATE = _exactly(
    {
        "metadata": _exactly({"labels": TEXTS}, "labels"),
        "spec": {
            "type": "object",
            "required": ["containers", "securityContext"],
            "properties": {"containers": {"type": "array", "minItems": 1, "maxItems": 1, "items": CONTAINER}},
        },
    },
    "metadata",
    "spec",
)
HEAD = _exactly({"rayStartParams": TEXTS, "template": TEMPLATE}, "rayStartParams", "template")
GROUP = _exactly(
    {
        "groupName": {"type": "string", "pattern": "^[a-z][a-z-]*$"},
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": TEMPLATE,
    },
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
)
AUTOSCALER = _exactly(
    {
        "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "idleTimeoutSeconds": COUNT,
        "resources": RESOURCES,
    }
)
CLUSTER = _exactly(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "authOptions": _exactly({"mode": {"enum": ["token", "disabled"]}}, "mode"),
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": AUTOSCALER,
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": GROUP},
    },
    *("rayVersion", "headGroupSpec", "workerGroupSpecs"),
)
JOB = _exactly(
    {
        "entrypoint": {"type": "string"},
        "runtimeEnvYAML": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": CLUSTER,
    },
    *("entrypoint", "rayClusterSpec"),
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a whole object of that kind."""
    name = {"type": "string", "pattern": "^[a-z][a-z0-9-]*$", "maxLength": 47}  # KubeRay adds to it
    return _exactly(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": _exactly({"name": name, "labels": TEXTS}, "name"),
            "spec": spec,
        },
        *("apiVersion", "kind", "metadata", "spec"),
    )


RAY_CLUSTER, RAY_JOB = resource("RayCluster", CLUSTER), resource("RayJob", JOB)
