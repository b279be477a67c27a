"""Create a RayJob for one run of a Kubernetes CronJob, and wait for its end.

    python infra/kubernetes/create_rayjob.py /etc/cil/rayjob.yaml

In: the manifest, and from the pod's environment JOB_NAME, JOB_UID and POD_NAMESPACE. The RayJob
has the Job's name, so a pod that replaces an evicted one finds it instead of making a second; and
the Job owns it, so both go together. Out: the exit code of retrain (0, 1, 2 or 3), 1 for all else.

It speaks to the Kubernetes API with the pod's service account, which may create and read RayJobs.
"""

import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_S = 30.0
LOST_AFTER_S = 1800.0


def manifest(text: str, job_name: str, job_uid: str) -> dict[str, Any]:
    """Return the RayJob of a run: named after its Job, and owned by it."""
    job: dict[str, Any] = yaml.safe_load(text)
    metadata = job["metadata"]
    metadata.pop("generateName", None)
    metadata["name"] = job_name
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job_uid}
    metadata["ownerReferences"] = [owner]
    return job


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Send one request to the Kubernetes API; returns its status and what it answers."""
    token = (ACCOUNT / "token").read_text().strip()  # read anew: it is renewed now and then
    request = urllib.request.Request(  # noqa: S310  # the address is the cluster's own
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    authority = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if url[:5] == "https" else None
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        return error.code, {"message": text}


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Send one request as `call` does; status 0 if no answer came, or half of one."""
    try:
        return call(url, body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, {"message": str(error)}


def create(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Create the RayJob; an API that does not answer is asked again for LOST_AFTER_S.

    That is safe: if it was created though the answer was lost, the next one is 409.
    """
    began = time.monotonic()
    while True:
        code, answer = ask(url, body)
        lasting = code not in (0, 429) and code < 500
        if lasting or time.monotonic() - began > LOST_AFTER_S:
            return code, answer
        print(f"the Kubernetes API did not answer ({code}): {answer.get('message')}", flush=True)
        time.sleep(POLL_S)


def exit_code(status: dict[str, Any]) -> int | None:
    """Return what retrain ended with; None while the RayJob goes on."""
    state = status.get("jobDeploymentStatus")
    if state == "Complete" and status.get("jobStatus") == "SUCCEEDED":
        return 0
    if state not in ("Complete", "Failed"):
        return None
    found = re.search(r"failed with exit code (\d+)", status.get("message") or "")
    return int(found.group(1)) if found and found.group(1) in ("2", "3") else 1


def run(text: str, api: str) -> int:
    """Create the RayJob, or find it, and wait for its end."""
    name, uid, namespace = (os.environ[key] for key in ("JOB_NAME", "JOB_UID", "POD_NAMESPACE"))
    jobs = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    code, answer = create(jobs, manifest(text, name, uid))
    if code not in (200, 201, 409):
        print(f"error: RayJob {name} was refused ({code}): {answer.get('message')}", flush=True)
        return 1
    print(f"RayJob {name} {'was there already' if code == 409 else 'created'}", flush=True)
    answered, before = time.monotonic(), ""
    while time.monotonic() - answered < LOST_AFTER_S:
        code, answer = ask(f"{jobs}/{name}")
        if code == 404:
            print(f"error: RayJob {name} was deleted", flush=True)
            return 1
        if code == 200:
            answered, status = time.monotonic(), answer.get("status") or {}
            now = (
                f"{status.get('jobDeploymentStatus', 'New')} {status.get('jobStatus', '')}".strip()
            )
            if now != before:
                print(f"RayJob {name}: {now}", flush=True)
            before, ended = now, exit_code(status)
            if ended is not None:
                print((status.get("message") or "")[-2000:], flush=True)
                return ended
        time.sleep(POLL_S)
    print(f"error: the Kubernetes API has not answered: {answer.get('message')}", flush=True)
    return 1


if __name__ == "__main__":
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}"
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    sys.exit(run(Path(sys.argv[1]).read_text(encoding="utf-8"), f"{server}:{port}"))
