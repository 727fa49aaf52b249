"""Tests of what a run that was interrupted and resumed shows in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import fit_arguments, signalled
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from lightning_switchkd.cli.main import main
from lightning_switchkd.core.errors import Interrupted
from lightning_switchkd.training.loggers import FINAL_METRICS, TensorBoardLogger


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an interrupted run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(Interrupted):
        main(fit_arguments(folder, run, "--answer_panel.num_samples=0", *signalled("on_train_batch_start", 2)))
    return run


def hparams(run: Path) -> tuple[list[str], Any]:
    """Return what HPARAMS shows: the names of the settings, and the only entry."""
    runs, request = EventMultiplexer().AddRun(str(run), "run").Reload(), context.RequestContext()
    shown = Context(TBContext(data_provider=MultiplexerDataProvider(runs, "")))
    experiment = shown.experiment_from_metadata(request, "", True, shown.hparams_metadata(request, ""), [])
    listed = ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=[0, 1, 2, 3], include_metrics=True)
    (entry,) = Handler(request, shown, "", listed).run().session_groups
    return [info.name for info in experiment.hparam_infos], entry


def test_hparams_of_an_interrupted_and_resumed_run(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, entry = hparams(run)
    assert names[:4] == ["_batch_size", "_lr", "_method", "_objective"]
    assert entry.hparams["_method"].string_value == "switch_kd"
    assert {value.name.tag: value.training_step for value in entry.metric_values}["val/accuracy"] == 1  # counted from 0
    changes = ("--model.objective.init_args.temperature=1", "--trainer.callbacks=[]")
    main(fit_arguments(folder, run, "--answer_panel.num_samples=0", "--ckpt_path=last", *changes))
    changed = "Changed since the checkpoint: trainer.callbacks [{'class_path': 'command.Signal'"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(changed))
    assert line.endswith("-> [], model.objective.init_args.temperature 3.0 -> 1.0.")
    _, entry = hparams(run)
    assert {value.name.tag: value.training_step for value in entry.metric_values} == dict.fromkeys(FINAL_METRICS, 3)


def test_losses_and_scores_come_first(run: Path) -> None:
    tags = EventAccumulator(str(run)).Reload().Tags()
    groups = sorted({tag.partition("/")[0] for tag in (*tags["scalars"], *tags["histograms"])})
    assert groups[:2] == ["train", "val"]
    assert all(group.startswith("watch_") for group in groups[2:])
    assert {tag for tag in tags["scalars"] if tag.startswith("train/")} == {
        f"train/loss/{term}" for term in ("ce", "align", "vsd", "total")
    }
    assert {"val/accuracy", "val/exact_match", "watch_val/dbild/align/overlap"} <= set(tags["scalars"])


def test_counts_are_shown_once_they_are_not_zero(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path))
    logger.log_metrics({"data/skipped_samples": 0.0, "train/loss/ce": 0.0, "epoch": 1}, 1)
    logger.log_metrics({"data/skipped_samples": 2.0}, 2)
    logger.save()
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"watch_data/skipped_samples", "train/loss/ce"}
    assert [event.step for event in events.Scalars("watch_data/skipped_samples")] == [2]
    assert not (tmp_path / "hparams.yaml").exists()
