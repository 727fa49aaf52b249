from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch
from lightning_switchkd.data import DataPaths, LLaVADataModule

MakeData = Callable[..., LLaVADataModule]


class Recorder(LightningModule):
    """Learns nothing, writes down what it is shown; may crash at its n-th batch."""

    def __init__(self, crash_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.crash_at = crash_at
        self.seen: list[tuple[list[int], bool, bool]] = []
        self.stepped: list[int] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        if len(self.seen) == self.crash_at:
            raise RuntimeError("power failure")
        self.seen.append((batch.sample_index.tolist(), batch.window_start, batch.window_end))
        return self.weight.sum() * batch.counts.token / batch.window.token

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.stepped.append(len(self.seen))

    def validation_step(self, batch: Batch, _: int) -> None:
        self.validated.append(batch.sample_index.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    def make(**settings: Any) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return Trainer(
            default_root_dir=tmp_path, **({"max_epochs": 2, "enable_checkpointing": False} | quiet | settings)
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and intervals
        yield make


@pytest.mark.parametrize("accumulate", [1, 2])
def test_windows_end_where_the_optimizer_steps(
    make_data: MakeData, trainer: Callable[..., Trainer], accumulate: int
) -> None:
    for limit in (1.0, 3):
        model = Recorder()
        settings = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit}
        trainer(**settings).fit(model, datamodule=make_data(22, batch_size=4))
        ends = [number for number, (_, _, end) in enumerate(model.seen, start=1) if end]
        starts = [number for number, (_, start, _) in enumerate(model.seen) if start]
        assert ends == model.stepped
        assert starts == [0, *ends[:-1]]


def test_epochs_differ_unless_overfitting(make_data: MakeData, trainer: Callable[..., Trainer]) -> None:
    free, bound = Recorder(), Recorder()
    trainer().fit(free, datamodule=make_data(8, batch_size=4))
    trainer(overfit_batches=1).fit(bound, datamodule=make_data(8, batch_size=4))
    assert free.seen[:2] != free.seen[2:]
    assert sorted(index for shown, *_ in free.seen[2:] for index in shown) == list(range(8))
    assert len(bound.seen) == 2
    assert bound.seen[0] == bound.seen[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crash_at", [3, 5, 7])  # mid-epoch 0, after an epoch, mid-epoch 1; checkpoints at even batches
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    make_data: MakeData, trainer: Callable[..., Trainer], tmp_path: Path, crash_at: int, workers: int
) -> None:
    def data(**changes: Any) -> LLaVADataModule:
        return make_data(19, **({"batch_size": 4, "num_workers": workers} | changes))

    straight, crashed, resumed = Recorder(), Recorder(crash_at), Recorder()
    trainer(accumulate_grad_batches=2).fit(straight, datamodule=data())
    assert len(straight.seen) == 8
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(RuntimeError, match="power failure"):
        trainer(accumulate_grad_batches=2, callbacks=[saving], enable_checkpointing=True).fit(
            crashed, datamodule=data()
        )
    done = crash_at // 2 * 2
    checkpoint = tmp_path / "saved" / f"step={done // 2}.ckpt"
    trainer(accumulate_grad_batches=2).fit(resumed, datamodule=data(), ckpt_path=checkpoint)
    assert crashed.seen[:done] + resumed.seen == straight.seen

    hparams = torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    paths = {"annotations": str(tmp_path / "train.json"), "image_root": str(tmp_path), "weight": 1.0}
    assert hparams["train"] == [paths]
    assert LLaVADataModule.load_from_checkpoint(checkpoint, weights_only=True).dataset("train").sample(0).id == "0"
    if done % 4:
        with pytest.raises(UserError, match="Cannot resume this checkpoint: 'seed' was 0 and is now 1"):
            trainer(accumulate_grad_batches=2).fit(Recorder(), datamodule=data(seed=1), ckpt_path=checkpoint)


def test_validation_and_test_keep_the_order(
    make_data: MakeData, write: Callable[..., DataPaths], trainer: Callable[..., Trainer]
) -> None:
    model = Recorder()
    data = make_data(4, val=None, batch_size=2)
    trainer(max_epochs=1).fit(model, datamodule=data)
    assert model.validated == []
    paths = write(
        [{"id": i, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]} for i in range(5)]
    )
    data = make_data(train=paths, val=paths, test=paths, batch_size=2, val_batch_size=3)
    trainer(num_sanity_val_steps=0, max_epochs=1).fit(model, datamodule=data)
    assert model.validated == [[0, 1, 2], [3, 4, -1]]
    assert [batch.sample_index.tolist() for batch in data.test_dataloader()] == model.validated


def test_building_one_touches_nothing() -> None:
    data = LLaVADataModule("nobody/nothing", train=DataPaths("nowhere.json", "nowhere"))
    with pytest.raises(UserError, match=r"data\.train\.image_root: the folder nowhere does not exist"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("settings", "stage", "says"),
    [
        ({"train": None}, "fit", r"data\.train is not set"),
        ({}, "validate", r"data\.val is not set"),
        ({}, "test", r"data\.test is not set"),
        ({"prompt_style": "vicuna"}, "fit", "Unknown prompt_style 'vicuna'"),
        ({"teacher_processor": "nowhere"}, "fit", "the folder 'nowhere' does not exist"),
    ],
)
def test_what_is_missing_is_named_by_its_setting(
    make_data: MakeData, settings: dict[str, Any], stage: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        make_data(4, **settings).setup(stage)


def test_missing_annotations_are_named_by_their_setting(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(4, val=DataPaths(str(tmp_path / "no.json"), str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.val\.annotations: The file .*no\.json does not exist"):
        data.prepare_data()


def test_a_bad_image_is_named_by_record_and_file(make_data: MakeData, write: Callable[..., DataPaths]) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    data = make_data(train=write([{"id": "r0", "image": "lost.png", "conversations": turns}]))
    with pytest.raises(
        UserError, match=r"Sample 0 \(id 'r0'\) of .*train\.json: The image 'lost\.png' is missing below"
    ):
        data.dataset("train")[0]


def test_a_teacher_with_its_own_eyes(make_data: MakeData, siglip_folder: Path, processor_folder: Path) -> None:
    batch = next(iter(make_data(8, teacher_processor=str(siglip_folder)).train_dataloader()))
    assert batch.pixel_values.shape[1:] == (3, 28, 28)
    assert batch.pixel_values_teacher.shape == (len(batch.pixel_values), 3, 16, 16)
    same = next(iter(make_data(8, teacher_processor=str(processor_folder)).train_dataloader()))
    assert same.pixel_values_teacher is None


def test_teacher_and_student_must_agree_on_tokens(make_data: MakeData, processor_folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for file in processor_folder.iterdir():
        (teacher / file.name).write_bytes(file.read_bytes())
    config = json.loads((teacher / "processor_config.json").read_text())
    (teacher / "processor_config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    with pytest.raises(UserError, match=r"has 4 tokens with data\.processor .* 5 with data\.teacher_processor"):
        make_data(4, teacher_processor=str(teacher)).setup("fit")


def test_the_command_line_reads_it(write: Callable[..., DataPaths], processor_folder: Path) -> None:
    paths = write([])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LLaVADataModule, "data")
    settings = {
        "processor": processor_folder,
        "train.annotations": paths.annotations,
        "train.image_root": paths.image_root,
    }
    arguments = [f"--data.{name}={value}" for name, value in settings.items()]
    config = parser.parse_args(["--data=LLaVADataModule", *arguments])
    assert parser.instantiate_classes(config).data._paths["train"] == [paths]


def test_settings_of_prompt_and_length_reach_the_samples(make_data: MakeData) -> None:
    data = make_data(6, prompt_style="tinyllava_v1", system="Be kind.", max_length=60)
    text = data.processor.tokenizer.decode(data.dataset("train")[0].input_ids)
    assert text == "Be kind. USER: Hello 0 ASSISTANT: a cat 0<|im_end|>"
    with pytest.raises(UserError, match="more than max_length 5"):
        make_data(6, max_length=5).dataset("train")[0]
