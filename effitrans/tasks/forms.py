"""The forms in which a caller may give data; every verb that reads data takes them all.

| form | what it is |
| --- | --- |
| task | a built-in name, a YAML file, a mapping with the keys of one, or a `Task` |
| splits | a mapping of split names to data sets, lists or loaders, with "train" among them or not |
| dataset | a `datasets.Dataset` of encoded examples |
| rows | a list of encoded examples, such as `{"input_ids": [5, 6], "labels": 1}` |
| batches | a batch of tensors, as a tokenizer gives it, or a list of such |
| texts | a list of texts, which the tokenizer encodes |
| loader | a `DataLoader` of batches |
| stream | any other iterable of rows, batches or texts, which can be read once |
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from effitrans.errors import UsageError
from effitrans.tasks.encoding import UNLIMITED, accepted_inputs, mend_empty, model_limit
from effitrans.tasks.task import load_task, names_task

Form = Literal["task", "splits", "dataset", "rows", "batches", "texts", "loader", "stream"]


class Given(NamedTuple):
    """What a caller gave, and in which form."""

    form: Form
    value: Any
    """A `Task` for a task, a list for batches, and else what was given."""


def classify(data: Any) -> Given:
    """Say in which form data is given; it is not read, but for the first entry of a list.

    Raises:
        UsageError: it has none of the forms, or names a task that does not exist.

    >>> classify([{"input_ids": [5, 6]}]).form, classify("digits").form, classify(["a text"]).form
    ('rows', 'task', 'texts')
    """
    import datasets

    if names_task(data):
        return Given("task", load_task(data))
    if isinstance(data, DataLoader):
        return Given("loader", data)
    if isinstance(data, datasets.Dataset):
        return Given("dataset", data)
    if isinstance(data, Mapping):
        if is_batch(data):
            return Given("batches", [data])
        if all(_is_split(part) for part in data.values()):
            return Given("splits", data)
    elif isinstance(data, list | tuple):
        return Given(form_of(data[0]) if data else "rows", list(data))
    elif isinstance(data, Iterable):
        return Given("stream", data)
    raise UsageError(
        f"data is a {type(data).__name__}: expected a task, a datasets.Dataset, a mapping of splits, a DataLoader, or "
        "a list of encoded examples, batches or texts"
    )


def form_of(item: Any) -> Literal["rows", "batches", "texts"]:
    """The form of data that holds such items.

    Raises:
        UsageError: it is neither an example, a batch nor a text.
    """
    if isinstance(item, str):
        return "texts"
    if isinstance(item, Mapping):
        return "batches" if is_batch(item) else "rows"
    raise UsageError(
        f"the data holds {type(item).__name__} objects: expected dicts such as {{'input_ids': ...}}, or texts"
    )


def is_batch(example: Mapping[str, Any]) -> bool:
    """Whether a mapping holds tensors with a batch dimension rather than one example."""
    for name, dimensions in (("input_ids", 2), ("pixel_values", 4), ("inputs_embeds", 3)):
        if isinstance(example.get(name), Tensor):
            return example[name].ndim == dimensions
    return False


def _is_split(part: Any) -> bool:
    """Whether a mapping's value is a whole data set, and not the column of an example."""
    import datasets

    if isinstance(part, list | tuple):
        return not part or isinstance(part[0], Mapping | str)
    return isinstance(part, datasets.Dataset | datasets.IterableDataset | DataLoader)


def rows_of_texts(texts: Sequence[str], processor: Any, model: Any) -> list[dict[str, list[int]]]:
    """Texts as encoded examples without labels, truncated to what the model and the tokenizer take.

    Raises:
        UsageError: there is no tokenizer, or an entry is no text.
    """
    if not hasattr(processor, "convert_tokens_to_ids"):
        raise UsageError("the data holds texts and there is no tokenizer: pass the model's own as processor")
    if other := next((text for text in texts if not isinstance(text, str)), None):
        raise UsageError(f"the data holds texts and a {type(other).__name__}: expected texts alone")
    limit = min(model_limit(model) or UNLIMITED, processor.model_max_length)
    limit = limit if limit < UNLIMITED else None
    encoded = processor(list(texts), truncation=limit is not None, max_length=limit, return_attention_mask=True)
    columns = {name: list(values) for name, values in accepted_inputs(model, encoded).items()}
    mend_empty(columns, processor)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
