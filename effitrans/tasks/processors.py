"""Tokenizers for models that bring none: bytes, words or byte-level pairs, made from the task's train split."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from effitrans.errors import UsageError
from effitrans.tasks.task import Task, TokenizerSpec, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, BOS, EOS, UNK, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
"""The special tokens of `words` and `bpe`, whose ids are 0 to 4 in this order."""


def build_processor(task: Task | str) -> "PreTrainedTokenizerBase | None":
    """Make the tokenizer that a task's `tokenizer` describes; None for images, which need none.

    `words` and `bpe` are trained on the inputs, and the target if it is text, of the train split; the same data
    gives the same tokenizer. Sequence-to-sequence texts end in `</s>`; other texts stand between `<s>` and
    `</s>`. Bytes are transformers' ByT5 tokenizer: 256 bytes after `<pad>`, `</s>` and `<unk>`, and `<mask>` for
    masked language modelling; its texts end in `</s>`.

    >>> tokenizer = build_processor("listops")
    >>> tokenizer.decode(tokenizer("[MAX 2 9 ]")["input_ids"])
    '<s> [MAX 2 9 ] </s>'
    """
    task = load_task(task)
    if not task.behaviour.reads_text:
        return None
    spec = task.tokenizer or TokenizerSpec.parse({"method": task.behaviour.default_tokenizer})
    return _bytes(task) if spec.method == "bytes" else _trained(task, spec)


def _bytes(task: Task) -> Any:
    from transformers import ByT5Tokenizer

    # Bytes are bytes: a text that spells out `<unk>` is not the unknown token.
    tokenizer = ByT5Tokenizer(extra_ids=0, split_special_tokens=True)
    if task.behaviour.needs_mask_token:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def _trained(task: Task, spec: TokenizerSpec) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trainer: Any
    if spec.method == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(
            vocab_size=spec.vocab_size, special_tokens=list(SPECIAL), show_progress=False
        )
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        smallest = len(alphabet) + len(SPECIAL)
        if spec.vocab_size < smallest:
            raise UsageError(
                f"tokenizer.vocab_size {spec.vocab_size} is below {smallest}, which bytes and special tokens take"
            )
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocab_size, special_tokens=list(SPECIAL), show_progress=False, initial_alphabet=alphabet
        )
    if spec.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(_texts(task), trainer)
    start = "" if task.behaviour.form == "encoder-decoder" else f"{BOS} "
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {EOS}",
        pair=f"{start}$A {EOS} $B {EOS}",
        special_tokens=[(token, SPECIAL.index(token)) for token in (BOS, EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        mask_token=MASK,
        cls_token=BOS,
        sep_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _texts(task: Task) -> Iterator[str]:
    """What the tokenizer is trained on: every text and word of the used columns of the train split."""
    if "train" not in task.splits:
        raise UsageError(
            f"task {task.name!r} has no train split to make a tokenizer from (splits: {', '.join(task.splits)}): "
            "add one, set `tokenizer: {method: bytes}`, or use a model that brings its tokenizer"
        )
    rows = task.rows("train")
    for column in task.columns:
        for value in rows[column]:
            if isinstance(value, str):
                yield value
            elif isinstance(value, list) and column in task.input_columns:
                yield from (word if number == 0 else " " + word for number, word in enumerate(value))
