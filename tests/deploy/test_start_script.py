"""The script of the CronJob with a fake kubectl."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy.overlays import KUBERNETES
from tests.deploy.test_manifests import KUBERAY

SCRIPT = KUBERNETES / "base" / "start.sh"
JOB = yaml.safe_load((KUBERNETES / "base" / "template.yaml").read_text())["spec"]["jobTemplate"]
BROKEN = "Unable to connect to the server: net/http: TLS handshake timeout"
EXISTS = 'Error from server (AlreadyExists): error when creating "x": rayjobs.ray.io exists'
GONE = 'Error from server (NotFound): rayjobs.ray.io "scenesweep-tonight" not found'
TEMPLATE = json.dumps(JOB)
GOOD = "Complete SUCCEEDED"


def start(
    folder: Path, *, template: list[str], created: list[str], states: list[str], queue: str = ""
) -> tuple[int, list[str]]:
    """Run the script; `template`, `created` and `states` are answers of the API, one per call."""
    answers = {"template": template, "created": created, "states": states, "deleted": [""]}
    for name, lines in answers.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    kubectl = folder / "kubectl"
    kubectl.write_text(
        f"""#!/bin/sh
cd {folder}
case "$*" in
  *jobDeploymentStatus*) answers=states ;;
  *message*) echo some reason; exit 0 ;;
  "get raycronjob "*) answers=template ;;
  "create -f "*) answers=created ;;
  "delete "*) answers=deleted ;;
esac
answer=$(head -n 1 $answers); sed -i 1d $answers; echo "$*" >> calls
case $answer in
  *[Ss]erver*) echo "$answer" >&2; exit 1 ;;
esac
printf '%s\\n' "$answer"
"""
    )
    kubectl.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "POLL_S": "0", "TMPDIR": str(folder)}
    done = subprocess.run(
        ["sh", SCRIPT],
        env=environment | {"JOB_NAME": "tonight", "JOB_UID": "0a1b-2c", "QUEUE": queue},
        capture_output=True,
        text=True,
    )
    calls = folder / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    ("created", "states", "code"),
    [
        ([""], [" ", "Running PENDING", BROKEN, GOOD], 0),
        ([""], ["Failed FAILED"], 1),
        ([""], ["Failed "], 1),  # a deadline
        ([""], ["Running RUNNING", GONE], 1),  # the RayJob was deleted
        ([BROKEN, BROKEN, ""], [GOOD], 0),
        ([EXISTS], ["Running RUNNING", GOOD], 0),  # an earlier pod of this Job created it
        ([BROKEN] * 10, [], 1),
    ],
)
def test_it_makes_a_ray_job_named_after_its_job_and_waits(
    tmp_path: Path, created: list[str], states: list[str], code: int
) -> None:
    ended, calls = start(tmp_path, template=[BROKEN, TEMPLATE], created=created, states=states)
    assert ended == code
    assert sum(call.startswith("create") for call in calls) == len(created)
    assert all("rayjob/scenesweep-tonight" in call for call in calls if "rayjob/" in call)
    made = json.loads((tmp_path / "rayjob.json").read_text())
    jsonschema.validate(made, KUBERAY)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "tonight", "uid": "0a1b-2c"}
    assert made["metadata"]["name"] == "scenesweep-tonight"
    assert made["metadata"]["ownerReferences"] == [owner]
    assert "kueue.x-k8s.io/queue-name" not in made["metadata"]["labels"]
    assert made["spec"] == JOB


def test_a_run_that_somebody_stopped_is_a_failure_and_leaves_no_cluster(tmp_path: Path) -> None:
    """KubeRay calls it Complete, and its deletion rules know only SUCCEEDED and FAILED."""
    ended, calls = start(tmp_path, template=[TEMPLATE], created=[""], states=["Complete STOPPED"])
    assert ended == 1
    assert calls[-1] == "delete --wait=false rayjob/scenesweep-tonight"


def test_it_puts_the_job_into_a_queue(tmp_path: Path) -> None:
    states = ["Suspended ", GOOD]
    ended, _ = start(tmp_path, template=[TEMPLATE], created=[""], states=states, queue="nights")
    made = json.loads((tmp_path / "rayjob.json").read_text())
    assert ended == 0
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nights"


def test_it_has_the_permissions_it_needs_and_knows_its_job() -> None:
    accounts = yaml.safe_load_all((KUBERNETES / "base" / "accounts.yaml").read_text())
    role = next(document for document in accounts if document["kind"] == "Role")
    allowed = {rule["resources"][0]: set(rule["verbs"]) for rule in role["rules"]}
    assert allowed == {"raycronjobs": {"get"}, "rayjobs": {"create", "get", "delete"}}
    cron = yaml.safe_load((KUBERNETES / "base" / "nightly.yaml").read_text())
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    env = {variable["name"]: variable for variable in pod["containers"][0]["env"]}
    for name, label in (("JOB_NAME", "job-name"), ("JOB_UID", "controller-uid")):
        field = env[name]["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == f"metadata.labels['batch.kubernetes.io/{label}']"
