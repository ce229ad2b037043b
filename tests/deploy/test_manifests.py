"""Manifests against schemas and each other; the CronJob's script with a fake kubectl."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scenesweep.jobs.shared.run_config import RunConfig
from scenesweep.model.files.model_file import open_model
from scenesweep.pipeline.settings import validated
from tests.rasters import SHARED

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERAY = yaml.safe_load((Path(__file__).parent / "kuberay.yaml").read_text())
VERSION = "1.34"


def documents(*names: str) -> list[dict[str, Any]]:
    texts = [(KUBERNETES / name).read_text() for name in names]
    return [document for text in texts for document in yaml.safe_load_all(text)]


RAY = documents("rayjob.yaml", "raycluster.yaml", "raycronjob.yaml")
CORE = documents("nightly.yaml", "storage.yaml")
JOB, CLUSTER, CRON = (document["spec"] for document in RAY)
NIGHTLY = CORE[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
CRDS = SHARED / "kuberay_crds"


@pytest.mark.parametrize("document", RAY, ids=lambda document: document["kind"])
def test_ray_objects_fit_kuberays_schema(document: dict[str, Any]) -> None:
    jsonschema.validate(document, KUBERAY)
    document = document | {"spec": document["spec"] | {"autoscaling": True}}
    with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
        jsonschema.validate(document, KUBERAY)


@pytest.mark.skipif(not CRDS.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("document", RAY, ids=lambda document: document["kind"])
def test_ray_objects_fit_kuberays_own_definitions(document: dict[str, Any]) -> None:
    """Strictly: Kubernetes drops names that the definition does not have, without a warning."""
    name = f"ray.io_{document['kind'].lower()}s.yaml.gz"
    definition = yaml.safe_load(gzip.decompress((CRDS / name).read_bytes()))
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == document["apiVersion"].removeprefix("ray.io/")
    )
    _close(schema)
    schema["properties"]["metadata"] = {}
    jsonschema.validate(document, schema)
    document = document | {"spec": document["spec"] | {"autoscaling": True}}
    with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
        jsonschema.validate(document, schema)


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


def test_pods_satisfy_the_restricted_standard() -> None:
    """All pods and the autoscaler. Only the head may call the Kubernetes API."""
    pods = [template["spec"] for template in templates(CLUSTER)]
    for pod in [*pods, JOB["submitterPodTemplate"]["spec"], NIGHTLY]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("ephemeral-storage" in c["resources"]["requests"] for c in pod["containers"])
    submitter = JOB["submitterPodTemplate"]["spec"]
    for container in [*containers(), CLUSTER["autoscalerOptions"], *submitter["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        memory = {kind: container["resources"][kind]["memory"] for kind in ("limits", "requests")}
        assert memory["limits"] == memory["requests"]
    tokens = [pod.get("automountServiceAccountToken", True) for pod in [*pods, submitter]]
    assert tokens == [True, False, False, False]


def test_kubernetes_objects_fit_its_schemas() -> None:
    """Strictly: a name that this version of Kubernetes does not have is an error."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        for template in [*templates(JOB["rayClusterSpec"]), JOB["submitterPodTemplate"]]
    ]
    assert len(pods) == 4
    for document in [*CORE, *pods]:
        kubernetes.validate(document, VERSION, strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(CORE[0] | {"spec": {"schedules": "x"}}, VERSION, strict=True)


def test_the_three_ray_objects_have_one_cluster() -> None:
    assert JOB["rayClusterSpec"] == CLUSTER
    assert CRON["jobTemplate"] == {key: value for key, value in JOB.items() if key != "jobId"}


def test_a_cluster_grows_from_nothing_asks_for_a_token_and_survives_spot_nodes() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        pod = group["template"]["spec"]
        (label,) = pod["nodeSelector"]
        assert label in {toleration["key"] for toleration in pod["tolerations"]}
    assert {container["image"] for container in containers()} == {"scenesweep:0.1.0-cuda"}


def test_a_failed_run_starts_no_second_cluster() -> None:
    """KubeRay cannot distinguish a bad scene from a lost head: both are FAILED."""
    assert JOB["backoffLimit"] == 0
    for name in ("run.yaml", "run-cpu.yaml"):
        config = validated(RunConfig, yaml.safe_load((KUBERNETES / name).read_text()))
        assert (config.allow_failed, config.quarantine_after) == ("5%", 3)


def test_versions_are_those_of_the_project() -> None:
    pinned = (DEPLOY.parent / "requirements.txt").read_text()
    assert f"\nray=={CLUSTER['rayVersion']}\n" in pinned


@pytest.mark.parametrize("name", ["run.yaml", "run-cpu.yaml"])
def test_the_configurations_fit_the_cluster_and_the_model(name: str) -> None:
    config = validated(RunConfig, yaml.safe_load((KUBERNETES / name).read_text()))
    assert config.model is not None
    config.settings.resolved(open_model(config.model).card)
    mounted = {mount["mountPath"] for mount in containers()[0]["volumeMounts"]}
    assert {*config.sources, config.out} < mounted
    (gpu,) = [g for g in CLUSTER["workerGroupSpecs"] if g["groupName"] == "gpu"]
    if name == "run.yaml":
        assert config.detect.device == "cuda"
        assert config.engine.detectors == gpu["maxReplicas"]


def test_the_config_map_has_the_files_that_are_read_from_it() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (config_map,) = kustomization["configMapGenerator"]
    assert all(
        (KUBERNETES / name).is_file()
        for name in [*kustomization["resources"], *config_map["files"]]
    )
    assert config_map["name"] == NIGHTLY["volumes"][0]["configMap"]["name"]
    assert JOB["entrypoint"].endswith("/etc/scenesweep/run.yaml")


def test_ray_up_fits_rays_own_schema() -> None:
    schema = json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray-up" / "aws.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_nodes": 3}, schema)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


BROKEN = "Unable to connect to the server: net/http: TLS handshake timeout"
EXISTS = 'Error from server (AlreadyExists): error when creating "x": rayjobs.ray.io exists'
GONE = 'Error from server (NotFound): rayjobs.ray.io "scenesweep-tonight" not found'


@pytest.mark.parametrize(
    ("created", "states", "code"),
    [
        ([""], ["", "Running", BROKEN, "Complete"], 0),
        ([""], ["Failed"], 1),
        ([""], ["Running", GONE], 1),  # the RayJob was deleted
        ([BROKEN, BROKEN, ""], ["Complete"], 0),
        ([EXISTS], ["Running", "Complete"], 0),  # an earlier pod of this Job created it
        ([BROKEN] * 10, [], 1),
    ],
)
def test_the_nightly_script_makes_a_ray_job_named_after_its_job_and_waits(
    tmp_path: Path, created: list[str], states: list[str], code: int
) -> None:
    """`created` and `states` are the answers of the API, one per call of `create` and `get`."""
    for name, answers in (("created", created), ("states", states)):
        (tmp_path / name).write_text("".join(f"{answer}\n" for answer in answers))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"""#!/bin/sh
cd {tmp_path}
case "$*" in
  *jobDeploymentStatus*) answers=states ;;
  *message*) echo some reason; exit 0 ;;
  "create -f "*) answers=created ;;
esac
answer=$(head -n 1 $answers); sed -i 1d $answers; echo "$*" >> calls
case $answer in
  *[Ss]erver*) echo "$answer" >&2; exit 1 ;;
esac
echo "$answer"
"""
    )
    kubectl.chmod(0o755)
    container = NIGHTLY["containers"][0]
    script = container["args"][0].replace("/etc/scenesweep", str(KUBERNETES))
    done = subprocess.run(
        [*container["command"], script.replace("/tmp/rayjob", f"{tmp_path}/rayjob")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL_S": "0"}
        | {"JOB_NAME": "tonight", "JOB_UID": "0a1b-2c"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum(call.startswith("create") for call in calls) == len(created)
    assert all("rayjob/scenesweep-tonight" in call for call in calls if call.startswith("get"))
    made = yaml.safe_load((tmp_path / "rayjob.yaml").read_text())
    jsonschema.validate(made, KUBERAY)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "tonight", "uid": "0a1b-2c"}
    assert made["metadata"]["name"] == "scenesweep-tonight"
    assert made["metadata"]["ownerReferences"] == [owner]
    assert made["spec"] == JOB | {"jobId": "detect-tonight"}


def test_the_script_has_the_permissions_it_needs_and_knows_its_job() -> None:
    role = next(document for document in CORE if document["kind"] == "Role")
    (rule,) = role["rules"]
    assert (rule["resources"], set(rule["verbs"])) == (["rayjobs"], {"create", "get"})
    env = {variable["name"]: variable for variable in NIGHTLY["containers"][0]["env"]}
    for name, label in (("JOB_NAME", "job-name"), ("JOB_UID", "controller-uid")):
        field = env[name]["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == f"metadata.labels['batch.kubernetes.io/{label}']"


def templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def containers() -> list[dict[str, Any]]:
    return [template["spec"]["containers"][0] for template in templates(CLUSTER)]
