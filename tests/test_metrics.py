"""Figures for Prometheus and OpenTelemetry: their names, their values, and that counters never fall."""

from __future__ import annotations

import errno
import gc
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics as otel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from areal_core._observe.figures import FIGURES, HISTOGRAMS, KINDS, STATUSES, prometheus_name
from areal_core._observe.meter import _EngineLives, _Rising, meter_of
from areal_core._record import STAGES
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer
from areal_core.errors import ServerStatusError
from areal_core.metrics import Instrumentation, PrometheusCollector, instrument, serve_prometheus
from areal_core.remote_inf_engine import EngineStats, RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow
from children import RunScript
from conftest import MakeExecutor
from doors import Blockade, Door, turn_loop
from executor_tools import WAIT_S, Engine, Playing, TellingEngine, answering, obeying, trajectory_of
from logged import LogLines
from scraping import Series, collected, counters, scrape, series_of, value
from snapshots import changed

DOCS = Path(__file__).parent.parent / "docs"
DASHBOARD = DOCS / "assets" / "grafana.json"
GUIDE = DOCS / "guides" / "metrics-and-logs.md"


def ended(executor: WorkflowExecutor, count: int) -> None:
    """Wait until *count* rollouts have ended, and leave them there."""
    while (ledger := executor.ledger).submitted - ledger.pending - ledger.running < count:
        turn_loop(executor.runner)


# -- Prometheus ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "openmetrics"])
def test_a_scrape_shows_what_was_done_and_what_runs(make_executor: MakeExecutor, kind: str) -> None:
    executor, door = make_executor(Engine(3), max_concurrent_rollouts=1, consumer_batch_size=8), Door()

    async def park(_data: Any) -> Any:
        return await door.walk_through(trajectory_of(1))

    with serve_prometheus(executor) as server:
        for data in (None, ValueError("no"), 1):
            executor.submit(data, obeying)
        executor.wait(3, WAIT_S)
        for _ in range(3):
            executor.submit(1, Playing(park))
        door.wait_for(1)
        seen = series_of(scrape(server.url, kind))
    statuses = {
        status: value(seen, "areal_rollouts_ended_total", kind="training", status=status)
        for status in STATUSES
    }
    assert {status: count for status, count in statuses.items() if count} == {
        "accepted": 1,
        "rejected": 1,
        "failed": 1,
    }
    assert value(seen, "areal_rollouts_submitted_total", kind="training") == 6
    assert value(seen, "areal_rollouts", kind="training", state="pending") == 2
    assert value(seen, "areal_rollouts_stage", stage="playing") == 1
    assert value(seen, "areal_admission_blocked", reason="concurrency") == 1
    assert value(seen, "areal_admission_blocked", reason="paused") == 0
    assert value(seen, "areal_policy_version") == 3
    assert value(seen, "areal_trajectories_delivered_total") == 1
    assert value(seen, "areal_rollout_duration_seconds_count", kind="training", status="failed") == 1
    assert value(seen, "areal_trajectory_staleness_versions_bucket", le="0.0") == 1
    door.open()


@pytest.mark.any_loop
def test_names_units_and_labels_are_as_prometheus_wants_them(make_executor: MakeExecutor) -> None:
    with serve_prometheus(make_executor()) as server:
        metrics = scrape(server.url, "openmetrics")
    assert {one.name for one in metrics} == {prometheus_name(one) for one in (*FIGURES, *HISTOGRAMS)}
    for metric in metrics:
        assert re.fullmatch(r"areal_[a-z]+(_[a-z]+)*", metric.name), metric.name
        assert not re.search(r"_(total|count|sum|bucket|info|created)$", metric.name), metric.name
        assert not re.search(r"(milli|micro|_ms|minutes|hours|kilo|mega|percent)", metric.name), metric.name
        assert metric.documentation.endswith("."), metric.name
        assert metric.unit == next((u for u in ("seconds", "bytes") if metric.name.endswith(f"_{u}")), "")
        for sample in metric.samples:
            assert sample.name.endswith("_total") == (metric.type == "counter"), sample.name
            assert set(sample.labels) <= {
                "executor",
                "kind",
                "status",
                "state",
                "stage",
                "reason",
                "place",
                "server",
                "le",
            }


@pytest.mark.any_loop
def test_labels_have_few_values_whatever_ids_there_are(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=50)
    for number in range(50):
        executor.submit({"data_id": f"secret-{number}"}, Playing(_fails), task_id=1000 + number)
    with serve_prometheus(executor) as server:
        ended(executor, 50)
        seen = series_of(scrape(server.url))
    labels = {(name, one) for _, pairs in seen for name, one in pairs if name != "le"}
    known = {*KINDS, *STATUSES, *STAGES, "main"}
    assert {one for name, one in labels if name in ("executor", "kind", "status", "stage")} <= known
    assert not [one for _, one in labels if "secret" in one or "100" in one]


async def _fails(data: Any) -> Any:
    raise ValueError(data)


@pytest.mark.any_loop
def test_several_executors_of_a_process_are_told_apart_by_name(make_executor: MakeExecutor) -> None:
    one, other = make_executor(Engine(1)), make_executor(Engine(2))
    with serve_prometheus({"student": one, "teacher": other}) as server:
        seen = series_of(scrape(server.url, "openmetrics"))
    assert value(seen, "areal_policy_version", executor="student") == 1
    assert value(seen, "areal_policy_version", executor="teacher") == 2
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PrometheusCollector(one))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(PrometheusCollector(other))


def test_counters_never_fall_when_executor_and_engine_begin_again(
    loop_factory: Callable[[], Any],
) -> None:
    config = InferenceEngineConfig(consumer_batch_size=4)
    workflow = SingleTurnWorkflow(lambda *_: 1.0, GenerationHyperparameters(max_new_tokens=3))
    items = [{"input_ids": [1, 2, 3]}] * 2
    with EmbeddedServer(mode="test") as server, RemoteInfEngine(config) as engine:
        executor = WorkflowExecutor(config, engine, loop_factory=loop_factory)
        collector = PrometheusCollector(executor)
        assert series_of(collected(collector)) == {}  # it has not begun
        before: Series = {}
        for life in (1, 2, 3):
            engine.initialize(server.addr)
            executor.initialize()
            executor.rollout_batch(items, workflow)
            executor.submit(items[0], workflow)
            ended(executor, 3 * life)
            acts: list[Callable[[], object]] = [lambda: None, executor.destroy, engine.destroy]
            for act in acts:
                act()
                after = counters(collected(collector))
                assert [key for key, old in before.items() if after.get(key, old) < old] == []
                before |= after  # servers come and go with the engine
            assert value(before, "areal_generations_ended_total", status="completed") == 3 * life
            assert value(before, "areal_rollouts_ended_total", kind="training", status="accepted") == 3 * life
            assert value(before, "areal_rollouts_discarded_total", kind="training") == life - 1


@pytest.mark.any_loop
def test_of_each_server_there_is_what_tells_how_fast_it_is(make_executor: MakeExecutor) -> None:
    request = ModelRequest([1, 2, 3], GenerationHyperparameters(max_new_tokens=4, ignore_eos=True))
    with (
        EmbeddedServer(mode="test") as one,
        EmbeddedServer(mode="test") as other,
        RemoteInfEngine(InferenceEngineConfig()) as engine,
    ):
        engine.initialize([one.addr, other.addr])
        executor = make_executor(engine)
        for _ in range(3):
            executor.runner.run(engine.agenerate, request)
        one.faults(["status=400"])
        other.faults(["status=400"])
        with pytest.raises(ServerStatusError):
            executor.runner.run(engine.agenerate, request)
        stats = engine.stats()
        seen = series_of(collected(PrometheusCollector(executor)))
        executor.destroy()
    for server in stats.servers:
        assert value(seen, "areal_server_tokens_total", server=server.name) == server.tokens
        assert value(seen, "areal_server_busy_seconds_total", server=server.name) == server.seconds > 0
    counts = {
        status: [
            value(seen, "areal_server_requests_total", server=server.name, status=status)
            for server in stats.servers
        ]
        for status in ("completed", "failed", "cancelled")
    }
    assert sorted(counts["completed"]) == [1, 2]
    assert sorted(counts["failed"]) == [0, 1]
    assert counts["cancelled"] == [0, 0]
    ended = {
        status: value(seen, "areal_generations_ended_total", status=status)
        for status in ("completed", "failed", "cancelled")
    }
    assert ended == {"completed": 3, "failed": 1, "cancelled": 0}


@pytest.mark.any_loop
def test_each_counter_of_an_engine_goes_on_in_its_next_life() -> None:
    lives, first, second = _EngineLives(), Door(), Door()
    lives.joined(changed(engine=EngineStats(ended=7, failed=1, cancelled=2, attempts=9, tokens=50)), first)
    begun = EngineStats(ended=1, failed=1, cancelled=1, attempts=1, tokens=1)
    joined = lives.joined(changed(engine=begun), second)
    assert joined.engine == EngineStats(ended=8, failed=2, cancelled=3, attempts=10, tokens=51)


@pytest.mark.any_loop
def test_a_counter_that_begins_anew_goes_on_and_one_that_falls_for_a_moment_stays() -> None:
    rising = _Rising()
    assert [rising.next(value, begins_anew=value < rising.last) for value in (2, 5, 1, 3, 0)] == [
        2,
        5,
        6,
        8,
        8,
    ]
    steady = _Rising()
    assert [steady.next(value, begins_anew=False) for value in (2, 5, 4, 6)] == [2, 5, 5, 6]


def test_what_became_too_old_after_it_was_accepted_stays_in_the_count_of_accepted(
    make_executor: MakeExecutor,
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=4, on_stale="drop")
    collector = PrometheusCollector(executor)
    for number in range(3):
        executor.submit(number, answering)
    ended(executor, 3)
    assert _endings(collector) == {"accepted": 3}
    engine.set_version(1)
    turn_loop(executor.runner)
    assert executor.ledger.accepted == 0
    assert _endings(collector) == {"accepted": 3, "stale": 3}
    seen = series_of(collected(collector))
    assert value(seen, "areal_rollouts_expired_total", kind="training") == 3


def _endings(collector: PrometheusCollector) -> dict[str, float]:
    seen = series_of(collected(collector))
    counts = {one: value(seen, "areal_rollouts_ended_total", kind="training", status=one) for one in STATUSES}
    return {status: count for status, count in counts.items() if count}


@pytest.mark.any_loop
def test_what_ended_before_anybody_asked_is_counted_too(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    for data in (1, None):
        executor.submit(data, obeying)
    ended(executor, 2)
    collector = PrometheusCollector(executor)
    turn_loop(executor.runner)
    executor.submit(2, obeying)
    ended(executor, 3)
    assert _endings(collector) == {"accepted": 2, "rejected": 1}
    assert _endings(PrometheusCollector(executor)) == {"accepted": 2, "rejected": 1}  # one meter for all


def test_staleness_is_that_at_delivery(make_executor: MakeExecutor) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=4, max_head_offpolicyness=3)
    collector = PrometheusCollector(executor)
    executor.submit(1, answering)
    ended(executor, 1)
    engine.set_version(3)
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    seen = series_of(collected(collector))
    assert value(seen, "areal_trajectory_staleness_versions_bucket", le="2.0") == 0
    assert value(seen, "areal_trajectory_staleness_versions_bucket", le="3.0") == 1
    assert value(seen, "areal_trajectory_staleness_versions_sum") == 3


@pytest.mark.any_loop
def test_it_can_be_scraped_while_a_rollout_blocks_the_loop(make_executor: MakeExecutor) -> None:
    executor, blockade = make_executor(loop_block_warning=None), Blockade()
    executor.submit(trajectory_of(1), Playing(blockade.block))
    blockade.wait_until_entered()
    with serve_prometheus(executor) as server:  # which begins to count when the loop goes on
        assert value(series_of(scrape(server.url)), "areal_rollouts", kind="training", state="running") == 1
        blockade.lift()
        ended(executor, 1)


@pytest.mark.any_loop
def test_no_figures_keep_an_executor_alive(loop_name: str) -> None:
    executor = WorkflowExecutor(InferenceEngineConfig(), Engine())
    collector = PrometheusCollector(executor)
    with executor:
        assert series_of(collected(collector)) != {}
    del executor
    gc.collect()
    assert series_of(collected(collector)) == {}


@pytest.mark.any_loop
def test_a_server_listens_here_alone_and_its_end_frees_the_port_and_the_thread(
    make_executor: MakeExecutor,
) -> None:
    executor, before = make_executor(), threading.active_count()
    server = serve_prometheus(executor)
    assert (server.host, server.url) == ("127.0.0.1", f"http://127.0.0.1:{server.port}/metrics")
    with pytest.raises(OSError, match="cannot serve metrics") as refused:
        serve_prometheus(executor, server.port)
    assert str(refused.value).endswith(
        f"cannot serve metrics on 127.0.0.1:{server.port}: Address already in use; "
        "another program or executor serves there: give another port, or 0 for a free one"
    )
    assert refused.value.errno == errno.EADDRINUSE
    server.close()
    server.close()
    assert threading.active_count() == before
    serve_prometheus(executor, server.port).close()


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3,), TypeError),
        (({"a": 3},), TypeError),
        (("executor", -1), ValueError),
        (("executor", 70_000), ValueError),
        (("executor", 0, 3), TypeError),
        (("executor", 0, "no.such.host.invalid"), OSError),
        (("executor", 0, "192.0.2.1"), OSError),
    ],
    ids=["no executor", "none by name", "port", "large port", "host", "unknown host", "another's host"],
)
def test_what_cannot_be_served_is_refused(
    make_executor: MakeExecutor, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    first, *rest = arguments
    with pytest.raises(error) as refused:
        serve_prometheus(make_executor() if first == "executor" else first, *rest)
    if error is OSError:
        assert f"cannot serve metrics on {rest[1]}:0: " in str(refused.value)
        assert str(refused.value).endswith("; give a host that is an address of this machine")


@pytest.mark.any_loop
def test_a_forked_child_shows_no_figures_of_its_parents(run_script: RunScript) -> None:
    done = run_script("""
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads when it forks
        from areal_core import InferenceEngineConfig, WorkflowExecutor
        from areal_core.metrics import PrometheusCollector, serve_prometheus

        class Engine:
            def get_version(self):
                return 0

        with WorkflowExecutor(InferenceEngineConfig(), Engine()) as executor:
            collector = PrometheusCollector(executor)
            collector._meters["main"]._lock.acquire()  # as a scrape would, in another thread
            child = os.fork()
            if child == 0:
                print(sum(len(metric.samples) for metric in collector.collect()), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            collector._meters["main"]._lock.release()
    """)
    assert (done.stdout, done.stderr) == ("0\n", "")


# -- the dashboard ---------------------------------------------------------------------------------


NOT_ON_THE_DASHBOARD: dict[str, str] = {}
"""Metrics that are nowhere on it, and why."""


@pytest.mark.any_loop
def test_the_dashboard_shows_each_metric_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = {name for query in queries for name in re.findall(r"\bareal_\w+", query)}
    exported = set()
    for figure in FIGURES:
        exported.add(f"{prometheus_name(figure)}{'_total' if figure.is_counter else ''}")
    shown_as = {f"{prometheus_name(one)}_bucket" for one in HISTOGRAMS}
    assert used - exported - shown_as == set()
    assert (exported | shown_as) - used == NOT_ON_THE_DASHBOARD.keys()


@pytest.mark.any_loop
def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 41
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert max(right for right, _ in cells) < 24
        for target in panel.get("targets", ()):
            assert target["expr"].count("(") == target["expr"].count(")")
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            assert target["datasource"]["uid"] == "${datasource}"
            for name in re.findall(r"(areal_\w+_total)", target["expr"]):
                assert re.search(rf"(rate|increase)\({name}", target["expr"]), target["expr"]


@pytest.mark.any_loop
def test_the_guide_has_a_row_for_each_figure_that_says_what_it_says() -> None:
    row = r"^\| `(areal_\w+)`(?: \(histogram\))? \| `([\w.]+)` \| (.*?) ?\| (.*?) \|$"
    rows = {prometheus: rest for prometheus, *rest in re.findall(row, GUIDE.read_text(), re.MULTILINE)}
    figures = {}
    for one in (*FIGURES, *HISTOGRAMS):
        name = f"{prometheus_name(one)}{'_total' if getattr(one, 'is_counter', False) else ''}"
        figures[name] = [one.name, ", ".join(f"`{label}`" for label in one.labels), one.help]
    assert rows == figures


# -- OpenTelemetry ---------------------------------------------------------------------------------


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Read what a provider, which `provider_of` gives, has."""
    reader = InMemoryMetricReader()
    _providers[reader] = provider = MeterProvider([reader])
    yield reader
    del _providers[reader]
    provider.shutdown()


_providers: dict[InMemoryMetricReader, MeterProvider] = {}


def points_of(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], Any]]:
    """Return the points of each instrument by the values of their attributes."""
    data = reader.get_metrics_data()
    found: dict[str, dict[tuple[Any, ...], Any]] = {}
    for resource in () if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = found.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    key = tuple(dict(point.attributes or {}).values())
                    assert key not in points, (metric.name, key)
                    points[key] = point
    return found


def test_opentelemetry_gets_the_same_figures(
    make_executor: MakeExecutor, reader: InMemoryMetricReader
) -> None:
    executor = make_executor(Engine(3), consumer_batch_size=8)
    made = instrument(executor, _providers[reader])
    for data in (1, None, 2):
        executor.submit(data, obeying)
    ended(executor, 3)
    seen = points_of(reader)
    assert seen["areal.rollouts.ended"]["main", "training", "accepted"].value == 2
    assert seen["areal.policy.version"]["main",].value == 3
    assert type(seen["areal.policy.version"]["main",].value) is int
    assert seen["areal.rollout.duration"]["main", "training", "accepted"].count == 2
    assert seen["areal.rollout.duration"]["main", "training", "rejected"].count == 1
    prometheus = series_of(collected(PrometheusCollector(executor)))
    for figure in FIGURES:
        name = f"{prometheus_name(figure)}{'_total' if figure.is_counter else ''}"
        if "second" not in name:
            theirs = sorted(point.value for point in seen.get(figure.name, {}).values())
            assert theirs == sorted(one for (shown, _), one in prometheus.items() if shown == name), name
    made.close()


@pytest.mark.any_loop
def test_names_and_units_are_as_opentelemetry_wants_them(
    make_executor: MakeExecutor, reader: InMemoryMetricReader
) -> None:
    with_server = InferenceEngineConfig()
    with EmbeddedServer(mode="test") as server, RemoteInfEngine(with_server) as engine:
        engine.initialize(server.addr)
        instrument(make_executor(engine), _providers[reader])
        data = reader.get_metrics_data()
        assert data is not None
        (scope,) = data.resource_metrics[0].scope_metrics
        attributes = [dict(p.attributes or {}) for m in scope.metrics for p in m.data.data_points]
    assert scope.scope.name == "areal_core"
    known = {figure.name: figure for figure in (*FIGURES, *HISTOGRAMS)}
    for metric in scope.metrics:
        assert re.fullmatch(r"areal(\.[a-z_]+)+", metric.name)
        assert re.fullmatch(r"s|By|1|\{[a-z]+\}|", metric.unit or "")
        assert (metric.name, metric.unit) == (known[metric.name].name, known[metric.name].unit)
    host, _, port = server.addr.rpartition(":")
    theirs = [one for one in attributes if "server.address" in one]
    assert theirs
    assert {(one["server.address"], one["server.port"]) for one in theirs} == {(host, int(port))}


def test_one_that_is_instrumented_twice_is_counted_once(
    make_executor: MakeExecutor, reader: InMemoryMetricReader
) -> None:
    executor = make_executor(consumer_batch_size=8)
    first = instrument(executor, _providers[reader])
    second = instrument(executor, _providers[reader], name="student")
    executor.submit(1, answering)
    ended(executor, 1)
    first.close()  # which the second has done already
    seen = points_of(reader)
    assert list(seen["areal.policy.version"]) == [("student",)]
    assert {key: point.count for key, point in seen["areal.rollout.duration"].items()} == {
        ("student", "training", "accepted"): 1
    }
    second.close()
    second.close()
    executor.submit(1, answering)
    ended(executor, 2)
    seen = points_of(reader)
    assert "areal.policy.version" not in seen
    assert meter_of(executor).listeners == []


@pytest.mark.any_loop
def test_executors_need_names_of_their_own_and_that_of_one_that_is_gone_is_free(
    make_executor: MakeExecutor, reader: InMemoryMetricReader
) -> None:
    provider = _providers[reader]
    instrument(make_executor(Engine(1)), provider)
    other = make_executor(Engine(2))
    with pytest.raises(ValueError, match="'main' is that of another executor"):
        instrument(other, provider)
    instrument(other, provider, name="teacher")
    versions = points_of(reader)["areal.policy.version"]
    assert {key: point.value for key, point in versions.items()} == {("main",): 1, ("teacher",): 2}
    gone = WorkflowExecutor(InferenceEngineConfig(), Engine())
    instrument(gone, provider, name="gone")
    del gone
    gc.collect()
    instrument(make_executor(Engine(3)), provider, name="gone")


@pytest.mark.any_loop
def test_a_collection_takes_one_snapshot(make_executor: MakeExecutor, reader: InMemoryMetricReader) -> None:
    executor, taken = make_executor(), []
    snapshot = executor.snapshot

    def counted() -> Any:
        taken.append(1)
        return snapshot()

    executor.snapshot = counted  # type: ignore[method-assign]
    instrument(executor, _providers[reader])
    for count in (1, 2, 3):
        points_of(reader)
        assert len(taken) == count


class Broken(otel.NoOpMeterProvider):
    """A provider whose instruments raise."""

    def get_meter(self, *arguments: Any, **options: Any) -> otel.Meter:
        return _BrokenMeter("broken")


class _BrokenMeter(otel.NoOpMeter):
    def create_histogram(self, *arguments: Any, **options: Any) -> otel.Histogram:
        return _BrokenHistogram("broken")


class _BrokenHistogram(otel.NoOpHistogram):
    def record(self, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("no disk")


def test_a_provider_that_raises_costs_its_figures_alone_and_is_told_of_once(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=8)
    made = instrument(executor, Broken())
    assert isinstance(made, Instrumentation)
    for number in range(5):
        executor.submit(number, answering)
    executor.wait(5, WAIT_S)
    turn_loop(executor.runner)
    made.flush()
    assert [line.message.split()[0] for line in log_lines if line.level != "debug"] == ["metering_failed"]
    assert executor.snapshot().training.accepted == 5


@pytest.mark.any_loop
def test_each_of_the_two_extras_is_imported_for_its_own_names_alone(run_script: RunScript) -> None:
    done = run_script("""
        import sys
        from areal_core import metrics, workflow_executor
        print([name for name in ("prometheus_client", "opentelemetry") if name in sys.modules])
        metrics.serve_prometheus
        print([name for name in ("prometheus_client", "opentelemetry") if name in sys.modules])
    """)
    assert (done.stdout, done.stderr) == ("[]\n['prometheus_client']\n", "")
