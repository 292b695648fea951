"""The manifests in deploy/kuberay fit KubeRay's schema, each other, and the resources that drover asks for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from drover.deploy import catalogue
from drover.deploy.catalogue import RunOptions, parse
from drover.deploy.cluster.learner_group import rank_resources
from drover.deploy.cluster.worker import pools_of
from drover.deploy.config import RunConfig
from tests.deploy.kuberay_schema import RAY_CLUSTER, RAY_JOB

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
ROLES = ("rollout", "reward", "learner")
SECRET = re.compile("PASSWORD|TOKEN|AUTH|SECRET|KEY")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def one(name: str, kind: str, called: str = "") -> dict[str, Any]:
    found = [d for d in documents(name) if d["kind"] == kind and called in ("", d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} in {name}"
    return found[0]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return one("raycluster.yaml", "RayCluster")["spec"]


@pytest.fixture(scope="module")
def started() -> tuple[RunConfig, RunOptions]:
    """The run that the RayJob starts."""
    command, verb, recipe, *arguments = shlex.split(one("rayjob.yaml", "RayJob")["spec"]["entrypoint"])
    assert (command, verb) == ("drover", "train")
    return parse(catalogue.find(recipe), arguments)


def group(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in cluster["workerGroupSpecs"] if one["groupName"] == name)
    return found


def pod(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """("FILE: CONTAINER", pod spec, container) for every container of every manifest."""
    for path in sorted(KUBERAY.glob("*.yaml")):
        for document in documents(path.name):
            for spec in pods(document):
                for container in spec["containers"]:
                    yield f"{path.name}: {container['name']}", spec, container


def pods(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def test_cluster_and_job_have_the_fields_that_kuberay_takes() -> None:
    Draft202012Validator(RAY_CLUSTER).validate(one("raycluster.yaml", "RayCluster"))
    Draft202012Validator(RAY_JOB).validate(one("rayjob.yaml", "RayJob"))


def test_the_jobs_own_cluster_is_the_one_that_stays(cluster: dict[str, Any]) -> None:
    assert one("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"] == cluster


def test_each_role_finds_the_mark_of_its_own_group(cluster: dict[str, Any], started: tuple[RunConfig, Any]) -> None:
    assert [one["groupName"] for one in cluster["workerGroupSpecs"]] == list(ROLES)
    for name in ROLES:
        quoted = group(cluster, name)["rayStartParams"]["resources"]
        assert json.loads(json.loads(quoted)) == {name: 1}, "KubeRay passes it to a shell"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    asked = {pool.group for pool in pools_of(started[0], gpus=1.0)}
    assert asked | set(rank_resources(1, 1.0, set(ROLES)).keys() & set(ROLES)) == set(ROLES)


def test_groups_scale_apart_and_the_run_fits_before_and_after(
    cluster: dict[str, Any], started: tuple[RunConfig, RunOptions]
) -> None:
    config, options = started
    pools = {pool.group: pool for pool in pools_of(config, gpus=1.0)}
    assert {one["groupName"]: one["minReplicas"] < one["maxReplicas"] for one in cluster["workerGroupSpecs"]} == {
        "rollout": True,
        "reward": True,
        "learner": False,  # ranks do not change while a run runs
    }
    for name, pool in pools.items():
        assert fits(group(cluster, name), "minReplicas", pool.cpus, pool.gpus) >= pool.size
    ranks = fits(group(cluster, "learner"), "minReplicas", config.pools.learner_threads, 1.0)
    assert ranks >= config.pools.learner_ranks
    ((pool_name, _, bound),) = (text.partition("=") for text in options.autoscale)
    least, most = (int(part) for part in bound.split(":"))
    actors = pools[pool_name]
    assert least == actors.size
    assert fits(group(cluster, pool_name), "maxReplicas", actors.cpus, actors.gpus) == most


def fits(group: dict[str, Any], replicas: str, cpus: float, gpus: float) -> int:
    """The number of roles with that request that fit on that many nodes of the group."""
    limits = pod(group)["containers"][0]["resources"]["limits"]
    each = [float(limits["cpu"]) // cpus, *([float(limits["nvidia.com/gpu"]) // gpus] if gpus else [])]
    return int(min(each)) * int(group[replicas])


def test_a_job_that_is_started_again_goes_on_where_it_was(started: tuple[RunConfig, RunOptions]) -> None:
    job, options = one("rayjob.yaml", "RayJob")["spec"], started[1]
    assert options.resume_if_begun
    assert options.run_name
    assert job["backoffLimit"] == 3
    assert job["shutdownAfterJobFinishes"] is True


def test_run_folders_are_on_storage_that_head_and_learner_share(
    cluster: dict[str, Any], started: tuple[RunConfig, RunOptions]
) -> None:
    claims = {one["metadata"]["name"]: one["spec"] for one in documents("storage.yaml")}
    for node in (cluster["headGroupSpec"], group(cluster, "learner")):
        (volume,) = pod(node)["volumes"]
        (mount,) = pod(node)["containers"][0]["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": str(started[1].runs_dir)}
        assert claims[volume["persistentVolumeClaim"]["claimName"]]["accessModes"] == ["ReadWriteMany"]


def test_prometheus_finds_the_driver_where_the_run_listens(
    cluster: dict[str, Any], started: tuple[RunConfig, RunOptions]
) -> None:
    monitor, options = one("pod_monitor.yaml", "PodMonitor", "drover")["spec"], started[1]
    ports = {port["name"]: port["containerPort"] for port in pod(cluster["headGroupSpec"])["containers"][0]["ports"]}
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert options.metrics_host == "0.0.0.0"
    assert ports[endpoint["port"]] == options.metrics_port == 9464
    assert (endpoint["path"], endpoint["honorLabels"]) == ("/metrics/all", True)
    assert (
        monitor["selector"]["matchLabels"].items() >= cluster["headGroupSpec"]["template"]["metadata"]["labels"].items()
    )
    let_in = {port["port"] for rule in policy("drover-ray")["ingress"] for port in rule.get("ports", [])}
    assert let_in == {8265, options.metrics_port, ports["metrics"]}


def test_redis_answers_ray_pods_alone(cluster: dict[str, Any]) -> None:
    redis = one("redis.yaml", "StatefulSet")["spec"]
    spec = policy("drover-redis")
    assert spec["podSelector"]["matchLabels"].items() <= redis["template"]["metadata"]["labels"].items()
    (rule,) = spec["ingress"]
    assert [port["port"] for port in rule["ports"]] == [6379]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchExpressions"] == [{"key": "ray.io/cluster", "operator": "Exists"}]
    for node in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert peer["podSelector"]["matchLabels"].items() <= node["template"]["metadata"]["labels"].items()


def policy(name: str) -> dict[str, Any]:
    return one("network_policy.yaml", "NetworkPolicy", name)["spec"]


def test_no_secret_is_in_a_manifest_and_tokens_are_checked(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert not any(d["kind"] == "Secret" for path in KUBERAY.glob("*.yaml") for d in documents(path.name))
    for where, _, container in containers():
        env = {entry["name"]: entry for entry in container.get("env", [])}
        for name, entry in env.items():
            if SECRET.search(name):
                assert set(entry["valueFrom"]) == {"secretKeyRef"}, f"{where}: {name}"
            for password in re.findall(r"://[^@/]*:([^@]*)@", entry.get("value", "")):
                assert password == "$(REDIS_PASSWORD)", f"{where}: {name}"
                assert list(env).index("REDIS_PASSWORD") < list(env).index(name), "Kubernetes expands earlier ones only"


def test_every_container_is_bounded_and_runs_without_privileges() -> None:
    seen = 0
    for where, spec, container in containers():
        seen += 1
        assert container["resources"]["requests"] == container["resources"]["limits"], where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
    assert seen == 9  # twice head and three groups, and Redis


def test_redis_keeps_its_log_on_a_volume_of_its_own() -> None:
    spec = one("redis.yaml", "StatefulSet")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (claim,) = spec["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in container["volumeMounts"]
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= container.keys()
    lines = (KUBERAY / "redis.conf").read_text().splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction", "dir /data"} <= set(lines)
    one("redis.yaml", "Service", spec["serviceName"])


def test_kustomize_names_files_that_are_there() -> None:
    (wanted,) = documents("kustomization.yaml")
    files = [*wanted["resources"], *(name for made in wanted["configMapGenerator"] for name in made["files"])]
    assert [name for name in files if not (KUBERAY / name).is_file()] == []
