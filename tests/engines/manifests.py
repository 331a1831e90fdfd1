"""What can be said of a Kubernetes manifest without a cluster: a list of faults, empty for a good one."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "launch" / "kubernetes"
# The oldest Kubernetes that gpu.yaml and tpu.yaml are meant for, and the newest of which kubernetes-validate knows.
VERSIONS = ("1.31", "1.37")
# Kubeflow's models know the fields of a JobSet, but take any text for these.
CHOICES = {
    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "restartStrategy": {"Recreate", "BlockingRecreate"},
}


def missing() -> str:
    """Which of the packages is not installed, or ''."""
    needed = ("kubernetes_validate", "kubeflow_trainer_api", "jsonschema")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (make test-engines)" if absent else ""


def read(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def faults(thing: dict[str, Any]) -> list[str]:
    """What is wrong with an object."""
    checks: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "jobset.x-k8s.io": _jobset,
        "kueue.x-k8s.io": _kueue,
    }
    return checks.get(str(thing.get("apiVersion")).split("/")[0], _core)(thing)


def _core(thing: dict[str, Any]) -> list[str]:
    import kubernetes_validate

    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"Kubernetes {version}: {error.message}")
    return found


def _jobset(thing: dict[str, Any]) -> list[str]:
    """As Kubeflow's models of JobSet see it, and each of its Jobs as Kubernetes' schema does."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    if thing.get("apiVersion") != "jobset.x-k8s.io/v1alpha2":
        return [f"apiVersion {thing.get('apiVersion')} is not JobSet's"]
    try:
        understood = JobsetV1alpha2JobSet.from_dict(thing).to_dict()
    except ValueError as error:
        return [str(error)]
    # The models pass over what they do not know; so it is missing from what they give back.
    found = [f"{path}: unknown, or of another kind" for path in _lost(thing, understood)]
    for path, key, value in _scalars(thing["spec"].get("failurePolicy", {}), "spec.failurePolicy"):
        if key in CHOICES and value not in CHOICES[key]:
            found.append(f"{path}: {value!r} is none of {sorted(CHOICES[key])}")
    for job in thing["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        found += _core(whole)
    return found


def _kueue(thing: dict[str, Any]) -> list[str]:
    import jsonschema

    schema = yaml.safe_load(Path(__file__).with_name("kueue_schema.yaml").read_text(encoding="utf-8"))

    def check(part: Any, name: str) -> list[str]:
        rules = {"$defs": schema["$defs"], "$ref": f"#/$defs/{name}"}
        return [
            f"{name}: {'.'.join(map(str, error.path))}: {error.message}"
            for error in jsonschema.Draft202012Validator(rules).iter_errors(part)
        ]

    return check(thing, "object") or check(thing["spec"], thing["kind"])


def _lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of what stands in `given` and not in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [
            each
            for key, value in given.items()
            for each in (_lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"])
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            each
            for index, pair in enumerate(zip(given, kept, strict=True))
            for each in _lost(*pair, f"{path}[{index}]")
        ]
    return [] if given == kept else [path]


def _scalars(thing: Any, path: str) -> list[tuple[str, str, Any]]:
    if isinstance(thing, dict):
        pairs = [(f"{path}.{key}", key, value) for key, value in thing.items()]
    elif isinstance(thing, list):
        pairs = [(f"{path}[{index}]", "", value) for index, value in enumerate(thing)]
    else:
        return []
    return [
        each
        for where, key, value in pairs
        for each in ([(where, key, value)] if not isinstance(value, (dict, list)) else _scalars(value, where))
    ]
