"""The built overlays against schemas, the security standard and each other."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.settings import validated
from tests.deploy.overlays import (
    COMPONENTS,
    DEPLOY,
    KUBERNETES,
    OVERLAYS,
    Document,
    built,
    built_with,
    needs_kubectl,
    one,
    pod_templates,
    pods_of,
    template_of,
)
from tests.rasters import SHARED

KUBERAY = yaml.safe_load((Path(__file__).parent / "kuberay.yaml").read_text())
CRDS = SHARED / "kuberay_crds"
VERSION = "1.34"
OTHERS = ("karpenter.sh/v1", "cloud.google.com/v1", "kueue.x-k8s.io/v1beta1")
"""API versions of objects whose schema no package contains. docs/cluster.md names them."""
MONITORING = "monitoring.coreos.com/v1"

pytestmark = needs_kubectl


def with_components(tmp_path: Path, overlay: str, *names: str) -> tuple[Document, ...]:
    return built_with(tmp_path, overlay, components=[f"../components/{name}" for name in names])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_objects_fit_kuberays_schema(overlay: str) -> None:
    document = one(built(overlay), "RayCronJob")
    jsonschema.validate(document, KUBERAY)
    document = document | {"spec": document["spec"] | {"autoscaling": True}}
    with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
        jsonschema.validate(document, KUBERAY)


@pytest.mark.skipif(not CRDS.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_objects_fit_kuberays_own_definitions(overlay: str, tmp_path: Path) -> None:
    """Strictly: Kubernetes drops names that the definition does not have, without a warning."""
    documents = with_components(tmp_path, overlay, "cluster")
    job: Document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": template_of(documents)}
    for document in (one(documents, "RayCronJob"), one(documents, "RayCluster"), job):
        schema = validator(document["kind"])
        schema.validate(document)
        wrong = document | {"spec": document["spec"] | {"autoscaling": True}}
        with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
            schema.validate(wrong)


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return KubeRay's schema of a kind, in which unknown names are errors."""
    text = gzip.decompress((CRDS / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes())
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
        if version["name"] == "v1"
    )
    _close(schema)
    schema["properties"]["metadata"] = {}
    return jsonschema.Draft202012Validator(schema)


def _close(schema: Any) -> None:
    """Make unknown names an error at every depth of a schema."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    elif isinstance(schema, dict):
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and not open_ended:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_objects_fit_its_schemas(overlay: str, tmp_path: Path) -> None:
    """Strictly: a name that this version of Kubernetes does not have is an error."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    documents = with_components(tmp_path, overlay, "alerts", "kueue")
    checked = [{"kind": "Pod", **template} for template in pod_templates(template_of(documents))]
    assert len(checked) == 4
    for document in documents:
        version = document["apiVersion"]
        if version in (*OTHERS, MONITORING) or version == "ray.io/v1":
            continue
        checked.append(document)
    for document in checked:
        named = {"apiVersion": "v1", "metadata": {"name": "pod"}} | document
        kubernetes.validate(named, VERSION, strict=True)
    cron = one(documents, "CronJob")
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(cron | {"spec": {"schedules": "x"}}, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_meets_the_restricted_standard(overlay: str, tmp_path: Path) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, for every container."""
    documents = with_components(tmp_path, overlay, "alerts")
    containers = [template_of(documents)["rayClusterSpec"]["autoscalerOptions"]]
    for pod in pods_of(documents):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume} - {"name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
        containers += [*spec["containers"], *spec.get("initContainers", [])]
    assert len(containers) == 7
    for container in containers:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for kind in ("requests", "limits"):
            assert {"memory", "ephemeral-storage"} <= set(container["resources"][kind])
        memory = {kind: container["resources"][kind]["memory"] for kind in ("limits", "requests")}
        assert memory["limits"] == memory["requests"]
    labels = one(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_and_budget_select_the_pods_that_they_protect(overlay: str) -> None:
    documents = built(overlay)
    policy, budget = one(documents, "NetworkPolicy"), one(documents, "PodDisruptionBudget")
    everywhere = policy["spec"]["podSelector"]["matchLabels"].items()
    head = budget["spec"]["selector"]["matchLabels"].items()
    labels = [pod["metadata"]["labels"].items() for pod in pods_of(documents)]
    assert all(everywhere <= of_pod for of_pod in labels)
    assert [head <= of_pod for of_pod in labels] == [True, False, False, False, False]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_the_identity_of_the_cloud_and_no_stored_key(overlay: str) -> None:
    documents = built(overlay)
    job = template_of(documents)
    head, *workers, submitter = (template["spec"] for template in pod_templates(job))
    assert {pod["serviceAccountName"] for pod in (head, *workers)} == {"scenesweep-run"}
    mounted = [pod.get("automountServiceAccountToken") for pod in (head, *workers, submitter)]
    assert mounted == [True, False, False, False]  # only the autoscaler calls Kubernetes
    account = one(documents, "ServiceAccount", "scenesweep-run")["metadata"]
    assert bool(account.get("annotations")) == (overlay != "disk")
    assert not [document for document in documents if document["kind"] == "Secret"]


@pytest.mark.parametrize("overlay", ["s3", "gcs", "azure"])
def test_workers_prefer_spot_nodes_and_fall_back_to_on_demand(overlay: str) -> None:
    documents = built(overlay)
    groups = template_of(documents)["rayClusterSpec"]["workerGroupSpecs"]
    for group in groups:
        ((key, value),) = group["template"]["spec"]["nodeSelector"].items()
        if overlay == "gcs":
            assert key == "cloud.google.com/compute-class"
            rules = one(documents, "ComputeClass", value)["spec"]["priorities"]
            assert [rule["spot"] for rule in rules] == [True, False]
            continue
        pool = one(documents, "NodePool", f"scenesweep-{value}")["spec"]["template"]
        assert pool["metadata"]["labels"] == {key: value}
        (capacity,) = (
            requirement["values"]
            for requirement in pool["spec"]["requirements"]
            if requirement["key"] == "karpenter.sh/capacity-type"
        )
        assert capacity == ["spot", "on-demand"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_digest_reaches_every_container(overlay: str, tmp_path: Path) -> None:
    images = [
        {"name": "registry.example.com/scenesweep", "digest": f"sha256:{'0' * 64}"},
        {"name": "alpine/kubectl", "digest": f"sha256:{'1' * 64}"},
    ]
    components = [f"../components/{name}" for name in ("alerts", "cluster")]
    documents = built_with(tmp_path, overlay, images=images, components=components)
    used = set(re.findall(r'"image": "([^"]*)"', json.dumps(documents)))
    assert used == {f"{image['name']}@{image['digest']}" for image in images}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_has_its_time_limits_and_its_cluster_is_deleted(overlay: str) -> None:
    job = template_of(built(overlay))
    assert job["backoffLimit"] == 0  # KubeRay cannot distinguish a bad scene from a lost head
    assert job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert "shutdownAfterJobFinishes" not in job  # KubeRay refuses it with deletion rules
    rules = job["deletionStrategy"]["deletionRules"]
    assert {rule["policy"] for rule in rules} == {"DeleteCluster"}
    kept = {
        rule["condition"].get("jobStatus", "deadline"): rule["condition"]["ttlSeconds"]
        for rule in rules
    }
    assert kept == {"SUCCEEDED": 0, "FAILED": 3600, "deadline": 3600}
    cron = one(built(overlay), "CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > job["activeDeadlineSeconds"]
    assert one(built(overlay), "RayCronJob")["spec"]["suspend"] is True


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_grows_from_nothing_and_asks_for_a_token(overlay: str) -> None:
    cluster = template_of(built(overlay))["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    pinned = (DEPLOY.parent / "requirements.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in pinned


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_configuration_fits_the_cluster_and_the_model(
    overlay: str, kind: str, tmp_path: Path
) -> None:
    names = ["cpu"] if kind == "cpu" else []
    documents = with_components(tmp_path, overlay, *names)
    job = template_of(documents)
    text = one(documents, "ConfigMap", "scenesweep-config")["data"]["run.yaml"]
    config = validated(RunConfig, yaml.safe_load(text))
    assert config.model is not None
    config.settings.resolved(open_model(config.model).card)
    assert (config.allow_failed, config.quarantine_after) == ("5%", 3)
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["scenesweep", "detect", "--config", "/etc/scenesweep/run.yaml"]
    assert words[4] == "--out"
    schemes = {"s3": "s3://", "gcs": "gs://", "azure": "az://", "disk": "/"}
    assert all(word.startswith(schemes[overlay]) for word in words[5:])
    groups = {group["groupName"]: group for group in job["rayClusterSpec"]["workerGroupSpecs"]}
    assert set(groups) == ({"cpu"} if kind == "cpu" else {"gpu", "cpu"})
    if kind == "gpu":
        assert config.detect.device == "cuda"
        assert config.engine.detectors == groups["gpu"]["maxReplicas"]
    else:
        (container,) = groups["cpu"]["template"]["spec"]["containers"]
        cores = int(container["resources"]["requests"]["cpu"])
        assert config.detect.device == "cpu"
        assert config.engine.detectors == groups["cpu"]["maxReplicas"] * cores
    for template in list(pod_templates(job))[:-1]:
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        assert ("/out" in {mount["mountPath"] for mount in mounts}) == (overlay == "disk")


def test_kueue_gets_a_suspended_job_of_a_fixed_size(tmp_path: Path) -> None:
    """Kueue refuses RayJobs with autoscaling, and those that keep their cluster."""
    documents = with_components(tmp_path, "s3", "kueue")
    job = template_of(documents)
    assert job["suspend"] is job["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in job
    assert job["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    gpu = job["rayClusterSpec"]["workerGroupSpecs"][0]
    assert gpu["replicas"] == gpu["minReplicas"] == gpu["maxReplicas"] > 0
    pod = one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    env = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    assert env["QUEUE"] == one(documents, "LocalQueue")["metadata"]["name"]
    jsonschema.validate(one(documents, "RayCronJob"), KUBERAY)


def test_the_permanent_cluster_is_that_of_a_run(tmp_path: Path) -> None:
    documents = with_components(tmp_path, "gcs", "cluster")
    assert one(documents, "RayCluster")["spec"] == template_of(documents)["rayClusterSpec"]


def test_every_overlay_and_component_is_tested() -> None:
    for folder, names in (("overlays", OVERLAYS), ("components", COMPONENTS)):
        assert {path.name for path in (KUBERNETES / folder).iterdir()} == set(names)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_ray_up_fits_rays_own_schema(cloud: str) -> None:
    schema = json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray-up" / f"{cloud}.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_nodes": 3}, schema)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["provider"]["type"] == cloud


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_of_figures_reads_the_output_of_the_runs(overlay: str, tmp_path: Path) -> None:
    documents = with_components(tmp_path, overlay, "alerts")
    out = one(documents, "ConfigMap", "scenesweep-environment")["data"]["SCENESWEEP_OUT"]
    assert f" --out {out} " in template_of(documents)["entrypoint"]
    (container,) = one(documents, "Deployment", "scenesweep-metrics")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["command"][:3] == ["scenesweep", "metrics", "$(SCENESWEEP_OUT)"]
    assert {"configMapRef": {"name": "scenesweep-environment"}} in container["envFrom"]
