"""Manifests against schemas, without a cluster.

Core objects by kubernetes-validate, JobSets by the models that Kubeflow generates from JobSet's own schema. Of Kueue no
schema can be installed: its few fields are checked against what its documentation names. And the command that a pod
runs is run here, by two processes with the pods' environment.
"""

import copy
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from blobjax.reliability.run_directory import read_jsonl
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "kubernetes"
JOB_SETS = ("gpu.yaml", "tpu.yaml")
VERSION = "1.33"

validators = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("kubernetes_validate", "kubeflow_trainer_api")),
    reason="kubernetes-validate and kubeflow-trainer-api are not installed (make test-engines)",
)


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def validate(manifest: dict[str, Any]) -> None:
    """Raises where a manifest is not what its kind's schema says, unknown keys included."""
    import kubernetes_validate

    if manifest["kind"] == "JobSet":
        from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

        # Its models have no place for quantities written as they usually are; pods are looked at below.
        stripped = copy.deepcopy(manifest)
        for job in stripped["spec"]["replicatedJobs"]:
            for container in job["template"]["spec"]["template"]["spec"]["containers"]:
                container.pop("resources", None)
        understood = JobsetV1alpha2JobSet.model_validate(stripped)
        known = understood.model_dump(by_alias=True, exclude_none=True, mode="json")
        if unknown := _missing(stripped, known):
            raise ValueError(f"unknown to JobSet: {unknown}")
        for job in manifest["spec"]["replicatedJobs"]:
            template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
            kubernetes_validate.validate(template, VERSION, strict=True)
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def _missing(given: Any, understood: Any, path: str = "") -> list[str]:
    """Paths that did not come back."""
    if isinstance(given, dict):
        if not isinstance(understood, dict):
            return [path]
        return [
            each
            for key, value in given.items()
            for each in (
                [f"{path}.{key}"] if key not in understood else _missing(value, understood[key], f"{path}.{key}")
            )
        ]
    if isinstance(given, list):
        pairs = zip(given, understood, strict=True)
        return [each for n, pair in enumerate(pairs) for each in _missing(*pair, f"{path}[{n}]")]
    return []


@validators
@pytest.mark.parametrize("name", JOB_SETS)
def test_job_sets_are_what_their_schema_says(name):
    (manifest,) = objects(name)
    validate(manifest)


@validators
def test_core_objects_are_what_their_schema_says():
    core = [each for each in objects("queues.yaml") if not each["apiVersion"].startswith("kueue")]
    assert [each["kind"] for each in core] == ["PersistentVolumeClaim"]
    for each in core:
        validate(each)


@validators
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda m: m["spec"].update(failurePolcy={}), "failurePolcy"),
        (lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("action"), "action"),
        (lambda m: _job(m).update(backofLimit=0), "backofLimit"),
        (lambda m: _job(m)["podFailurePolicy"]["rules"][0].update(action="No"), "action"),
        (lambda m: _pod(m).update(restartPolicy=3), "restartPolicy"),
        (lambda m: _pod(m)["containers"][0].update(comand=["blobjax"]), "comand"),
        (lambda m: _pod(m)["containers"][0]["env"].append({"value": "of no name"}), "name"),
        (lambda m: _pod(m)["containers"][0]["resources"].update(limit={}), "limit"),
    ],
)
def test_a_damaged_manifest_is_refused(damage, named):
    manifest = copy.deepcopy(objects("gpu.yaml")[0])
    validate(manifest)
    damage(manifest)
    with pytest.raises(Exception, match=named):
        validate(manifest)


def _job(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def _pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return _job(manifest)["template"]["spec"]


# Kueue's v1beta1 (its API reference): the fields of each kind's spec.
KUEUE = {
    "ResourceFlavor": {"nodeLabels", "nodeTaints", "tolerations", "topologyName"},
    "ClusterQueue": {
        *("resourceGroups", "cohort", "queueingStrategy", "namespaceSelector", "flavorFungibility", "preemption"),
        *("admissionChecks", "admissionChecksStrategy", "stopPolicy", "fairSharing", "admissionScope"),
    },
    "LocalQueue": {"clusterQueue", "stopPolicy", "fairSharing"},
}


def test_kueue_objects_have_known_fields_and_name_each_other():
    kueue = [each for each in objects("queues.yaml") if each["apiVersion"] == "kueue.x-k8s.io/v1beta1"]
    for each in kueue:
        assert set(each.get("spec", {})) <= KUEUE[each["kind"]]
    named = {kind: {e["metadata"]["name"] for e in kueue if e["kind"] == kind} for kind in KUEUE}
    (queue,) = [each for each in kueue if each["kind"] == "ClusterQueue"]
    groups = queue["spec"]["resourceGroups"]
    assert {flavor["name"] for group in groups for flavor in group["flavors"]} == named["ResourceFlavor"]
    for group in groups:
        for flavor in group["flavors"]:
            assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    (local,) = [each for each in kueue if each["kind"] == "LocalQueue"]
    assert {local["spec"]["clusterQueue"]} == named["ClusterQueue"]
    covered = {resource for group in groups for resource in group["coveredResources"]}
    for name in JOB_SETS:
        (manifest,) = objects(name)
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in named["LocalQueue"]
        assert set(_pod(manifest)["containers"][0]["resources"]["limits"]) <= covered


@pytest.mark.parametrize("name", JOB_SETS)
def test_exit_codes_have_their_consequences(name):
    (manifest,) = objects(name)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    rules = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    assert rules == {75: "Ignore", 2: "FailJob"}
    assert job["backoffLimit"] == 0
    assert _pod(manifest)["restartPolicy"] == "Never", "else Kubernetes looks at no exit code"
    assert _pod(manifest)["terminationGracePeriodSeconds"] > 25, "reliability.grace"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_the_command_of_two_pods_is_one_run(tmp_path):
    (manifest,) = objects("gpu.yaml")
    (container,) = _pod(manifest)["containers"]
    job = manifest["spec"]["replicatedJobs"][0]
    hosts = [f"{manifest['metadata']['name']}-{job['name']}-0-{n}.{manifest['metadata']['name']}" for n in range(2)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pods = []
    for index in range(job["template"]["spec"]["completions"]):
        environment = {"POD_IP": "127.0.0.1"}
        for variable in container["env"]:
            if "value" in variable:
                # Kubernetes fills in $(NAME); here all pods are on one host, and the port is a free one.
                value = variable["value"].replace("$(POD_IP)", environment["POD_IP"])
                value = value.replace(hosts[0], "127.0.0.1").replace(":8476", f":{port}")
                environment[variable["name"]] = value
            elif "job-completion-index" in str(variable["valueFrom"]):
                environment[variable["name"]] = str(index)
        assert {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} <= environment.keys()
        program, *command = container["command"]
        assert program == "blobjax"
        arguments = [word.replace("models/1b", "laptop").replace("/runs", str(tmp_path)) for word in container["args"]]
        command = [word.replace("models/1b", "laptop") for word in command]
        here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
        pods.append(
            subprocess.Popen(
                [sys.executable, "-m", "blobjax.cli", *command, *TINY, *arguments],
                env={**os.environ, **environment, **here},
            )
        )
    assert [pod.wait(timeout=300) for pod in pods] == [0, 0]
    events = list(read_jsonl(tmp_path / "on-kubernetes" / "events.jsonl"))
    assert (events[0]["processes"], events[-1]["reason"]) == (2, "finished")
