"""Manifests against schemas and each other; the nightly script against a stand-in kubectl."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.night import Night
from model.file import open_model
from pipeline.settings import validated

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERAY = yaml.safe_load((Path(__file__).parent / "kuberay.yaml").read_text())
VERSION = "1.34"


def documents(*names: str) -> list[dict[str, Any]]:
    texts = [(KUBERNETES / name).read_text() for name in names]
    return [one for text in texts for one in yaml.safe_load_all(text)]


RAY = documents("rayjob.yaml", "raycluster.yaml", "raycronjob.yaml")
CORE = documents("nightly.yaml", "storage.yaml")
JOB, CLUSTER, CRON = (one["spec"] for one in RAY)


@pytest.mark.parametrize("document", RAY, ids=lambda one: one["kind"])
def test_ray_objects_fit_kuberays_schema(document: dict[str, Any]) -> None:
    jsonschema.validate(document, KUBERAY)
    document = document | {"spec": document["spec"] | {"autoscaling": True}}
    with pytest.raises(jsonschema.ValidationError, match="autoscaling"):
        jsonschema.validate(document, KUBERAY)


def test_kubernetes_objects_fit_its_schemas() -> None:
    """Strictly: a name that the version does not know is an error."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        for template in templates(JOB["rayClusterSpec"])
    ]
    assert len(pods) == 3
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
        assert label in {one["key"] for one in pod["tolerations"]}
    assert {one["image"] for one in containers()} == {"scenesweep:0.1.0-cuda"}
    for one in containers():
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["resources"]["requests"]["memory"] == one["resources"]["limits"]["memory"]


def test_a_failed_night_starts_no_second_cluster() -> None:
    """KubeRay cannot tell a bad scene from a lost head: both are FAILED."""
    assert JOB["backoffLimit"] == 0
    for name in ("night.yaml", "night-cpu.yaml"):
        night = validated(Night, yaml.safe_load((KUBERNETES / name).read_text()))
        assert (night.allow_failed, night.quarantine_after) == ("5%", 3)


def test_versions_are_those_of_the_project() -> None:
    pinned = (DEPLOY.parent / "requirements.txt").read_text()
    assert f"\nray=={CLUSTER['rayVersion']}\n" in pinned


@pytest.mark.parametrize("name", ["night.yaml", "night-cpu.yaml"])
def test_the_nights_fit_the_cluster_and_the_model(name: str) -> None:
    night = validated(Night, yaml.safe_load((KUBERNETES / name).read_text()))
    assert night.model is not None
    night.settings.resolved(open_model(night.model).card)
    mounted = {one["mountPath"] for one in containers()[0]["volumeMounts"]}
    assert {*night.sources, night.out} < mounted
    (gpu,) = [g for g in CLUSTER["workerGroupSpecs"] if g["groupName"] == "gpu"]
    if name == "night.yaml":
        assert night.detect.device == "cuda"
        assert night.engine.detectors == gpu["maxReplicas"]


def test_the_config_map_holds_what_is_read_from_it() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    assert all(
        (KUBERNETES / name).is_file() for name in [*kustomization["resources"], *made["files"]]
    )
    pod = CORE[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert made["name"] == pod["volumes"][0]["configMap"]["name"]
    assert JOB["entrypoint"].endswith("/etc/scenesweep/night.yaml")


def test_ray_up_fits_rays_own_schema() -> None:
    schema = json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray-up" / "aws.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_nodes": 3}, schema)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


@pytest.mark.parametrize(
    ("known", "states", "code"),
    [
        ("", ["", "Running", "error", "Complete"], 0),
        ("", ["Failed"], 1),
        ("rayjob.ray.io/scenesweep", ["Complete"], 0),
    ],
)
def test_the_nightly_script_makes_one_ray_job_a_day_and_waits(
    tmp_path: Path, known: str, states: list[str], code: int
) -> None:
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"""#!/bin/sh
cd {tmp_path}
case "$*" in
  *jobDeploymentStatus*) state=$(head -n 1 states); sed -i 1d states
    [ "$state" != error ] && echo "$state" ;;
  *message*) echo some reason ;;
  "get rayjob/"*) [ -n "{known}" ] && echo "{known}" ;;
  "create -f -") cat > created.yaml ;;
esac
"""
    )
    kubectl.chmod(0o755)
    container = CORE[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    script = container["args"][0].replace("/etc/scenesweep", str(KUBERNETES))
    done = subprocess.run(
        [*container["command"], script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL_S": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "created.yaml").exists() == (not known)
    if not known:
        made = yaml.safe_load((tmp_path / "created.yaml").read_text())
        jsonschema.validate(made, KUBERAY)
        day = made["metadata"]["name"].removeprefix("scenesweep-")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
        assert made["spec"] == JOB | {"jobId": f"detect-{day}"}


def templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def containers() -> list[dict[str, Any]]:
    return [one["spec"]["containers"][0] for one in templates(CLUSTER)]
