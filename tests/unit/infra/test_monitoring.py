"""Prometheus and Grafana: files that fit each other, and metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml

MONITORING = Path(__file__).parents[3] / "infra" / "monitoring"
OURS = {
    "cil_clips_per_second",
    "cil_data_wait_share",
    "cil_gate_decisions_total",
    "cil_loss",
    "cil_quarantined_total",
}
OF_RAY = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"


def board():
    return json.loads((MONITORING / "grafana" / "dashboards" / "cil.json").read_text())


def alerts():
    return yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]


def expressions():
    shown = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    return shown + [rule["expr"] for group in alerts() for rule in group["rules"]]


def metrics(expression):
    """Return the metrics that an expression names: ours by a pattern, Ray's by their name."""
    plain = re.sub(r"(by|without)\s*\([^)]*\)", " ", expression)
    plain = re.sub(r'"[^"]*"', lambda found: found[0] if "cil_" in found[0] else '""', plain)
    return set(re.findall(r"(?:ray_(?!\))|cil_)\w+", plain))


def test_all_of_our_metrics_are_shown_and_none_that_is_not():
    shown = {name for text in expressions() for name in metrics(text) if name.startswith("cil_")}
    assert shown == OURS


def test_the_metrics_of_ray_are_those_of_its_own_dashboards():
    known = "\n".join(path.read_text() for path in OF_RAY.glob("*.py"))
    shown = {name for text in expressions() for name in metrics(text) if name.startswith("ray_")}
    assert len(shown) > 5
    assert {name for name in shown if not re.search(rf"\b{name}\b", known)} == set()


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_is_well_formed(expression):
    depth = []
    for sign in re.sub(r'"[^"]*"', "", expression):
        if sign in "([{":
            depth.append(sign)
        elif sign in ")]}":
            assert depth, expression
            assert depth.pop() + sign in ("()", "[]", "{}")
    assert depth == []
    assert expression.count('"') % 2 == 0
    if "decisions_total" in expression:  # of a counter, only the growth says anything
        assert GROWTH.match(expression)


GROWTH = re.compile(
    r"sum(?: by \(decision\) )?\(max_over_time\((?P<of>\{[^}]*\})\[(?P<window>\d+[hd])\]\) - "
    r"\(max_over_time\((?P=of)\[(?P=window)\] offset (?P=window)\) or "
    r"0 \* max_over_time\((?P=of)\[(?P=window)\]\)\)\)(?: > (?P<limit>\d+))?"
)


def fires(alert, series, now):
    """Evaluate an alert of `GROWTH` as Prometheus would: a series is a list of (hour, value)."""
    (rule,) = [rule for group in alerts() for rule in group["rules"] if rule["alert"] == alert]
    found = GROWTH.fullmatch(rule["expr"])
    assert found, f"{alert} has another form"
    window = int(found["window"].removesuffix("h"))

    def highest(samples, until):
        return max((v for hour, v in samples if until - window < hour <= until), default=None)

    total = 0.0
    for samples in series:
        last, before = highest(samples, now), highest(samples, now - window)
        total += 0 if last is None else last - (before or 0)
    return total > int(found["limit"])


def test_three_refused_nights_are_told_by_counters_that_begin_with_their_only_value():
    """A local session has a series of its own each night, which ends right after it begins."""
    nights = [[(24 * night, 1.0)] for night in range(1, 9)]
    assert not fires("GateRefusesEveryNight", nights[:2], now=60)
    assert fires("GateRefusesEveryNight", nights[:3], now=80)
    assert fires("GateRefusesEveryNight", nights, now=24 * 8 + 1)
    assert not fires("GateRefusesEveryNight", nights, now=24 * 8 + 50)


def test_three_refused_nights_are_told_by_a_counter_that_goes_on():
    """A head that stays up may count all nights in one series."""
    level = [[(hour, float(min(hour // 24, 9))) for hour in range(24, 400)]]
    assert fires("GateRefusesEveryNight", level, now=24 * 3 + 1)
    assert fires("GateRefusesEveryNight", level, now=24 * 8 + 1)
    assert not fires("GateRefusesEveryNight", level, now=390), "nine long ago"


def test_many_refused_videos_of_one_command_are_told():
    assert fires("ManyVideosInQuarantine", [[(5, 101.0), (6, 101.0)]], now=10)
    assert not fires("ManyVideosInQuarantine", [[(5, 100.0), (6, 100.0)]], now=10)
    assert not fires("ManyVideosInQuarantine", [[(hour, 101.0) for hour in range(90)]], now=80)


def test_our_metrics_are_found_with_and_without_the_prefix_of_ray():
    for expression in expressions():
        for pattern in re.findall(r'__name__=~"([^"]*)"', expression):
            name = pattern.rpartition(")?")[2]
            assert name in OURS
            assert re.fullmatch(pattern, name)
            assert re.fullmatch(pattern, f"ray_{name}")
            assert not re.fullmatch(pattern, f"other_{name}")


def test_panels_do_not_overlap_and_use_the_source_that_is_provisioned():
    (source,) = yaml.safe_load(
        (MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    )["datasources"]
    taken = set()
    for panel in board()["panels"]:
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"].endswith(".")
    assert len({panel["id"] for panel in board()["panels"]}) == len(board()["panels"])


def test_the_files_name_each_other():
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    mounted = {volume.split(":")[1] for s in compose.values() for volume in s["volumes"]}
    assert set(prometheus["rule_files"]) <= mounted
    (job,) = prometheus["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert file == f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    (provider,) = yaml.safe_load(
        (MONITORING / "grafana" / "provisioning" / "dashboards" / "cil.yaml").read_text()
    )["providers"]
    assert provider["options"]["path"] in mounted


def test_alerts_say_what_is_wrong():
    for group in alerts():
        names = [rule["alert"] for rule in group["rules"]]
        assert len(names) == len(set(names))
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"].endswith(".")
