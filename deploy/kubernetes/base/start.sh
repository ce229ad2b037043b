#!/bin/sh
# Create the RayJob of a run from the suspended RayCronJob, and wait until it ends. Exit with 0 if the run
# succeeded. JOB_NAME and JOB_UID are this pod's Job; QUEUE is a queue of Kueue, if there is one.
set -eu

run=${JOB_NAME#scenesweep-nightly-}
job=rayjob/scenesweep-$run
tmp=${TMPDIR:-/tmp}

# The Kubernetes API may be away for a moment: try for five minutes.
try() {
  tries=0
  until answer=$("$@" 2>&1); do
    echo "$answer" >&2
    case $answer in *"(AlreadyExists)"*) break ;; esac
    tries=$((tries + 1))
    [ "$tries" -lt 10 ] || exit 1
    sleep "${POLL_S:-30}"
  done
}

try kubectl get raycronjob scenesweep --output 'jsonpath={.spec.jobTemplate}'
queue=
[ -z "${QUEUE:-}" ] || queue=", \"kueue.x-k8s.io/queue-name\": \"$QUEUE\""
# The Job owns the RayJob: deleting the Job (its time limit does this too) deletes both.
cat > "$tmp/rayjob.json" <<JSON
{"apiVersion": "ray.io/v1", "kind": "RayJob",
 "metadata": {
   "name": "scenesweep-$run",
   "labels": {"app.kubernetes.io/part-of": "scenesweep"$queue},
   "ownerReferences": [
     {"apiVersion": "batch/v1", "kind": "Job", "name": "$JOB_NAME", "uid": "$JOB_UID"}]},
 "spec": $answer}
JSON
try kubectl create -f "$tmp/rayjob.json"

while :; do
  state=$(kubectl get "$job" --output 'jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}' 2>&1) ||
    echo "$state" >&2
  case $state in
    "Complete SUCCEEDED") exit 0 ;;
    # Somebody stopped the run. KubeRay has no deletion rule for this, and would keep the cluster.
    "Complete "*) kubectl delete --wait=false "$job"; exit 1 ;;
    "Failed "*) kubectl get "$job" --output 'jsonpath={.status.message}'; exit 1 ;;
    *"(NotFound)"*) exit 1 ;;
  esac
  sleep "${POLL_S:-30}"
done
