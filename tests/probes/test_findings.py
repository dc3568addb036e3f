"""What is said of a study is what its parts say: peaks, changes by cues, prompts, and how far models agree."""

import json
import re
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from sonde.probes import Results, probe, write_report
from sonde.probes.findings import NO_CUE, Answer, Findings
from sonde.probes.sentences import sentences
from sonde.store import Labels

N_IMAGES, PER_IMAGE, HIDDEN, LAYERS = 90, 8, 10, 4
N = N_IMAGES * PER_IMAGE
DRAWS, SEED = 50, 2
# How much the layers of each model know of the answer without a cue; the cue adds to it in layer 1 alone.
STRENGTH = {"near": (0.1, 0.8, 1.2, 0.5), "far": (0.2, 0.6, 1.4, 0.4)}


@pytest.fixture(scope="module")
def answers(make_store: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """Two models that were asked one task, with a cue and without, in two prompts each; eight samples to an image."""
    folder = tmp_path_factory.mktemp("findings")
    truth = [(i // 4) % 2 for i in range(N)]
    cue = [("cue", NO_CUE)[i % 2] for i in range(N)]
    prompt = [("plain", "polite")[(i // 2) % 2] for i in range(N)]
    found = []
    for model, strengths in STRENGTH.items():
        rng = np.random.default_rng(len(model))
        known = np.array(strengths)[:, None].repeat(N, axis=1)
        known[1] += 1.6 * (np.array(cue) == "cue")
        direction = rng.normal(size=HIDDEN)
        values = rng.normal(size=(LAYERS, N, HIDDEN)) + known[:, :, None] * (np.array(truth) - 0.5)[:, None] * direction
        store = make_store(
            folder / f"{model}.zarr",
            {"resid_post/last": values.astype(np.float32)},
            {"resid_post": range(LAYERS)},
            [f"i{i // PER_IMAGE}" for i in range(N)],
        )
        columns = {"holds": truth, "cue": cue, "prompt": prompt}
        for name, column in columns.items():
            store.write_labels(Labels.from_column(name, column))
        for which in (NO_CUE, "cue"):
            place = folder / f"{model}.probes" / which
            results = probe(
                store,
                "holds",
                where={"cue": which},
                title=f"holds, {which}",
                transfer="prompt",
                n_draws=DRAWS,
                seed=SEED,
                out=place,
            )
            found.append(Answer(model, "holding", which, results, place))
    return found


@pytest.fixture(scope="module")
def findings(answers: list[Answer]) -> Findings:
    return Findings.of(answers)


def curve(results: Results) -> pd.Series:
    """Test scores by layer."""
    rows = results.curves()
    rows = rows[rows["split"] == "test"]
    return rows.set_index("layer")["value"].sort_index()


def test_peaks_are_those_of_the_results(answers: list[Answer], findings: Findings) -> None:
    assert len(findings.peaks) == len(answers) == 4
    for answer, row in zip(answers, findings.peaks.to_dict("records"), strict=True):
        [line] = answer.results.summary().to_dict("records")
        assert (row["model"], row["task"], row["cue"]) == (answer.model, "holding", answer.cue)
        kept = [name for name in line if name != "model"]
        assert [row[name] for name in kept] == pytest.approx([line[name] for name in kept], nan_ok=True)
        assert row["n_layers"] == 10


def test_what_a_cue_changes_is_the_paired_difference_of_its_scores(answers: list[Answer], findings: Findings) -> None:
    assert len(findings.cues) == 2 * LAYERS
    by_name = {(answer.model, answer.cue): answer.results for answer in answers}
    for row in findings.cues.to_dict("records"):
        with_cue, without = by_name[row["model"], "cue"], by_name[row["model"], NO_CUE]
        layer = row["layer"]
        assert row["difference"] == pytest.approx(curve(with_cue)[layer] - curve(without)[layer])
        draws = [
            r.draws[(r.draws["layer"] == layer) & (r.draws["metric"] == row["metric"])].sort_values("draw")["value"]
            for r in (with_cue, without)
        ]
        low, high = np.quantile(draws[0].to_numpy(np.float64) - draws[1].to_numpy(np.float64), [0.025, 0.975])
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    helped = findings.cues.groupby("model").apply(lambda rows: rows.loc[rows["difference"].idxmax(), "layer"])
    assert helped.to_dict() == {"near": 1, "far": 1}


def test_answers_to_other_test_images_are_not_compared(answers: list[Answer], tmp_path: Path) -> None:
    first = answers[0]
    told = first.results.provenance | {"test_groups": "others"}
    moved = Results(first.results.rows, first.results.comparisons, told, first.results.draw_sources)
    findings = Findings.of([Answer("near", "holding", NO_CUE, moved, first.folder), *answers[1:2]])
    assert findings.cues.empty
    assert len(findings.peaks) == 2


def test_prompts_are_compared_at_the_best_layer(answers: list[Answer], findings: Findings) -> None:
    assert len(findings.prompts) == len(answers)
    for answer, row in zip(answers, findings.prompts.to_dict("records"), strict=True):
        controls = answer.results.controls
        here = controls[(controls["control"] == "transfer") & (controls["layer"] == answer.peak["best_layer"])]
        own = here["trained_on"] == here["tested_on"]
        assert row["same"] == pytest.approx(here.loc[own, "value"].mean())
        assert row["other"] == pytest.approx(here.loc[~own, "value"].mean())
        assert row["value"] == pytest.approx(row["same"] - row["other"])
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n_prompts"] == 2


def test_models_are_compared_by_their_curves_and_by_what_they_say(answers: list[Answer], findings: Findings) -> None:
    assert [(row["task"], row["cue"]) for row in findings.models.to_dict("records")] == [
        ("holding", NO_CUE),
        ("holding", "cue"),
    ]
    for row in findings.models.to_dict("records"):
        pair = [answer for answer in answers if answer.cue == row["cue"]]
        depth = np.linspace(0, LAYERS - 1, 33)
        one, other = (np.interp(depth, range(LAYERS), curve(answer.results).to_numpy()) for answer in pair)
        assert row["correlation"] == pytest.approx(spearmanr(one, other).statistic)
        best = [answer.results.summary().iloc[0] for answer in pair]
        assert (row["best"], row["other_best"]) == tuple(line["best"] for line in best)
        assert row["difference"] == pytest.approx(row["best"] - row["other_best"])
        # Both on the same draws of the same test groups: the spread is that of the differences.
        drawn = []
        for answer, line in zip(pair, best, strict=True):
            draws = answer.results.draws.query(f"metric == 'accuracy' and layer == {line['best_layer']}")
            drawn.append(draws.set_index("draw")["value"])
        assert [row["low"], row["high"]] == pytest.approx(np.quantile(drawn[0] - drawn[1], [0.025, 0.975]))
        said = []
        for answer in pair:
            scores = pd.read_parquet(answer.folder / "scores.parquet")
            said.append(scores[scores["layer"] == answer.peak["best_layer"]].set_index("id")["score"] > 0.5)
        assert row["kappa"] == pytest.approx(cohen_kappa_score(said[0], said[1].reindex(said[0].index)))
        assert row["n_answers"] == len(said[0]) > 0


def test_every_finding_is_a_sentence_with_its_figures(findings: Findings) -> None:
    by_kind = sentences(findings)
    assert {name: len(of_one) for name, of_one in by_kind.items()} == {"peaks": 4, "cues": 2, "prompts": 4, "models": 2}
    said = [sentence for of_one in by_kind.values() for sentence in of_one]
    peak = re.compile(
        r"^(near|far): holding( with cue)? peaks at layer \d+ of 10 \(accuracy \d+\.\d; resid_post, last\)"
        r"(, which is the top layer|; the top layer is \d+\.\d points (lower|higher)|; the top layer is \d+\.\d points "
        r"\[−?\d+\.\d, −?\d+\.\d\] (lower|higher)(, no clear difference)?)\.$"
    )
    assert all(peak.match(sentence) for sentence in said[:4]), said[:4]
    row = findings.cues[findings.cues["model"] == "near"].set_index("layer")
    assert f"most at layer 1, by +{100 * row.loc[1, 'difference']:.1f} points [" in said[4]
    prompts = findings.prompts.iloc[0]
    assert f"score {100 * prompts['same']:.1f} on the prompt that they were trained on" in said[6]
    models = findings.models.iloc[0]
    assert f"agrees by {models['kappa']:.2f} (Cohen's kappa)" in said[10]
    assert f"score {100 * models['best']:.1f} and {100 * models['other_best']:.1f}, " in said[10]
    assert f"{100 * abs(models['difference']):.1f} points [" in said[10]


def test_the_report_of_a_study_says_and_draws_them(answers: list[Answer], findings: Findings, tmp_path: Path) -> None:
    page = write_report([answer.results for answer in answers], tmp_path / "study.html", findings).read_text("utf-8")
    for sentence in (sentence for of_one in sentences(findings).values() for sentence in of_one):
        # Jinja writes an apostrophe as an entity.
        assert sentence.replace("'", "&#39;") in page
    assert "What cues change" in page
    assert page.count("trained on prompt") >= len(answers)
    scripts = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    figures = json.loads(scripts[0])
    assert {"cues", "penalties", "reliability", "transfer"} <= {figure["name"].partition("-")[0] for figure in figures}
    for figure in figures:
        # Checked against the schema of Vega-Lite, which writing a page leaves out.
        assert altair.Chart.from_dict(figure["spec"], validate=True)
    alone = write_report(answers[0].results, tmp_path / "alone.html").read_text("utf-8")
    assert "What cues change" not in alone
    assert "From prompt to prompt" in alone
