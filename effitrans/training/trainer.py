"""`transformers.Trainer` with an exact scale of the loss, an order of data that can be resumed, and a stop on NaN.

Trainer leaves the division of the loss over accumulated batches to the model, and models differ: BERT's
classifier takes no notice of the number of items and ends up with a gradient that grows with the accumulation.
Here the model always returns the mean over its own items, and the Trainer weights it with the share of the items
that this forward pass has in the whole optimizer step, over all accumulated batches and all processes. So 4 x 8
examples, or two processes of 16, give the gradient of 32. A loss may have parts that are means over different items
(tokens, examples); each part is then weighted with its own share.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from effitrans.errors import UsageError
from effitrans.tasks.encoding import accepted_inputs
from effitrans.training.callbacks import diverged
from effitrans.training.data import LossFunction, SeededRows, lengths_of

Batch = dict[str, Any]


def predicts_next_token(model: Any) -> bool:
    """Whether the logits at a position predict the token after it, so that labels are shifted in the loss."""
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return type(model).__name__ in causal or type(model).__name__.endswith("ForCausalLM")


def count_items(inputs: Mapping[str, Any], shifted: bool) -> int:
    """Number of items that the loss of a batch is a mean over.

    Args:
        inputs: a batch. With `labels` [B] or [B, L]: those that are not -100. Else: examples.
        shifted: whether the first label of each row is no target (see `predicts_next_token`).
    """
    labels = inputs.get("labels")
    if labels is None:
        return count_examples(inputs)
    if shifted:
        labels = labels[..., 1:]
    return int(labels.ne(-100).sum())


def count_examples(inputs: Mapping[str, Any]) -> int:
    """Number of rows of a batch."""
    return len(next(iter(inputs.values())))


class Trainer(transformers.Trainer):
    """See the module's text.

    Args:
        sampler: yields the indices of the training examples; None keeps the order of `loader`.
        loader: a ready DataLoader for training, used in place of `train_dataset`.
        loss: (model, batch) -> (mean loss, outputs), for tasks whose loss no forward pass computes.
        kwargs: of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        sampler: Sampler[int] | None = None,
        loader: DataLoader | None = None,
        loss: LossFunction | None = None,
        **kwargs: Any,
    ) -> None:
        self._sampler, self._loader, self._loss = sampler, loader, loss
        super().__init__(**kwargs)
        # `get_batch_samples` always counts the items and `compute_loss` divides by them, so the base class must not.
        self.model_accepts_loss_kwargs = True
        self.label_names = self.label_names or ["labels"]  # a bare encoder's forward pass names no labels
        self.shifted = predicts_next_token(self.model)

    def get_train_dataloader(self) -> DataLoader:
        if self._loader is not None:
            return self.accelerator.prepare(self._loader)
        return super().get_train_dataloader()

    def create_scheduler(self, num_training_steps: int, *arguments: Any, **options: Any) -> Any:
        """The learning rate rises from 0 in the first step, which must not be the only one."""
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, *arguments, **options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return self._sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Examples by length, so that little of a batch is padding; no figure depends on their order."""
        lengths = lengths_of(eval_dataset.rows) if isinstance(eval_dataset, SeededRows) else None
        if lengths is None:
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[arg-type]
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        batches = list(islice(epoch_iterator, num_batches))
        items = torch.tensor([self.counts(batch) for batch in batches], device=device).sum(0)
        if self.args.world_size > 1:
            items = self.accelerator.reduce(items, "sum")
        return batches, items  # type: ignore[return-value]

    def counts(self, inputs: Batch) -> list[int]:
        """For each part of the loss of a batch, the number of items that it is a mean over."""
        return [count_items(inputs, self.shifted)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one forward pass; in training, weighted with its share of the optimizer step's items."""
        loss, outputs = self.mean_loss(model, inputs)
        if model.training:
            assert isinstance(num_items_in_batch, Tensor)  # from `get_batch_samples`; in evaluation, Trainer's own
            if not loss.requires_grad:
                raise UsageError(
                    f"the parameters of this {type(self.model).__name__} that are not frozen have no part in the loss, "
                    "so nothing is learned: set requires_grad of those that are to learn"
                )
            # DDP averages the gradients of the processes, hence the factor.
            counts = torch.tensor(self.counts(inputs), device=loss.device) * self.accelerator.num_processes
            loss = loss * (counts / num_items_in_batch.clamp(min=1))
        loss = loss.sum()
        return (loss, outputs) if return_outputs else loss

    def mean_loss(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """(mean loss over the items of a batch, the model's outputs). A batch without an item has the loss 0.

        A scalar; in training it may be a vector of the parts that `counts` speaks of, whose sum is the loss.
        """
        assert isinstance(self.model, nn.Module)
        accepted = accepted_inputs(self.model, inputs)
        if self._loss is not None:
            labels = {"labels": inputs["labels"]} if "labels" in inputs else {}
            loss, outputs = self._loss(model, {**accepted, **labels})
        else:
            outputs = model(**accepted)
            loss = outputs.get("loss")
        if loss is None:
            raise UsageError(
                f"{type(self.model).__name__} gave no loss for a batch with {', '.join(inputs)}: "
                "training needs labels, and a model with a head for the task"
            )
        return (loss if count_items(inputs, self.shifted) else 0.0 * outputs["logits"].sum()), outputs

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise diverged(f"the loss became {loss.item()} at step {self.state.global_step + 1}", self.folder)
        return loss

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(str(self.args.output_dir))

    def restore(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint into the model."""
        self._load_from_checkpoint(str(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights go to disk under the names they have here, by which Trainer loads them, and not under those that
        their family had in older versions of transformers.
        """
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            folder = output_dir if output_dir is not None else self.args.output_dir
            model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer would go on with the weights that the model happens to have."""
        missing, unexpected = set(load_result.missing_keys), list(load_result.unexpected_keys)
        if missing:
            assert isinstance(self.model, nn.Module)
            state = self.model.state_dict(keep_vars=True)
            loaded = {id(tensor) for name, tensor in state.items() if name not in missing}
            missing -= {name for name in missing if id(state.get(name)) in loaded}  # tied ones are stored once
            missing -= set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        if missing or unexpected:
            raise UsageError(
                f"a checkpoint in {self.folder} is not of this model: it lacks {shorten(missing)} and has "
                f"{shorten(unexpected)} besides. Pass the model that the run was started with, or delete the folder "
                "and start again."
            )


def shorten(names: Collection[str]) -> str:
    """The first of some names, for a message.

    >>> shorten(["b", "a", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more if names else "nothing"
