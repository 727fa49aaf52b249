"""`LLaVADataModule`: training, validation and test sets in LLaVA format, for the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch import LightningDataModule
from transformers import LlavaProcessor

from lightning_switchkd.core.errors import UserError, check_limits
from lightning_switchkd.core.types import Batch
from lightning_switchkd.data.collate import Collator
from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.data.images import ImageFolder, Pixels
from lightning_switchkd.data.processor import image_tokens, load_processor
from lightning_switchkd.data.prompts import Prompter, chat_template, prompt_style
from lightning_switchkd.data.quarantine import OnError, Quarantine, probe, read_exclusions
from lightning_switchkd.data.sources import Mixture, ShardCache, Source, open_source
from lightning_switchkd.data.sources.index import fingerprint
from lightning_switchkd.data.stream import BatchStream, Position

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_STAGES: dict[str | None, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


_AT_LEAST_ONE = ("batch_size", "val_batch_size", "max_length", "group_window", "max_bad_run", "pad_to_multiple_of")
_AT_LEAST_ZERO = ("num_workers", "probe", "cache_gb")
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_AT_LEAST_ONE, (1, math.inf)),
    **dict.fromkeys(_AT_LEAST_ZERO, (0, math.inf)),
    "max_bad_fraction": (0, 1),
}
"""Lowest and highest value of each number."""


@dataclass(frozen=True)
class DataPaths:
    """One data set.

    Attributes:
        annotations: LLaVA samples: a .json (array), .jsonl, .parquet or .tar file, or a folder or pattern of .parquet
            or .tar files (``shards/*.parquet``, ``shards/{000..012}.tar``). Parquet and tar files may also be URLs
            (``https://host/{000..012}.tar``, ``hf://datasets/owner/name/data/*.parquet``, ``s3://bucket/*.tar``).
        image_root: Folder that image paths are relative to. Not needed if the samples contain their images.
        weight: Mean number of times that an epoch uses each sample. With 0.5, an epoch uses half of the samples, and
            the next epoch the other half.
    """

    annotations: str
    image_root: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"The weight of {self.annotations} must be above 0, got {self.weight}. Set it to 1.")


Data: TypeAlias = DataPaths | list[DataPaths]
"""One data set, or several that are mixed."""


class LLaVADataModule(LightningDataModule):
    """Data sets in LLaVA format, as batches for distillation.

    The constructor reads no files and no network. `setup`, or the first property that needs a file, opens it.

    Args:
        processor: Folder (or Hugging Face id) of the student's LLaVA processor.
        train: The training set, or several that are mixed.
        val: The validation set.
        test: The test set.
        prompt_style: "qwen_chatml", "tinyllava_v1" or "plain".
        system: System prompt of conversations without one. None: the default of the style.
        teacher_processor: The teacher's processor, if it preprocesses images differently. Its tokenizer is not used.
        max_length: Maximum number of tokens of a sample, images included.
        batch_size: Samples in a micro-batch of one process.
        val_batch_size: The same for validation and test. None: `batch_size`.
        num_workers: Worker processes that prefetch, per process.
        seed: Seed of the shuffle.
        group_window: Optimizer steps within which samples of similar length, with or without images, are grouped to
            reduce padding. 1 keeps the shuffled order.
        on_error: "quarantine" skips invalid samples and lists them in ``quarantine/`` in the run's folder. "raise"
            stops at the first one.
        max_bad_fraction: A higher fraction of invalid samples stops the run, once 1,000 samples are read.
        max_bad_run: As many invalid samples in a row stop the run.
        probe: Training samples whose images are decoded before training, to find a wrong path early.
        exclude: File with samples to skip, as `validate-data` or the quarantine of a run writes it.
        exif_transpose: Rotate images by their EXIF orientation (LLaVA's own code does not).
        square_pad: Pad images to squares with the processor's mean color, as LLaVA does.
        pad_to_multiple_of: Round batch lengths up to a multiple of this number.
        packing: Put the samples of a micro-batch into one row without padding. Both models need a variable-length
            attention kernel (``attn_implementation`` flash_attention_2 or flex_attention).
        cache_dir: Folder for downloads of data behind URLs. None: the user's cache folder.
        cache_gb: Maximum size of the downloads in gigabytes. If the data set is larger, samples are shuffled within
            the files that fit.

    Raises:
        UserError: A number is outside its limits.
    """

    def __init__(
        self,
        processor: str,
        train: Data | None = None,
        val: Data | None = None,
        test: Data | None = None,
        prompt_style: str = "qwen_chatml",
        system: str | None = None,
        teacher_processor: str | None = None,
        max_length: int = 2048,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        group_window: int = 64,
        on_error: OnError = "quarantine",
        max_bad_fraction: float = 0.01,
        max_bad_run: int = 100,
        probe: int = 256,
        exclude: str | None = None,
        exif_transpose: bool = True,
        square_pad: bool = False,
        pad_to_multiple_of: int = 8,
        packing: bool = False,
        cache_dir: str | None = None,
        cache_gb: float = 20.0,
    ) -> None:
        super().__init__()
        self._paths = {"train": _paths(train), "val": _paths(val), "test": _paths(test)}
        self.save_hyperparameters(logger=False)  # the run files log them once
        check_limits(
            {f"data.{name}": self.hparams[name] for name in LIMITS},
            {f"data.{name}": limits for name, limits in LIMITS.items()},
        )
        for split, paths in self._paths.items():  # plain values, so that a checkpoint loads with weights_only
            self.hparams[split] = [asdict(path) for path in paths] or None
        self._datasets: dict[str, VisionTextDataset] = {}

    @cached_property
    def processor(self) -> LlavaProcessor:
        """The student's processor for training, with `square_pad` and the chat template of `prompt_style`."""
        processor = load_processor(self.hparams["processor"], self.hparams["square_pad"])
        style = prompt_style(self.hparams["prompt_style"], self.hparams["system"])
        processor.chat_template = processor.tokenizer.chat_template = chat_template(style)
        return processor

    def metadata(self) -> dict[str, Any]:
        """Return the data settings that a checkpoint stores, as plain values."""
        return {
            "annotations": " + ".join(paths.annotations for paths in self._paths["train"]) or None,
            **{name: self.hparams[name] for name in ("processor", "prompt_style", "system", "square_pad")},
        }

    def prompt_metadata(self) -> dict[str, Any]:
        """Return everything that ids and pixels depend on besides the sample, as plain values by setting."""
        names = ("prompt_style", "system", "max_length", "exif_transpose", "square_pad")
        tokenizer = self.processor.tokenizer
        image_processor = self.pixels[-1].image_processor  # the teacher's if it has its own
        return {
            **{f"data.{name}": self.hparams[name] for name in names},
            "tokenizer (data.processor)": fingerprint(sorted(tokenizer.get_vocab().items()), tokenizer.eos_token),
            "image processor (data.teacher_processor)": fingerprint(
                sorted(image_processor.to_dict().items(), key=repr)
            ),
            "image tokens": self.image_tokens,
        }

    @cached_property
    def image_tokens(self) -> int:
        """The `<image>` ids of one image."""
        return image_tokens(self.processor)

    @cached_property
    def prompter(self) -> Prompter:
        """Encodes conversations as token ids."""
        style = prompt_style(self.hparams["prompt_style"], self.hparams["system"])
        return Prompter(self.processor.tokenizer, style, self.image_tokens, self.hparams["max_length"])

    @cached_property
    def pixels(self) -> tuple[Pixels, ...]:
        """The student's image preprocessing, then the teacher's if it differs.

        Raises:
            UserError: The numbers of tokens of an image differ.
        """
        image_processors = [self.processor.image_processor]
        if (path := self.hparams["teacher_processor"]) is not None:
            teacher = load_processor(path, self.hparams["square_pad"])
            if image_tokens(teacher) != self.image_tokens:
                raise UserError(
                    f"An image has {self.image_tokens} tokens with data.processor {self.hparams['processor']!r} but "
                    f"{image_tokens(teacher)} with data.teacher_processor {path!r}. Both models read the same prompt. "
                    "Choose processors with equal numbers of features per image."
                )
            if teacher.image_processor.to_dict() != self.processor.image_processor.to_dict():
                image_processors.append(teacher.image_processor)
        return tuple(Pixels(image_processor) for image_processor in image_processors)

    @cached_property
    def collate(self) -> Collator:
        """Collates samples into batches."""
        return Collator(
            pad_id=self.processor.tokenizer.pad_token_id,
            image_id=self.processor.image_token_id,
            blanks=tuple(pixels.blank() for pixels in self.pixels),
            pad_to_multiple_of=self.hparams["pad_to_multiple_of"],
            packing=self.hparams["packing"],
        )

    @property
    def splits(self) -> list[Split]:
        """The splits that are set."""
        return [split for split in SPLITS if self._paths[split]]

    def paths(self, split: Split) -> list[DataPaths]:
        """Return the data sets of a split."""
        return self._paths[split]

    def dataset(self, split: Split) -> VisionTextDataset:
        """Return the samples of a split by index.

        Raises:
            UserError: The split is not set, or a file is missing. The message names the setting.
        """
        if split not in self._datasets:
            source = self._open(split)
            excluded = [] if self.hparams["exclude"] is None else read_exclusions(self.hparams["exclude"], source)
            self._datasets[split] = VisionTextDataset(source, self.prompter, self.pixels, excluded)
        return self._datasets[split]

    def _open(self, split: Split) -> Source:
        """Open the samples of a split. The first call indexes them."""
        if not self._paths[split]:
            raise UserError(f"data.{split} is not set. Set data.{split}.annotations and data.{split}.image_root.")
        sources: list[Source] = []
        num_remote = sum("://" in paths.annotations for paths in self._paths[split])
        cache = ShardCache(self.hparams["cache_dir"], self.hparams["cache_gb"], num_remote)
        for paths in self._paths[split]:
            if paths.image_root is not None and not Path(paths.image_root).is_dir():
                raise UserError(
                    f"data.{split}.image_root: the folder {paths.image_root} does not exist. Check the path."
                )
            try:
                images = ImageFolder(paths.image_root, self.hparams["exif_transpose"])
                sources.append(open_source(paths.annotations, images, cache))
            except UserError as error:
                raise UserError(f"data.{split}.annotations: {error}") from None
        weights = [paths.weight for paths in self._paths[split]]
        return sources[0] if weights == [1.0] else Mixture(sources, weights)

    def prepare_data(self) -> None:
        """Index the annotations and check some images, in one process per node. The others find the index."""
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        for split in self.splits:
            self._open(split)
        if fitting and self._paths["train"]:
            probe(self.dataset("train"), self.hparams["seed"], self.hparams["probe"])

    def setup(self, stage: str | None = None) -> None:
        """Open the splits of a stage. In `fit`, the validation set is optional.

        Raises:
            UserError: Files are missing, or the training set does not fill one optimizer step.
        """
        for split in _STAGES.get(stage, SPLITS):
            if self._paths[split] or _STAGES.get(stage, ())[:1] == (split,):
                self.dataset(split)
        if stage == "fit":
            self.train_dataloader()  # refuse an epoch without a full step here, before a model is loaded

    def train_dataloader(self) -> BatchStream:
        """Return shuffled batches in whole optimizer steps, from the position of the Trainer."""
        if (trainer := self.trainer) is None:
            return self.stream("train")
        return self.stream("train", trainer.accumulate_grad_batches, trainer.world_size, self._position)

    def val_dataloader(self) -> BatchStream | list[Batch]:
        """Return the validation batches in order. Empty without a validation set."""
        return self._in_order("val") if self._paths["val"] else []

    def test_dataloader(self) -> BatchStream:
        """Return the test batches in order."""
        return self._in_order("test")

    @property
    def predict_splits(self) -> list[Split]:
        """The splits whose teacher hidden states are cached, because a run reads them repeatedly."""
        return [split for split in self.splits if split != "test"]

    def predict_dataloader(self) -> list[BatchStream]:
        """Return all samples of `predict_splits` in order, to fill the teacher cache."""
        return [self._in_order(split) for split in self.predict_splits]

    def _in_order(self, split: Split) -> BatchStream:
        return self.stream(split, world_size=self.trainer.world_size if self.trainer else 1, in_order=True)

    def stream(
        self,
        split: Split,
        accumulate: int = 1,
        world_size: int = 1,
        position: Callable[[], Position] | None = None,
        in_order: bool = False,
    ) -> BatchStream:
        """Return the batches of a split for this process.

        Args:
            split: "train" is shuffled and cut to whole optimizer steps. The others are in order and padded.
            accumulate: Micro-batches of an optimizer step.
            world_size: Number of processes.
            position: Returns the start of an iteration. None: the epoch of `BatchStream.set_epoch`.
            in_order: Return the training set in order as well, including its tail.
        """
        train = split == "train" and not in_order
        return BatchStream(
            self.dataset(split),
            self.collate,
            self.hparams["batch_size"] if train else self.hparams["val_batch_size"] or self.hparams["batch_size"],
            train=train,
            seed=self.hparams["seed"],
            accumulate=accumulate,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            num_workers=self.hparams["num_workers"],
            group_window=self.hparams["group_window"],
            quarantine=self.quarantine,
            position=position,
        )

    @cached_property
    def quarantine(self) -> Quarantine | None:
        """Records invalid samples. None if the first one stops the run."""
        if self.hparams["on_error"] == "raise":
            return None
        limits, trainer = (self.hparams["max_bad_fraction"], self.hparams["max_bad_run"]), self.trainer
        if trainer is None:
            return Quarantine(None, *limits)
        folder = Path(trainer.default_root_dir) / "quarantine"
        return Quarantine(folder, *limits, trainer.global_rank, trainer.world_size)

    def _position(self) -> Position:
        """Return the position of the Trainer. Resuming relies on its progress, not on the state of the loader."""
        trainer = self.trainer
        assert trainer is not None
        done, stop = trainer.fit_loop.epoch_loop.batch_progress.current.ready, int(trainer.num_training_batches)
        overfit = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        epoch = 0 if overfit else trainer.current_epoch  # overfitting repeats the same few batches
        return Position(epoch, done if done < stop else 0, stop)


def _paths(given: Data | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> list[DataPaths]:
    """Convert data sets from the caller, or from the hyperparameters of a checkpoint."""
    data_sets = given if isinstance(given, Sequence) else [] if given is None else [given]
    return [paths if isinstance(paths, DataPaths) else DataPaths(**paths) for paths in data_sets]
