"""`LLaVADataModule`: training, validation and test sets in LLaVA's format, for the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch import LightningDataModule
from transformers import LlavaProcessor

from lightning_switchkd.core.errors import UserError
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


@dataclass(frozen=True)
class DataPaths:
    """One data set.

    Attributes:
        annotations: LLaVA records: a .json (array), .jsonl, .parquet or .tar file; or a folder or pattern of .parquet
            or .tar files (``shards/*.parquet``, ``shards/{000..012}.tar``). Of these two also URLs, alike
            (``https://host/{000..012}.tar``, ``hf://datasets/owner/name/data/*.parquet``, ``s3://bucket/*.tar``).
        image_root: folder that the records' image paths are relative to; not needed where images come with the records.
        weight: how often an epoch takes each record, on average: 0.5 takes every second one, and the others next time.
    """

    annotations: str
    image_root: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"the weight of {self.annotations} must be more than 0, not {self.weight}")


Data: TypeAlias = DataPaths | list[DataPaths]
"""One data set, or several to be mixed."""


class LLaVADataModule(LightningDataModule):
    """Data sets in LLaVA's format, as batches for distillation.

    Building one touches neither disk nor network: `setup`, or the first property that needs a file, opens it.

    Args:
        processor: folder (or Hugging Face id) of the student's LLaVA processor.
        train: the training set, or several that are mixed.
        val: the validation set.
        test: the test set.
        prompt_style: "qwen_chatml", "tinyllava_v1" or "plain".
        system: system prompt of conversations that bring none; None leaves it to the style.
        teacher_processor: the teacher's, where its images are prepared otherwise; its tokenizer is not used.
        max_length: most tokens a record may have, images included.
        batch_size: records in a micro-batch of one process.
        val_batch_size: the same in validation and test; None is `batch_size`.
        num_workers: worker processes that read ahead, for each process.
        seed: of the shuffle.
        group_window: optimizer steps within which records of like length, and with or without images, are put together,
            so that less is padded; 1 leaves them as shuffled.
        on_error: "quarantine" leaves bad records out and writes them to ``quarantine/`` in the run's folder; "raise"
            stops at the first.
        max_bad_fraction: share of bad records that stops a run, once 1,000 have been read.
        max_bad_run: bad records without a good one between them that stop a run.
        probe: training records whose images are decoded before training, to find a wrong path early.
        exclude: file with records to leave out, as `validate-data` or a run's quarantine writes it.
        exif_transpose: turn images as their EXIF data say (LLaVA's own code does not).
        square_pad: pad images to squares with the processor's mean colour, as LLaVA does.
        pad_to_multiple_of: batch lengths are rounded up to a multiple of it.
        packing: put the records of a micro-batch into one row, one after the other, without padding; both models need
            an attention kernel of variable length (``attn_implementation`` flash_attention_2 or flex_attention).
        cache_dir: folder for downloaded files of data behind URLs; None is the user's cache folder.
        cache_gb: most gigabytes they take up there; where not all fit, records are shuffled within as many as do.
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
        self.save_hyperparameters(logger=False)  # the run's own record logs them, once
        for split, paths in self._paths.items():  # plain values, so that a checkpoint loads with weights_only
            self.hparams[split] = [asdict(one) for one in paths] or None
        self._datasets: dict[str, VisionTextDataset] = {}

    @cached_property
    def processor(self) -> LlavaProcessor:
        """The student's processor as training uses it: with the template of `prompt_style`, and `square_pad`."""
        processor = load_processor(self.hparams["processor"], self.hparams["square_pad"])
        style = prompt_style(self.hparams["prompt_style"], self.hparams["system"])
        processor.chat_template = processor.tokenizer.chat_template = chat_template(style)
        return processor

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of the data: plain values."""
        return {
            "annotations": " + ".join(paths.annotations for paths in self._paths["train"]) or None,
            **{name: self.hparams[name] for name in ("processor", "prompt_style", "system", "square_pad")},
        }

    def prompt_metadata(self) -> dict[str, Any]:
        """What the ids and pixels of a record depend on, besides the record: plain values by name of their setting."""
        names = ("prompt_style", "system", "max_length", "exif_transpose", "square_pad")
        tokenizer, seen = self.processor.tokenizer, self.pixels[-1].image_processor  # the teacher's, where it has one
        return {
            **{f"data.{name}": self.hparams[name] for name in names},
            "tokenizer (data.processor)": fingerprint(sorted(tokenizer.get_vocab().items()), tokenizer.eos_token),
            "image processor (data.teacher_processor)": fingerprint(sorted(seen.to_dict().items(), key=repr)),
            "image tokens": self.image_tokens,
        }

    @cached_property
    def image_tokens(self) -> int:
        """How many `<image>` ids stand for one image."""
        return image_tokens(self.processor)

    @cached_property
    def prompter(self) -> Prompter:
        """Writes records as ids; its `stop_ids` end generation."""
        style = prompt_style(self.hparams["prompt_style"], self.hparams["system"])
        return Prompter(self.processor.tokenizer, style, self.image_tokens, self.hparams["max_length"])

    @cached_property
    def pixels(self) -> tuple[Pixels, ...]:
        """The student's way from image to pixels, and the teacher's where it differs.

        Raises:
            UserError: an image makes more tokens for one of them than for the other.
        """
        image_processors = [self.processor.image_processor]
        if (path := self.hparams["teacher_processor"]) is not None:
            teacher = load_processor(path, self.hparams["square_pad"])
            if image_tokens(teacher) != self.image_tokens:
                raise UserError(
                    f"an image makes {self.image_tokens} tokens by data.processor {self.hparams['processor']!r} but "
                    f"{image_tokens(teacher)} by data.teacher_processor {path!r}: both models read the same prompt, so "
                    "choose processors with equally many features an image"
                )
            if teacher.image_processor.to_dict() != self.processor.image_processor.to_dict():
                image_processors.append(teacher.image_processor)
        return tuple(Pixels(image_processor) for image_processor in image_processors)

    @cached_property
    def collate(self) -> Collator:
        """Makes batches of samples."""
        return Collator(
            pad_id=self.processor.tokenizer.pad_token_id,
            image_id=self.processor.image_token_id,
            blanks=tuple(pixels.blank() for pixels in self.pixels),
            pad_to_multiple_of=self.hparams["pad_to_multiple_of"],
            packing=self.hparams["packing"],
        )

    @property
    def splits(self) -> list[Split]:
        """Those that are set."""
        return [split for split in SPLITS if self._paths[split]]

    def paths(self, split: Split) -> list[DataPaths]:
        """The data sets of a split."""
        return self._paths[split]

    def dataset(self, split: Split) -> VisionTextDataset:
        """The samples of a split by index.

        Raises:
            UserError: the split is not set, or its files are not there; the message names the setting.
        """
        if split not in self._datasets:
            source = self._open(split)
            excluded = [] if self.hparams["exclude"] is None else read_exclusions(self.hparams["exclude"], source)
            self._datasets[split] = VisionTextDataset(source, self.prompter, self.pixels, excluded)
        return self._datasets[split]

    def _open(self, split: Split) -> Source:
        """The records of a split; the first call indexes them."""
        if not self._paths[split]:
            raise UserError(f"data.{split} is not set: give data.{split}.annotations and data.{split}.image_root")
        sources: list[Source] = []
        remote = sum("://" in paths.annotations for paths in self._paths[split])
        cache = ShardCache(self.hparams["cache_dir"], self.hparams["cache_gb"], remote)
        for paths in self._paths[split]:
            if paths.image_root is not None and not Path(paths.image_root).is_dir():
                raise UserError(f"data.{split}.image_root: there is no folder {paths.image_root}")
            try:
                images = ImageFolder(paths.image_root, self.hparams["exif_transpose"])
                sources.append(open_source(paths.annotations, images, cache))
            except UserError as error:
                raise UserError(f"data.{split}.annotations: {error}") from None
        weights = [paths.weight for paths in self._paths[split]]
        return sources[0] if weights == [1.0] else Mixture(sources, weights)

    def prepare_data(self) -> None:
        """Index the annotations and look at some images, in one process a node; the others find the index."""
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        for split in self.splits:
            self._open(split)
        if fitting and self._paths["train"]:
            probe(self.dataset("train"), self.hparams["seed"], self.hparams["probe"])

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs; in `fit` a validation set may be missing."""
        for split in _STAGES.get(stage, SPLITS):
            if self._paths[split] or _STAGES.get(stage, ())[:1] == (split,):
                self.dataset(split)

    def train_dataloader(self) -> BatchStream:
        """Shuffled, in whole optimizer steps, continuing where the Trainer is."""
        if (trainer := self.trainer) is None:
            return self.stream("train")
        return self.stream("train", trainer.accumulate_grad_batches, trainer.world_size, self._position)

    def val_dataloader(self) -> BatchStream | list[Batch]:
        """In order; no batches where there is no validation set."""
        return self._in_order("val") if self._paths["val"] else []

    def test_dataloader(self) -> BatchStream:
        """In order."""
        return self._in_order("test")

    @property
    def predict_splits(self) -> list[Split]:
        """Those whose teacher rows are kept: what a run reads again and again."""
        return [split for split in self.splits if split != "test"]

    def predict_dataloader(self) -> list[BatchStream]:
        """Every record of `predict_splits`, in order: what the teacher cache is filled with."""
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
        """The batches of a split for this process, or as a Trainer of the given geometry would have them.

        Args:
            split: "train" is shuffled and cut to whole optimizer steps, the others come in order, padded.
            accumulate: micro-batches of an optimizer step.
            world_size: processes.
            position: where an iteration begins; None is the epoch of `BatchStream.set_epoch`.
            in_order: the training set comes in order, too, with its last records.
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
        """Where bad records go; None where the first one stops the run."""
        if self.hparams["on_error"] == "raise":
            return None
        limits, trainer = (self.hparams["max_bad_fraction"], self.hparams["max_bad_run"]), self.trainer
        if trainer is None:
            return Quarantine(None, *limits)
        folder = Path(trainer.default_root_dir) / "quarantine"
        return Quarantine(folder, *limits, trainer.global_rank, trainer.world_size)

    def _position(self) -> Position:
        """Where the Trainer is (STACK D): a restart finds its place there, not in the loader's state."""
        trainer = self.trainer
        assert trainer is not None
        done, stop = trainer.fit_loop.epoch_loop.batch_progress.current.ready, int(trainer.num_training_batches)
        overfit = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        epoch = 0 if overfit else trainer.current_epoch  # overfitting repeats the same few batches
        return Position(epoch, done if done < stop else 0, stop)


def _paths(given: Data | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> list[DataPaths]:
    """Data sets as the caller or a checkpoint's hyperparameters give them."""
    several = given if isinstance(given, Sequence) else [] if given is None else [given]
    return [one if isinstance(one, DataPaths) else DataPaths(**one) for one in several]
