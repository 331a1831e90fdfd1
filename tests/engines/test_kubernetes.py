"""The manifests of launch/kubernetes: valid, of one piece, and their command line trains as several processes do.

No cluster is asked. Core objects and the Jobs inside a JobSet are held against Kubernetes' own schemas, the JobSet
against Kubeflow's models of it, Kueue's objects against a schema written by hand from its API.
"""

import copy
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.engines.manifests import faults, missing, read
from tests.tiny import TINY

validated = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
NAMES = ("gpu.yaml", "tpu.yaml", "runs.yaml", "kueue.yaml")
JOBSETS = ("gpu.yaml", "tpu.yaml")


def jobset(name: str) -> dict:
    (thing,) = read(name)
    return thing


def job(thing: dict) -> dict:
    return thing["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(thing: dict) -> dict:
    return job(thing)["template"]["spec"]


def trainer(thing: dict) -> dict:
    (container,) = pod(thing)["containers"]
    return container


@validated
@pytest.mark.parametrize("name", NAMES)
def test_valid(name):
    assert [fault for thing in read(name) for fault in faults(thing)] == []


def rename(at: dict, old: str, new: str) -> None:
    at[new] = at.pop(old)


DAMAGES = {
    "an unknown key of a JobSet": ("gpu.yaml", 0, lambda it: it["spec"].update(maxRestarts=3)),
    "a misspelt key of the failure policy": (
        "gpu.yaml",
        0,
        lambda it: rename(it["spec"]["failurePolicy"]["rules"][0], "onJobFailureReasons", "onJobFailureReason"),
    ),
    "no such action": ("gpu.yaml", 0, lambda it: it["spec"]["failurePolicy"]["rules"][1].update(action="Ignore")),
    "no such strategy": ("gpu.yaml", 0, lambda it: it["spec"]["failurePolicy"].update(restartStrategy="Blocking")),
    "text for a number": ("tpu.yaml", 0, lambda it: it["spec"]["replicatedJobs"][0].update(replicas="two")),
    "a number for text": ("gpu.yaml", 0, lambda it: trainer(it)["env"][4].update(value=2)),
    "a misspelt key of a pod": (
        "gpu.yaml",
        0,
        lambda it: rename(pod(it), "terminationGracePeriodSeconds", "terminationGraceSeconds"),
    ),
    "a rule without an action": ("tpu.yaml", 0, lambda it: job(it)["podFailurePolicy"]["rules"][0].pop("action")),
    "a volume mounted nowhere": ("gpu.yaml", 0, lambda it: trainer(it)["volumeMounts"][0].pop("mountPath")),
    "a claim's mode as text": ("runs.yaml", 0, lambda it: it["spec"].update(accessModes="ReadWriteMany")),
    "a quota without an amount": (
        "kueue.yaml",
        2,
        lambda it: it["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0].pop("nominalQuota"),
    ),
    "an unknown key of a queue": ("kueue.yaml", 3, lambda it: it["spec"].update(queue="blobjax")),
    "an older API": ("kueue.yaml", 0, lambda it: it.update(apiVersion="kueue.x-k8s.io/v1alpha1")),
}


@validated
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_refused(damage):
    name, index, break_it = DAMAGES[damage]
    thing = copy.deepcopy(read(name)[index])
    break_it(thing)
    assert faults(thing) != []


@pytest.mark.parametrize("name", JOBSETS)
def test_exit_codes_reach_the_rules_that_are_meant_for_them(name):
    """What Kubernetes and JobSet do with a pod's end, followed by hand through both sets of rules."""
    thing = jobset(name)
    assert [outcome(thing, code) for code in (75, 2, 1, 137)] == [
        "RestartJobSetAndIgnoreMaxRestarts",
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSet",
    ]
    # A pod killed with its node, before it could say anything: not the run's fault either.
    assert outcome(thing, 137, condition="DisruptionTarget") == "RestartJobSetAndIgnoreMaxRestarts"


def outcome(thing: dict, code: int, condition: str = "") -> str:
    """What becomes of the JobSet when its container ends so. (Messages are as the Job controller of Kubernetes 1.37
    words them.)"""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    assert job(thing)["backoffLimit"] == 0
    for index, rule in enumerate(job(thing)["podFailurePolicy"]["rules"]):
        of_code = rule.get("onExitCodes")
        of_condition = [pattern["type"] for pattern in rule.get("onPodConditions", [])]
        if of_code and (of_code["containerName"], of_code["operator"]) == (trainer(thing)["name"], "In"):
            hit = code in of_code["values"]
            text = f"Container trainer for pod default/p failed with exit code {code} matching"
        else:
            hit, text = condition in of_condition, f"Pod default/p has condition {condition} matching"
        if hit:
            assert rule["action"] == "FailJob"
            reason, message = "PodFailurePolicy", f"{text} FailJob rule at index {index}"
            break
    for rule in thing["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("name", JOBSETS)
def test_a_pod_has_time_to_save(name):
    thing = jobset(name)
    (grace,) = [part for part in trainer(thing)["command"] if part.startswith("reliability.grace=")]
    assert int(grace.split("=")[1].removesuffix(" seconds")) <= pod(thing)["terminationGracePeriodSeconds"] - 10


@pytest.mark.parametrize("name", JOBSETS)
def test_the_manifests_belong_together(name):
    thing, (claim,), kueue = jobset(name), read("runs.yaml"), read("kueue.yaml")
    of_kind = {kind: [each for each in kueue if each["kind"] == kind] for kind in ("ResourceFlavor", "ClusterQueue")}
    (cluster,), (queue,) = of_kind["ClusterQueue"], [each for each in kueue if each["kind"] == "LocalQueue"]
    assert thing["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert thing["spec"]["suspend"] is True
    assert queue["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    (group,) = cluster["spec"]["resourceGroups"]
    assert {f["name"] for f in group["flavors"]} == {f["metadata"]["name"] for f in of_kind["ResourceFlavor"]}
    for flavor in group["flavors"]:
        assert [each["name"] for each in flavor["resources"]] == group["coveredResources"]
    # Kueue never admits what asks for something that the queue does not cover.
    asked = {**trainer(thing)["resources"]["requests"], **trainer(thing)["resources"]["limits"]}
    assert set(asked) <= set(group["coveredResources"])
    # Room for it all in one flavour, whose labels the pod does not contradict.
    pods = thing["spec"]["replicatedJobs"][0]["replicas"] * job(thing)["parallelism"]
    (device,) = trainer(thing)["resources"]["limits"]
    quotas = {f["name"]: {r["name"]: r["nominalQuota"] for r in f["resources"]} for f in group["flavors"]}
    (fitting,) = [f for f, quota in quotas.items() if int(quota[device]) >= pods * int(asked[device])]
    (labels,) = [f["spec"]["nodeLabels"] for f in of_kind["ResourceFlavor"] if f["metadata"]["name"] == fitting]
    assert {**labels, **pod(thing).get("nodeSelector", {})}.items() >= labels.items()
    # The run directory lies on the claim, which all pods mount.
    mounted = {each["name"]: each["mountPath"] for each in trainer(thing)["volumeMounts"]}
    (volume,) = [each for each in pod(thing)["volumes"] if "persistentVolumeClaim" in each]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (run,) = [part for part in trainer(thing)["command"] if part.startswith("logging.run_dir=")]
    assert run.split("=")[1].startswith(mounted[volume["name"]] + "/")


def test_every_node_is_counted():
    thing = jobset("gpu.yaml")
    (count,) = [each["value"] for each in trainer(thing)["env"] if each["name"] == "JAX_NUM_PROCESSES"]
    assert int(count) == job(thing)["completions"] == job(thing)["parallelism"]
    assert thing["spec"]["coordinator"]["replicatedJob"] == thing["spec"]["replicatedJobs"][0]["name"]


def environment(thing: dict, index: int, port: int) -> dict[str, str]:
    """What the kubelet would make of the container's `env`, in its order, with loopback for the network."""
    fields = {
        "metadata.annotations['jobset.sigs.k8s.io/coordinator']": "localhost",
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
        "status.podIP": "127.0.0.1",
    }
    values: dict[str, str] = {}
    for each in trainer(thing)["env"]:
        if "value" in each:
            value = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], each["value"])
        else:
            value = fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        values[each["name"]] = value
    (listens,) = trainer(thing)["ports"]
    return {name: value.replace(f":{listens['containerPort']}", f":{port}") for name, value in values.items()}


def test_the_command_line_with_its_environment_is_one_run_of_two_processes(tmp_path):
    """The container's command and environment as they stand, on this machine: another model, directory and port."""
    thing = jobset("gpu.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.replace("=/runs/", f"={tmp_path}/") for part in trainer(thing)["command"]]
    assert command[:3] == ["blobjax", "train", "models/1b"]
    command = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *TINY, "compute.mesh={data: 4}", *command[3:]]
    # A pod of an indexed job has these too; they must not lead anywhere else.
    inside = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    pods = [
        subprocess.Popen(
            command,
            env={**os.environ, **inside, "JOB_COMPLETION_INDEX": str(index), **environment(thing, index, port)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        output = [each.communicate(timeout=240)[0] for each in pods]
    finally:
        for each in pods:
            each.kill()
    assert [each.returncode for each in pods] == [0, 0], "\n".join(output)
    (start,) = [e for e in read_jsonl(tmp_path / "on-kubernetes" / "events.jsonl") if e["event"] == "start"]
    assert (start["processes"], start["devices"]) == (2, 4)
