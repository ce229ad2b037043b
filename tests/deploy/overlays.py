"""Builds the overlays of deploy/kubernetes with `kubectl kustomize`, which needs no cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("s3", "gcs", "azure", "disk")
COMPONENTS = ("alerts", "cluster", "cpu", "kueue")
Document = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


@cache
def built(overlay: str) -> tuple[Document, ...]:
    """Return the objects of an overlay."""
    return _build(KUBERNETES / "overlays" / overlay)


def built_with(tmp_path: Path, overlay: str, **keys: object) -> tuple[Document, ...]:
    """Return the objects of a kustomization like that of a user: on an overlay, with `keys`."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy, dirs_exist_ok=True)
    mine = copy / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"../overlays/{overlay}"], **keys})
    )
    return _build(mine)


def _build(folder: Path) -> tuple[Document, ...]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(documents: tuple[Document, ...], kind: str, name: str = "") -> Document:
    """Return the only object of a kind, or the one with this name."""
    (found,) = (
        document
        for document in documents
        if document["kind"] == kind and name in ("", document["metadata"]["name"])
    )
    return found


def template_of(documents: tuple[Document, ...]) -> Document:
    """Return the spec of the RayJob of a run."""
    spec: Document = one(documents, "RayCronJob")["spec"]["jobTemplate"]
    return spec


def pod_templates(job: Document) -> Iterator[Document]:
    """Yield the pod templates of a RayJob: head, workers, submitter."""
    cluster = job["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
    yield job["submitterPodTemplate"]


def pods_of(documents: tuple[Document, ...]) -> list[Document]:
    """Return all pod templates of an overlay, those of deployments and cron jobs too."""
    pods = list(pod_templates(template_of(documents)))
    for document in documents:
        if document["kind"] == "CronJob":
            pods.append(document["spec"]["jobTemplate"]["spec"]["template"])
        elif document["kind"] == "Deployment":
            pods.append(document["spec"]["template"])
    return pods
