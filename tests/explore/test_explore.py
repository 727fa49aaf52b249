"""Tests of the notebooks' tables against the losses, and of memory at a real vocabulary."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from command import ROOT
from pandas import DataFrame

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import PATHWAYS
from lightning_switchkd.explore import Pair, curves, figures, open_pair, open_run, references, same_start
from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.losses import Kneedle, dbild
from lightning_switchkd.losses.select import FixedTopK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    # a student folder includes its processor
    for file in (folder / "processor").iterdir():
        (folder / "student" / file.name).write_bytes(file.read_bytes())
    annotations, images = folder / "records.json", folder / "images"
    return open_pair(
        f"{folder}/student", f"{folder}/teacher", str(annotations), str(images), student_init=f"{folder}/student"
    )


@pytest.fixture(scope="module")
def inspection(pair: Pair) -> Inspection:
    return pair.inspect(pair.pick(12), batch_size=5)


def test_rows_belong_to_the_samples(pair: Pair, inspection: Inspection) -> None:
    indices = pair.pick(12)
    assert inspection.about["sample"].drop_duplicates().tolist() == indices
    alone = pair.inspect(indices[3:4])
    rows = inspection.about.index[inspection.about["sample"] == indices[3]]
    assert alone.about.reset_index(drop=True).equals(inspection.about.loc[rows].reset_index(drop=True))
    for pathway in PATHWAYS:
        torch.testing.assert_close(
            alone.tokens.hidden[pathway], inspection.tokens.hidden[pathway][rows.tolist()], atol=1e-5, rtol=1e-4
        )
    assert (inspection.about.groupby("sample")["position"].min() == 0).all()


def test_statistics_equal_the_losses(inspection: Inspection) -> None:
    table = inspection.statistics()
    for row in (0, 7):
        logits = {pathway: inspection.logits(row, pathway)[None] for pathway in PATHWAYS}
        for prefix, pathway in (("", "student"), ("switch_", "switch")):
            loss = dbild(teacher=logits["teacher"], student=logits[pathway], select=Kneedle())  # type: ignore[index]
            assert table.loc[row, f"{prefix}dbild"] == pytest.approx(float(loss), rel=1e-4)
        for pathway in PATHWAYS:
            probabilities = logits[pathway].softmax(-1)[0]
            target = int(inspection.tokens.targets[row])
            assert table.loc[row, f"p_right_{pathway}"] == pytest.approx(float(probabilities[target]), rel=1e-4)
            assert table.loc[row, f"p_top_{pathway}"] == pytest.approx(float(probabilities.max()), rel=1e-4)
            entropy = -float((probabilities * probabilities.log()).sum())
            assert table.loc[row, f"entropy_{pathway}"] == pytest.approx(entropy, rel=1e-3)


def test_top_tokens_are_in_order(inspection: Inspection) -> None:
    top = inspection.top(4)
    assert len(top) == len(inspection) * 3 * 4
    one = top[(top["row"] == 5) & (top["pathway"] == "switch")]
    best = inspection.logits(5, "switch").softmax(-1).topk(4)
    assert one["probability"].tolist() == pytest.approx(best.values.tolist(), rel=1e-4)
    assert one["rank"].tolist() == [1, 2, 3, 4]


def test_pairs_add_up_to_the_term(inspection: Inspection) -> None:
    for row in (0, 9):
        led = [inspection.pairs(row, leader)["kl"].sum() for leader in ("teacher", "student")]  # type: ignore[arg-type]
        total = inspection.divergences(row, (3.0,))["reverse"][0]
        assert sum(led) == pytest.approx(total, rel=1e-5)
        assert inspection.pairs(row)["teacher"].sum() == pytest.approx(1)


def test_selections_and_curve(inspection: Inspection) -> None:
    sizes = inspection.sizes({"knee": Kneedle(), "eight": FixedTopK(8)})
    assert (sizes["eight"] == 8).all()
    assert sizes["knee"].tolist() == inspection.statistics()["k_teacher"].tolist()
    curve = inspection.curve(0, window=64)
    assert curve["logit"].is_monotonic_decreasing
    assert (curve["drop"].iloc[0], curve["drop"].iloc[-1]) == (0, pytest.approx(0, abs=1e-9))


def test_gradients_by_term_reach_their_parts(pair: Pair) -> None:
    norms = pair.gradients(pair.pick(6)).set_index("term")
    assert norms.loc["vsd", "vision"] > 0
    assert norms.loc["vsd", ["projector", "lm"]].tolist() == [0, 0]
    assert (norms.loc[["ce", "align"]] > 0).all().all()


def test_attention_gives_one_map_per_pathway(pair: Pair) -> None:
    index = next(i for i in pair.pick(20) if pair.image(i) is not None)
    maps = pair.attention(index)
    assert maps.keys() == set(PATHWAYS)
    for focus in maps.values():
        assert focus.shape == (2, 2)
        assert float(focus.sum()) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(maps["student"], maps["teacher"])
    again = pair.attention(index)
    assert all(torch.equal(maps[pathway], again[pathway]) for pathway in maps)
    without = next(i for i in range(48) if pair.image(i) is None)
    with pytest.raises(UserError, match="has 0 images"):
        pair.attention(without)


def test_attention_equals_the_models_own(pair: Pair) -> None:
    """The reference is Hugging Face's eager attention weights."""
    index = next(i for i in pair.pick(20) if pair.image(i) is not None)
    focus = pair.attention(index)["student"].flatten()
    batch, vlm = pair.batch([index]), pair.student
    vlm.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = vlm.model(batch.input_ids, batch.pixel_values, output_attentions=True).attentions
    vlm.language_model.set_attn_implementation("sdpa")
    image = (batch.input_ids[0] == vlm.image_token_id).nonzero()[:, 0]
    queries = (batch.labels[0, 1:] != -100).nonzero()[:, 0]
    expected = torch.stack([w[0][:, queries][..., image].mean((0, 1)) for w in weights]).mean(0)
    torch.testing.assert_close(focus, expected / expected.sum(), atol=1e-5, rtol=1e-4)


def test_before_and_mistakes(pair: Pair, tmp_path: Path) -> None:
    assert torch.equal(pair.before().student.head.weight, pair.student.head.weight)
    with pytest.raises(UserError, match="is not a run folder"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="no sample of source 'kind7'"):
        pair.pick(3, "kind7")
    assert all(pair.data.dataset("val").sample(i).source == "kind1" for i in pair.pick(3, "kind1"))


def test_figure_of_tokens_ends_with_the_teacher(inspection: Inspection, pair: Pair) -> None:
    one = pair.inspect(pair.pick(1))
    figure = figures.tokens({"before": one, "after": one}, max_positions=1)
    rows = ["student\n(before)", "student\n(after)", "switch\n(before)", "switch\n(after)", "teacher"]
    assert [axis.get_ylabel() for axis in figure.axes] == rows
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "", "", "probability"]


def test_figure_of_distributions_explains_its_columns(inspection: Inspection) -> None:
    axis = figures.distributions(inspection.statistics(), ["k_teacher"]).axes[0]
    assert (axis.get_title(), axis.get_xlabel()) == ("k: tokens in the teacher's set", "kind of question")
    assert {*figures.TITLES} - {*inspection.statistics().columns} == set()


def test_figure_of_attention_has_a_scale_and_the_question(pair: Pair) -> None:
    index = next(i for i in pair.pick(20) if pair.image(i) is not None)
    image = pair.image(index)
    assert image is not None
    maps = pair.attention(index)
    figure = figures.attention(image, maps, pair.question(index))  # type: ignore[arg-type]
    assert figure.get_suptitle() == pair.question(index)
    scale = figure.axes[-1]
    assert "share of the attention" in scale.get_ylabel()
    assert scale.get_ylim() == (0, pytest.approx(max(float(focus.max()) for focus in maps.values())))


def write_run(folder: Path, student: str, teacher: str | None, accuracy: list[float], dbild: bool = True) -> Path:
    """Write the configuration and the metrics of a run."""
    folder.mkdir(parents=True)
    model = {"student": {"checkpoint": student}, "teacher": teacher and {"checkpoint": teacher}}
    (folder / "config.yaml").write_text(json.dumps({"model": model}), encoding="utf-8")
    columns = DataFrame({"step": range(1, 1 + len(accuracy)), "val/accuracy": accuracy})
    columns.assign(**({"k_teacher": 5} if dbild else {})).to_csv(folder / "metrics.csv", index=False)
    return folder


def test_figure_of_runs(tmp_path: Path) -> None:
    """One color per run in all panels, a marker for a single value, dashed lines for the models of a run."""
    start, teacher = tmp_path / "student_init", tmp_path / "teacher"
    write_run(start, "encoder", None, [0.1, 0.4])
    write_run(teacher, "encoder", None, [0.2, 0.9])
    models = f"{start}/student", f"{teacher}/student"
    run = write_run(tmp_path / "switch_kd", *models, [0.5, 0.6, 0.7])
    write_run(tmp_path / "sft", *models, [0.5], dbild=False)
    write_run(tmp_path / "other", "another/student", models[1], [0.5])
    runs = same_start(run)
    assert [folder.name for folder in runs] == ["sft", "switch_kd"]
    assert references(run) == {"teacher": teacher, "student (before)": start}
    table = curves(runs, ["val/accuracy", "k_teacher"])
    figure = figures.lines(table, levels=curves(references(run), ["val/accuracy"]))
    drawn = {axis.get_title(): {str(line.get_label()): line for line in axis.lines} for axis in figure.axes}
    accuracy = drawn["val/accuracy"]
    assert accuracy.keys() == {"sft", "switch_kd", "teacher", "student (before)"}
    assert (accuracy["sft"].get_marker(), accuracy["switch_kd"].get_marker()) == ("o", "None")
    assert accuracy["teacher"].get_linestyle() == "--"
    assert {*accuracy["teacher"].get_ydata()} == {0.9}  # type: ignore[misc]
    assert drawn["k_teacher"].keys() == {"switch_kd"}
    assert drawn["k_teacher"]["switch_kd"].get_color() == accuracy["switch_kd"].get_color()
    assert accuracy["sft"].get_color() != accuracy["switch_kd"].get_color()


MEMORY = """
import resource, torch
from pandas import DataFrame
from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.losses.logits import SupervisedTokens
from lightning_switchkd.models.head import Head
n, v, h = 1000, 151_936, 64
torch.manual_seed(0)
pathways = ("student", "teacher", "switch")
hidden = {p: torch.randn(n, h) for p in pathways}
tokens = SupervisedTokens(hidden, torch.randint(0, v, (n,)), torch.ones(n, dtype=torch.bool), v)
student, teacher = Head(torch.randn(v, h)), Head(torch.randn(v, h))
about = DataFrame({"sample": range(n)})
inspection = Inspection(tokens, {"student": student, "teacher": teacher, "switch": teacher}, about, str)
assert len(inspection.statistics()) == n and len(inspection.top(3)) == 9 * n
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_thousand_tokens_at_a_real_vocabulary_stay_below_two_gigabytes() -> None:
    process = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    peak = float(process.stdout)
    assert math.isfinite(peak)
    assert peak < 2, f"{peak:.2f} GiB"
