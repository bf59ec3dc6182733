"""Save model folders: whole or not at all, with what belongs to the model."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from effitrans.checkpoint.accepting import as_model
from effitrans.checkpoint.beside import carry
from effitrans.files import output_directory


def save(
    model: PreTrainedModel, directory: str | Path, processor: Any | None = None, *, overwrite: bool = False
) -> None:
    """Write the model, its manifest and what belongs to it; whole or not at all.

    What belongs to it lies beside the weights of the folder it was loaded from (see `effitrans.checkpoint.beside`).

    Args:
        model: the model.
        directory: the output folder.
        processor: its tokenizer or image processor. Default: that of the folder it was loaded from.
        overwrite: replace a folder.

    Raises:
        UsageError: the folder exists and is not empty and `overwrite` is false; or the model's vocabulary has changed
            and its tokenizer was not passed.
    """
    model = as_model(model)
    with output_directory(directory, overwrite) as temporary:
        carry(model, temporary, processor)
        model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
