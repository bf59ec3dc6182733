"""Image classification: an image has one of several classes.

`inputs` is a column of images: what `datasets` decodes to PIL images, paths of image files (relative ones start
at the data file's folder), or nested lists of numbers (H rows of W values, or C channels of them). A model's own
image processor prepares them if it brings one. Otherwise values are divided by 255 (whole numbers and image
files) or left as they are (floats), and the image is resized to the model's `image_size` if it differs. Models:
`AutoModelForImageClassification`.

Images are prepared when an entry is read and not before, so that a large data set does not fill the memory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.image_processing_base import ImageProcessingMixin

from effitrans.errors import UsageError
from effitrans.tasks.kinds.base import TEXT_TYPES, Columns, row_name
from effitrans.tasks.kinds.classification import Classification

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task


class ImageClassification(Classification):
    """An image to a class."""

    name: ClassVar[str] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    hub_task: ClassVar[str] = "image-classification"
    default_tokenizer: ClassVar[str | None] = None

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        super().check_rows(task, rows, folder)
        if self._holds_paths(task, rows):
            for number, path in enumerate(rows[task.input_columns[0]]):
                _check_image(folder / path, row_name(task, number))

    def _holds_paths(self, task: "Task", rows: "Dataset") -> bool:
        return getattr(rows.features[task.input_columns[0]], "dtype", None) in TEXT_TYPES

    def open_rows(self, task: "Task", rows: "Dataset", folder: Path) -> "Dataset":
        import datasets

        if not self._holds_paths(task, rows):
            return rows
        column = task.input_columns[0]
        paths = [str(folder / path) for path in rows[column]]
        opened = rows.remove_columns(column).add_column(column, paths)  # type: ignore[call-arg]
        return opened.cast_column(column, datasets.Image())

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        size, channels = _expected(model)
        pixels = []
        for offset, value in enumerate(rows[task.input_columns[0]]):
            where = row_name(task, first + offset)
            if isinstance(processor, ImageProcessingMixin):
                image = _to_pil(value, where).convert("L" if channels == 1 else "RGB")
                pixels.append(processor(images=image, return_tensors="pt")["pixel_values"][0])  # type: ignore[operator]
            else:
                pixels.append(_to_pixels(value, size, channels, where))
        return {
            "pixel_values": pixels,
            "labels": self.label_ids(task, rows, first),
            "length": [image.shape[-1] * image.shape[-2] for image in pixels],
            "index": list(range(first, first + len(pixels))),
        }

    def encode(
        self, task: "Task", rows: "Dataset", processor: Any, model: nn.Module | None, limit: int | None
    ) -> "Dataset":
        self.label_ids(task, {task.target_column: list(rows[task.target_column])}, 0)
        numbered = rows.select_columns(list(task.columns)).add_column("index", list(range(len(rows))))  # type: ignore[call-arg]

        def prepare(batch: Columns) -> Columns:
            parts = [
                self.encode_rows(task, {name: batch[name][n : n + 1] for name in task.columns}, index, processor, model)
                for n, index in enumerate(batch["index"])
            ]
            return {name: [part[name][0] for part in parts] for name in parts[0]}

        return numbered.with_transform(prepare)


def _check_image(path: Path, where: str) -> None:
    """Refuse a file that is no image, as its first bytes tell."""
    from PIL import Image

    if not path.is_file():
        raise UsageError(f"{where} names the image {path}, which does not exist")
    try:
        with Image.open(path):
            return
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{where} names {path}, which cannot be read as an image: {error}") from None


def _expected(model: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width, and the number of channels, that a model takes."""
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        size = (size, size)
    return (tuple(size) if size else None), getattr(config, "num_channels", None)  # type: ignore[return-value]


def _to_pixels(value: Any, size: tuple[int, int] | None, channels: int | None, where: str) -> Tensor:
    """float32 [C, H, W] in 0..1 of an image or of nested lists."""
    if hasattr(value, "convert") and value.mode.startswith("I"):
        value = np.asarray(value, dtype=np.float32) / 65535
    if hasattr(value, "convert"):
        wanted = channels or (1 if value.mode in ("1", "L") else 3)
        value = np.asarray(value.convert("L" if wanted == 1 else "RGB"))
        value = value[None] if value.ndim == 2 else value.transpose(2, 0, 1)
    try:
        array = np.asarray(value)
        pixels = torch.from_numpy(array.astype(np.float32))
    except (TypeError, ValueError):
        raise UsageError(
            f"{where} holds no image: expected rows of numbers of equal length, or an image file"
        ) from None
    if array.dtype.kind in "iu":
        pixels = pixels / 255
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise UsageError(f"{where} holds an array of {pixels.ndim} dimensions: expected [H, W] or [C, H, W]")
    if channels and pixels.shape[0] != channels:
        if pixels.shape[0] != 1:
            raise UsageError(f"{where} has {pixels.shape[0]} channels and the model takes {channels}")
        pixels = pixels.expand(channels, -1, -1)
    if size and tuple(pixels.shape[1:]) != size:
        pixels = torch.nn.functional.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels.contiguous()


def _to_pil(value: Any, where: str) -> Any:
    """What image processors take: an 8-bit image."""
    if hasattr(value, "convert"):
        return value
    from PIL import Image

    pixels = (_to_pixels(value, None, None, where) * 255).round().clamp(0, 255).byte().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
