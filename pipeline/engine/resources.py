"""What each kind of worker reserves on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scenesweep.pipeline.engine.workers import Cluster
from scenesweep.pipeline.settings import EngineSettings

_CORE_SHARE = 0.75  # of each core, for detectors on CPUs


@dataclass(frozen=True, slots=True)
class Resources:
    """What each kind of worker reserves on Ray. On a GPU, a detector also reserves one CPU.

    Without `expect_work`, all scenes seem to be up to date: no detector starts until a scene has
    work.
    """

    detectors: int
    detector_cpus: float
    detector_gpus: float
    task_cpus: float
    expect_work: bool = True


def resources_in(
    cluster: Mapping[str, float], settings: EngineSettings, *, threads: int, device: str
) -> Resources:
    """Decide how many detectors to start in a cluster of so many CPUs and GPUs.

    On CPUs, a detector reserves most of each core and a reader the rest: reading is light, and
    both must fit when detectors fill the machine. `cuda` with a number of detectors asks for GPUs
    that need not be there yet: an autoscaler adds them only when it is asked.
    """
    gpus, at_each = int(cluster.get("GPU", 0)), settings.detectors_per_gpu
    if (gpus and device == "auto") or (device == "cuda" and (gpus or settings.detectors)):
        return Resources(settings.detectors or gpus * at_each, 1, 1 / at_each, 1)
    cpus = int(cluster.get("CPU", 1))
    return Resources(settings.detectors or max(1, cpus // threads), _CORE_SHARE * threads, 0, 0.25)


def cluster_of(
    nodes: Mapping[str, Mapping[str, float]],
    leaving: Iterable[str],
    reserved: Resources,
    *,
    detectors: int,
) -> Cluster:
    """Return what a cluster has for readers and for further detectors, beside some `detectors`.

    `nodes` has the resources of each node that is alive, `leaving` those that were told to go.
    """
    has_all = {
        name: sum(has.get(name, 0) for has in nodes.values())
        for name in ("CPU", "GPU", "object_store_memory")
    }
    wanted = {"CPU": reserved.detector_cpus, "GPU": reserved.detector_gpus}
    cpus = has_all["CPU"] - detectors * reserved.detector_cpus
    fit = (
        node
        for node, has in nodes.items()
        if all(has.get(name, 0) >= least for name, least in wanted.items())
    )
    return Cluster(
        readers=max(0, int(cpus / reserved.task_cpus)),
        detectors=_room(has_all, reserved),
        store_bytes=int(has_all["object_store_memory"]),
        nodes=frozenset(fit),
        leaving=frozenset(leaving),
    )


def _room(cluster: Mapping[str, float], reserved: Resources) -> int:
    """Return the number of detectors that fill a cluster, as `resources_in` counts them."""
    if reserved.detector_gpus:
        return int(cluster["GPU"] / reserved.detector_gpus)
    return int(cluster["CPU"] * _CORE_SHARE / reserved.detector_cpus)
