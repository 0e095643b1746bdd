"""``adaptrain search report``: a study as one HTML page that needs nothing else."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import optuna
from adaptrain_api.search.space import SearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from adaptrain.errors import InvalidJob
from adaptrain.search.report.diagram import draw
from adaptrain.search.spaces.registry import SPACES, make_space
from adaptrain.search.study.study import JOURNAL, as_architecture, open_store

TOP = 10
DRAWN = 3
LEAST = 10
"""Trials without which nothing can be said of importance."""
WIDTH, HEIGHT, MARGIN = 640, 260, 46

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top;
border-bottom: 1px solid #dde3ea } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
code { font: 12px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
h3 { font-size: .95rem; margin-bottom: .2rem }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #52606d }
.axis { stroke: #9aa5b1 } .dot { fill: #7b8ba0; opacity: .55 } .front { fill: #d9480f }
.best { fill: none; stroke: #d9480f; stroke-width: 2 } .bar { fill: #2f6fb2 } .failed { color: #a61e1e }
"""

Point = tuple[float, float]


def report(folder: Path, name: str | None, output: Path) -> str:
    """Write the page of a study in a folder; returns a line for the user.

    Raises:
        InvalidJob: there is no study there, or several and none is named.
    """
    if not (folder / JOURNAL).exists():
        raise InvalidJob(f"{folder}: there is no {JOURNAL} in it: name the folder of a search's storage or --output")
    storage = open_store(folder, None).storage
    names = [study.study_name for study in storage.get_all_studies()]
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise InvalidJob(f"{folder} has the studies {', '.join(names) or '(none)'}: name one of them with --study")
    study = optuna.load_study(study_name=name, storage=storage)
    output.write_text(render(study))
    return f"{output}: {len(study.trials)} trials of {name}"


def render(study: optuna.Study) -> str:
    """The page."""
    objectives: list[dict[str, str]] = study.user_attrs["space"]["objectives"]
    metrics = [one["metric"] for one in objectives]
    goals = ", ".join(f"{one['goal']} {one['metric']}" for one in objectives)
    every = [trial for trial in study.get_trials(deepcopy=False) if "trial" in trial.user_attrs]
    trials = [trial for trial in every if "ranking" not in trial.user_attrs]
    supernets = [trial.user_attrs for trial in every if "ranking" in trial.user_attrs]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    pruned = len(trials) - len(complete) - len(failed)
    feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    body = [
        f"<h1>{escape(study.study_name)}</h1>",
        f"<p>{len(complete)} trials completed, {pruned} were stopped early, {len(failed)} failed."
        + (f" {len(complete) - len(feasible)} break a constraint." if len(feasible) < len(complete) else "")
        + f" Objectives: {escape(goals)}.</p>",
        *(
            f"<p>Trial {said['trial']} trained one network that all cells share, in {said['seconds']:.0f} s, and ranked"
            f" {len(said['ranking'])} of them; the others were trained from scratch.</p>"
            for said in supernets
        ),
    ]
    if feasible:
        body += [f"<h2>Progress: {escape(metrics[0])}</h2>", _progress(study, complete, feasible)]
        if len(metrics) > 1:
            front = [trial for trial in study.best_trials if trial.number in {one.number for one in feasible}]
            body += [f"<h2>Pareto front: {len(front)} trials</h2>", _scatter(metrics, complete, front)]
        elif len(complete) >= LEAST and len(complete[0].params) > 1:
            body += ["<h2>What matters (fANOVA; Hutter et al., 2014)</h2>", _importance(study)]
        best = sorted(feasible, key=lambda one: _values(one)[0], reverse=study.directions[0] == StudyDirection.MAXIMIZE)
        body.append("<h2>The best</h2>")
        if any(trial.user_attrs["why"].get("again") for trial in complete):
            body.append(
                "<p>The search is noisy: these are its luckiest trials. Its winner, the first of the search's"
                " <code>status.top</code>, is the architecture that is best on average.</p>"
            )
        body.append(_table(metrics, best[:TOP]))
        body.append(_pictures(study.user_attrs["space"]["space"], best[:DRAWN]))
    if failed:
        body += ["<h2>Why trials failed</h2>", _failures(failed)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(study.study_name)}</title>'
        f"<style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def _values(trial: FrozenTrial) -> list[float]:
    assert trial.values is not None
    return list(trial.values)


def _progress(study: optuna.Study, complete: Sequence[FrozenTrial], feasible: Sequence[FrozenTrial]) -> str:
    """Each trial's first objective, and the best so far, over the trials in the order in which they ended."""
    better = max if study.directions[0] == StudyDirection.MAXIMIZE else min
    fits = {trial.number for trial in feasible}
    points, best, line = [], math.nan, list[Point]()
    for x, trial in enumerate(complete, 1):
        value = _values(trial)[0]
        points.append((float(x), value))
        if trial.number in fits:
            best = value if math.isnan(best) else better(best, value)
        if not math.isnan(best):
            line.append((float(x), best))
    place = _Axes([x for x, _ in points], [y for _, y in points], "trials that ended", "")
    steps = " ".join(f"{'M' if n == 0 else 'L'}{place.at(point)}" for n, point in enumerate(line))
    return place.svg(place.dots(points, "dot") + f'<path class="best" d="{steps}"/>')


def _scatter(metrics: list[str], complete: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> str:
    every = [(_values(trial)[1], _values(trial)[0]) for trial in complete]
    best = [(_values(trial)[1], _values(trial)[0]) for trial in front]
    place = _Axes([x for x, _ in every], [y for _, y in every], metrics[1], metrics[0])
    return place.svg(place.dots(every, "dot") + place.dots(best, "front"))


def _importance(study: optuna.Study) -> str:
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    rows = []
    for n, (name, share) in enumerate(sorted(found.items(), key=lambda one: -one[1])):
        y, wide = 22 * n, 380 * share
        rows.append(
            f'<text x="0" y="{y + 14}">{escape(name)}</text><rect class="bar" x="230" y="{y + 3}" width="{wide:.1f}"'
            f' height="14"/><text x="{236 + wide:.1f}" y="{y + 14}">{share:.0%}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {22 * len(rows) + 6}" role="img">{"".join(rows)}</svg>'


def _table(metrics: list[str], best: Sequence[FrozenTrial]) -> str:
    names = list(dict.fromkeys((*metrics, *sorted(best[0].user_attrs["metrics"]))))
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = []
    for trial in best:
        said = trial.user_attrs
        cells = "".join(f'<td class="number">{_number(said["metrics"].get(name))}</td>' for name in names)
        chosen = trial.params or said["architecture"]
        rows.append(
            f"<tr><td>{said['trial']}</td>{cells}<td><code>{_json(chosen)}</code></td>"
            f"<td><code>{_json(said['why'])}</code></td></tr>"
        )
    return (
        f"<table><tr><th>trial</th>{head}<th>architecture</th><th>why it was asked for</th></tr>{''.join(rows)}</table>"
    )


def _pictures(space: dict[str, Any], best: Sequence[FrozenTrial]) -> str:
    """Of networks in spaces of ours: a user's code isn't run to look at a study."""
    spec = SearchSpace.model_validate(space)
    if spec.name not in SPACES:
        return ""
    made, found = make_space(spec), list[str]()
    for trial in best:
        for diagram in made.diagrams(as_architecture(trial.user_attrs["architecture"])):
            found.append(f"<h3>Trial {trial.user_attrs['trial']}: {escape(diagram.title)}</h3>{draw(diagram)}")
    return "".join(found)


def _failures(trials: Sequence[FrozenTrial]) -> str:
    rows = [
        f"<tr><td>{trial.user_attrs['trial']}</td><td><code>{_json(trial.params)}</code></td>"
        f'<td class="failed"><code>{escape(_last(trial.user_attrs.get("message", "")))}</code></td></tr>'
        for trial in trials[:TOP]
    ]
    return f"<table><tr><th>trial</th><th>architecture</th><th>its last words</th></tr>{''.join(rows)}</table>"


def _last(message: str) -> str:
    return (message.strip().splitlines() or ["nothing was said"])[-1]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _json(value: Any) -> str:
    return escape(json.dumps(value, default=str))


class _Axes:
    """Places points in a drawing."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str) -> None:
        self._x, self._y = _range(xs), _range(ys)
        self._names = x_name, y_name

    def at(self, point: Point) -> str:
        (low_x, high_x), (low_y, high_y) = self._x, self._y
        x = MARGIN + (point[0] - low_x) / (high_x - low_x) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (point[1] - low_y) / (high_y - low_y) * (HEIGHT - 1.5 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    def dots(self, points: Sequence[Point], kind: str) -> str:
        places = (self.at(point).split(",") for point in points)
        return "".join(f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>' for x, y in places)

    def svg(self, inside: str) -> str:
        base, right = HEIGHT - MARGIN, WIDTH - MARGIN
        (low_x, high_x), (low_y, high_y) = self._x, self._y
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
            f'<path class="axis" fill="none" d="M{MARGIN},{MARGIN / 2} V{base} H{right}"/>{inside}'
            f'<text x="{MARGIN}" y="{base + 16}">{low_x:.6g}</text>'
            f'<text x="{right}" y="{base + 16}" text-anchor="end">{high_x:.6g}</text>'
            f'<text x="{WIDTH / 2}" y="{base + 32}" text-anchor="middle">{escape(self._names[0])}</text>'
            f'<text x="{MARGIN - 4}" y="{base}" text-anchor="end">{low_y:.4g}</text>'
            f'<text x="{MARGIN - 4}" y="{MARGIN / 2 + 10}" text-anchor="end">{high_y:.4g}</text>'
            f'<text x="{MARGIN + 4}" y="{MARGIN / 2}">{escape(self._names[1])}</text></svg>'
        )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
