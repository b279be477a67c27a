"""A served model under many clients at once: is each answer its own, how long, how many wait.

In: the address of `mlflow models serve`. Each client has an image and a seed of its own. First they
ask one after another, then all at once, several times; every answer must be the one that its client
got alone. MLflow's server does not tell its queue, so the clients count it: requests that are sent
and have no answer yet, looked at when one more is sent. Those that are computed are among them.
Out: benchmarks/results/serving.json, or on stdout with --json; exit code 1 if an answer was wrong.

    python benchmarks/serving.py --url http://127.0.0.1:5001 --clients 20 --rounds 3
"""

import argparse
import hashlib
import json
import math
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from measure import save

CLAIM = "each of many clients at once gets the video that it gets alone"
TIMEOUT_S = 900
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass
class Counter:
    """Requests in flight, as the clients know them."""

    now: int = 0
    seen: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self) -> None:
        with self.lock:
            self.now += 1
            self.seen.append(self.now)

    def answered(self) -> None:
        with self.lock:
            self.now -= 1


@dataclass(frozen=True)
class Answer:
    """What a request brought."""

    video: str
    """Hash of shape and pixels."""
    seconds: float


def ask(url: str, seed: int, size: int, counter: Counter) -> Answer:
    """Ask for the video of a client."""
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    body = json.dumps({"inputs": image.tolist(), "params": {"seed": seed}}).encode()
    request = urllib.request.Request(
        f"{url}/invocations", data=body, headers={"Content-Type": "application/json"}
    )
    counter.sent()
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    finally:
        counter.answered()
    seconds = time.perf_counter() - started
    frames = np.asarray(json.loads(content)["predictions"], dtype=np.uint8)
    assert frames.ndim == 4, f"no video: {frames.shape}"
    text = repr(frames.shape).encode() + frames.tobytes()
    return Answer(hashlib.sha256(text).hexdigest(), seconds)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile (nearest rank) and the longest, in seconds."""
    ranked = sorted(seconds)
    at = {name: ranked[math.ceil(share * len(ranked)) - 1] for name, share in SHARES.items()}
    return {name: round(value, 3) for name, value in {**at, "max": ranked[-1]}.items()}


def measure(url: str, *, clients: int, rounds: int, size: int) -> dict[str, Any]:
    """Ask alone, then together; returns the numbers."""
    ask(url, 0, size, Counter())  # the first answer of a server is slow
    alone = [ask(url, seed, size, Counter()) for seed in range(clients)]
    assert len({answer.video for answer in alone}) == clients, "two seeds gave the same video"
    counter, start = Counter(), threading.Barrier(clients + 1)
    together: list[tuple[int, Answer]] = []
    failures: list[str] = []

    def client(seed: int) -> None:
        start.wait()
        for _ in range(rounds):
            try:
                together.append((seed, ask(url, seed, size, counter)))
            except (OSError, ValueError, AssertionError) as error:
                failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - began
    wrong = sum(answer.video != alone[seed].video for seed, answer in together)
    return {
        "clients": clients,
        "requests": clients * rounds,
        "failed": failures,
        "wrong": wrong,
        "alone_s": percentiles([answer.seconds for answer in alone]),
        "together_s": percentiles([answer.seconds for _, answer in together]) if together else {},
        "videos_per_s_alone": round(clients / sum(answer.seconds for answer in alone), 3),
        "videos_per_s_together": round(len(together) / whole, 3),
        "in_flight_mean": round(sum(counter.seen) / len(counter.seen), 1),
        "in_flight_max": max(counter.seen),
    }


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:5001")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="requests of each client")
    parser.add_argument("--size", type=int, default=64, help="pixels per side of the images")
    parser.add_argument("--json", action="store_true", help="print the result, write no file")
    options = parser.parse_args()
    result = measure(options.url, clients=options.clients, rounds=options.rounds, size=options.size)
    if options.json:
        print(json.dumps(result))
    else:
        save("serving", CLAIM, result)
    return 1 if result["wrong"] or result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
