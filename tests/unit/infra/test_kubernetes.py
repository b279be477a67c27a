"""infra/kubernetes against the schemas of Kubernetes and KubeRay, and what no schema can say."""

import copy
import importlib.util
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from pipelines.config import load_config
from pipelines.environment_variables import variables_for

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "infra" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
CORE = {
    "ConfigMap": "api.core.v1.ConfigMap",
    "CronJob": "api.batch.v1.CronJob",
    "NetworkPolicy": "api.networking.v1.NetworkPolicy",
    "PersistentVolumeClaim": "api.core.v1.PersistentVolumeClaim",
    "Role": "api.rbac.v1.Role",
    "RoleBinding": "api.rbac.v1.RoleBinding",
    "ServiceAccount": "api.core.v1.ServiceAccount",
}
FILES = ("cronjob", "networkpolicy", "raycluster", "raycronjob", "rayjob", "storage")
RETRAIN = "python -m pipelines retrain --config /etc/cil/retrain.yaml"
CRON = re.compile(r"([0-5]?\d) (1?\d|2[0-3]) \* \* \*")


@pytest.fixture(scope="module")
def check():
    """Return a function that raises on what a cluster would refuse or drop."""
    registry = Registry()
    for name in ("kubernetes.json", "kuberay.yaml"):
        schema = yaml.safe_load((SCHEMAS / name).read_text())
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        registry = registry.with_resource(name, resource)

    def check(document):
        kind = document["kind"]
        core = kind in CORE
        reference = (
            f"kubernetes.json#/$defs/{CORE[kind]}" if core else f"kuberay.yaml#/$defs/{kind}"
        )
        schema = {"$ref": reference}
        jsonschema.Draft202012Validator(schema, registry=registry).validate(document)

    return check


def documents(name):
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def job_specs():
    return {
        "RayJob": documents("rayjob")[0]["spec"],
        "RayCronJob": documents("raycronjob")[0]["spec"]["jobTemplate"],
    }


def cluster_specs():
    specs = {kind: spec["rayClusterSpec"] for kind, spec in job_specs().items()}
    return {**specs, "RayCluster": documents("raycluster")[0]["spec"]}


def pods():
    """Return every pod template with the name of its group."""
    found = []
    for kind, spec in cluster_specs().items():
        found.append((f"{kind} head", spec["headGroupSpec"]["template"]))
        found += [
            (f"{kind} {group['groupName']}", group["template"])
            for group in spec["workerGroupSpecs"]
        ]
    cron = documents("cronjob")[0]["spec"]["jobTemplate"]["spec"]["template"]
    return [*found, ("CronJob", cron)]


# -- schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_would_take_it(check, name):
    for document in documents(name):
        check(document)


def test_every_manifest_is_checked():
    ours = {"kustomization", "retrain"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*FILES, *ours}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("cronjob", ("spec", "schedul"), "1"),
        ("cronjob", ("spec", "jobTemplate", "spec", "backofLimit"), 1),
        ("cronjob", ("spec", "jobTemplate", "spec", "backoffLimit"), "three"),
        ("cronjob", ("spec", "jobTemplate", "spec", "template", "spec", "restartPolicie"), "x"),
        ("networkpolicy", ("spec", "ingres"), []),
        ("storage", ("spec", "resources", "limit"), {}),
        ("rayjob", ("spec", "backofLimit"), 1),
        ("rayjob", ("spec", "submissionMode"), "HttpMode"),
        ("rayjob", ("spec", "rayClusterSpec", "authOptions", "mode"), "Token"),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volume"), []),
        ("raycluster", ("spec", "workerGroupSpecs", 0, "maxReplica"), 1),
        ("raycluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        ("raycluster", ("spec", "autoscalerOptions", "upscalingMode"), "Fast"),
        ("raycronjob", ("spec", "concurrencyPolicy"), "Forbid"),
        ("raycronjob", ("spec", "jobTemplate", "entrypoints"), "x"),
    ],
)
def test_a_typo_is_caught(check, name, path, value):
    document = copy.deepcopy(documents(name)[0])
    *parents, key = path
    owner = document
    for part in parents:
        owner = owner[part]
    owner[key] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cronjob", ("spec", "schedule")),
        ("raycronjob", ("spec", "schedule")),
        ("raycronjob", ("spec", "jobTemplate")),
        ("raycluster", ("spec", "headGroupSpec")),
        ("raycluster", ("spec", "workerGroupSpecs", 0, "groupName")),
    ],
)
def test_what_is_missing_is_caught(check, name, path):
    document = copy.deepcopy(documents(name)[0])
    *parents, key = path
    owner = document
    for part in parents:
        owner = owner[part]
    del owner[key]
    with pytest.raises(jsonschema.ValidationError):
        check(document)


# -- what the schemas cannot say ----------------------------------------------------------------


def test_the_kustomization_names_files_that_are_there():
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    generated = {item["name"]: item["files"] for item in kustomization["configMapGenerator"]}
    assert generated == {"cil-rayjob": ["rayjob.yaml"], "cil-retrain": ["retrain.yaml"]}
    for name in [
        *kustomization["resources"],
        *(file for files in generated.values() for file in files),
    ]:
        assert (FOLDER / name).exists()


def test_every_name_that_a_pod_uses_is_made_somewhere():
    made = {"cil", "cil-rayjob", "cil-retrain"}
    for group, template in pods():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            config = volume.get("configMap", {}).get("name")
            assert (claim or config or "cil") in made, group
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), group
    account, role, binding = documents("cronjob")[1:]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    cron = dict(pods())["CronJob"]["spec"]
    assert cron["serviceAccountName"] == account["metadata"]["name"]


def test_two_runs_never_overlap_and_the_schedules_are_schedules():
    cron, ray = documents("cronjob")[0]["spec"], documents("raycronjob")[0]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert CRON.fullmatch(cron["schedule"])
    assert ray["schedule"] == cron["schedule"]
    # the one that waits lives longer than what it waits for
    assert (
        cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
        > (job_specs()["RayJob"]["activeDeadlineSeconds"])
    )
    assert job_specs()["RayJob"] == job_specs()["RayCronJob"]


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
def test_the_job_is_retrain_with_the_variables_of_a_job(kind):
    spec = job_specs()[kind]
    assert spec["entrypoint"] == RETRAIN
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": variables_for("job")}
    assert spec["shutdownAfterJobFinishes"] is True
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes[mounts["/etc/cil"]]["configMap"]["name"] == "cil-retrain"


def test_the_settings_of_retrain_are_settings(tmp_path):
    text = (FOLDER / "retrain.yaml").read_text()
    (tmp_path / "retrain.yaml").write_text(text)
    config = load_config(tmp_path / "retrain.yaml")
    assert config.output.dir.startswith("/mnt/cil/")
    gpu = job_specs()["RayJob"]["rayClusterSpec"]["workerGroupSpecs"][1]
    (container,) = gpu["template"]["spec"]["containers"]
    there = gpu["minReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert config.train.num_workers == there
    assert "PASSWORD" not in text.split("\ndata:")[1]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob"])
def test_clusters_ask_for_a_token_and_their_heads_do_no_work(kind):
    spec = cluster_specs()[kind]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned.group(1)
    pools = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(pools) == {"cpu", "gpu"}
    assert pools["cpu"]["minReplicas"] == 0
    # a cluster of one job is gone with it; one that stays must not keep a GPU
    assert pools["gpu"]["minReplicas"] == (0 if kind == "RayCluster" else 1)
    (gpu,) = pools["gpu"]["template"]["spec"]["containers"]
    assert gpu["image"].endswith("-gpu")
    assert int(gpu["resources"]["limits"]["nvidia.com/gpu"]) > 0


@pytest.mark.parametrize(("group", "template"), pods(), ids=lambda value: str(value)[:20])
def test_pods_are_pinned_limited_and_no_root(group, template):
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert template["metadata"]["labels"] == {"app.kubernetes.io/part-of": "cil"}
    (container,) = spec["containers"]
    assert re.search(r":\d+\.\d+\.\d+-(cpu|gpu)$", container["image"])
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    for variable in container.get("env", []):
        assert "value" not in variable, f"{variable['name']} must come from a Secret or a field"


# -- the script that makes the RayJob -----------------------------------------------------------


class Api(BaseHTTPRequestHandler):
    """Plays the Kubernetes API: one RayJob that runs for as long as there are states."""

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append(("POST", self.path, self.headers["Authorization"], body))
        code = self.server.create.pop(0) if len(self.server.create) > 1 else self.server.create[0]
        if code is None:  # made, but the answer is lost
            self.close_connection = True
            return
        self.answer(code, {"message": "says the API"})

    def do_GET(self):
        self.server.calls.append(("GET", self.path, self.headers["Authorization"], None))
        code, status = self.server.states.pop(0)
        self.answer(code, {"status": status})

    def log_message(self, *_):
        pass


@pytest.fixture
def script():
    path = FOLDER / "create_rayjob.py"
    spec = importlib.util.spec_from_file_location("create_rayjob", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def create(script, tmp_path, monkeypatch):
    """Run the script against an API that answers what a test wants."""
    (tmp_path / "token").write_text("the-token\n")
    monkeypatch.setattr(script, "ACCOUNT", tmp_path)
    monkeypatch.setattr(script, "POLL_S", 0)
    names = {"JOB_NAME": "cil-retrain-29", "JOB_UID": "u-1", "POD_NAMESPACE": "ours"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(states, *, create=201):
        codes = list(create) if isinstance(create, list) else [create]
        server.calls, server.states, server.create = [], list(states), codes
        text = (FOLDER / "rayjob.yaml").read_text()
        code = script.run(text, f"http://127.0.0.1:{server.server_port}")
        return code, server.calls

    yield run
    server.shutdown()
    server.server_close()


def ended(job, message="", deployment=None):
    state = deployment or ("Complete" if job == "SUCCEEDED" else "Failed")
    return (200, {"jobDeploymentStatus": state, "jobStatus": job, "message": message})


RUNNING = (200, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})


def test_it_creates_a_rayjob_that_its_job_owns_and_waits(create, check, capsys):
    code, calls = create(
        [(200, {}), RUNNING, (500, {}), RUNNING, ended("SUCCEEDED", "Job finished.")]
    )
    assert code == 0
    method, path, authorization, body = calls[0]
    assert (method, path) == ("POST", "/apis/ray.io/v1/namespaces/ours/rayjobs")
    assert authorization == "Bearer the-token"
    check(body)
    assert body["metadata"]["name"] == "cil-retrain-29"
    assert "generateName" not in body["metadata"]
    assert body["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "cil-retrain-29", "uid": "u-1"}
    ]
    assert {call[1] for call in calls[1:]} == {f"{path}/cil-retrain-29"}
    printed = capsys.readouterr().out
    assert "the-token" not in printed
    assert printed.count("Running") == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (ended("FAILED", "Job entrypoint command failed with exit code 3, last logs:\n"), 3),
        (ended("FAILED", "Job entrypoint command failed with exit code 2, last logs:\n"), 2),
        (ended("FAILED", "Job entrypoint command failed with exit code 139. No logs."), 1),
        (ended("", "deadline exceeded"), 1),
        (ended("STOPPED", "", deployment="Complete"), 1),
        ((404, {}), 1),
    ],
)
def test_it_ends_with_the_code_of_retrain(create, state, code):
    assert create([RUNNING, state])[0] == code


def test_a_pod_that_replaces_another_finds_the_rayjob(create, capsys):
    code, calls = create([RUNNING, ended("SUCCEEDED")], create=409)
    assert code == 0
    assert [call[0] for call in calls] == ["POST", "GET", "GET"]
    assert "was there already" in capsys.readouterr().out


def test_a_rayjob_that_is_refused_is_a_failure(create, capsys):
    assert create([], create=403)[0] == 1
    assert 'was refused (403): {"message": "says the API"}' in capsys.readouterr().out


@pytest.mark.parametrize("last", [201, 409])
def test_a_hiccup_of_the_api_at_the_start_makes_one_rayjob(create, last, capsys):
    code, calls = create([ended("SUCCEEDED")], create=[None, 500, 503, 429, last])
    assert code == 0
    assert [call[0] for call in calls] == ["POST"] * 5 + ["GET"]
    assert len({json.dumps(call[3]) for call in calls[:5]}) == 1
    assert capsys.readouterr().out.count("did not answer") == 4


def test_an_api_that_never_answers_is_given_up_at_the_start(create, script, monkeypatch, capsys):
    monkeypatch.setattr(script, "LOST_AFTER_S", 0.2)
    assert create([], create=[None])[0] == 1
    assert "was refused (0)" in capsys.readouterr().out


def test_an_api_that_is_gone_is_given_up(create, script, monkeypatch, capsys):
    monkeypatch.setattr(script, "LOST_AFTER_S", 0.2)
    assert create([(503, {})] * 5000)[0] == 1
    assert "has not answered" in capsys.readouterr().out


def test_what_it_may_do_is_what_it_does():
    (role,) = [item for item in documents("cronjob") if item["kind"] == "Role"]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
