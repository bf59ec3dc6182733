"""Writing text: greedy, beam search, sampling; with and without the cache; alone and padded."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from effitrans.models import EffitransForCausalLM, EffitransForSeq2SeqLM

from .cases import ALL_POSITIONS, VOCABULARY, build, tokens

WRITERS = {"decoder": EffitransForCausalLM, "encoder-decoder": EffitransForSeq2SeqLM}
every_writer = pytest.mark.parametrize("form", list(WRITERS))
every_position = pytest.mark.parametrize("position", ALL_POSITIONS)
GREEDY = {"do_sample": False, "max_new_tokens": 8}
# A random model soon repeats itself, and a text of one token hides mistakes.
VARIED = {**GREEDY, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}


def writer(form: str, **options):
    """Untied, since a random model with a tied head repeats itself."""
    return build(WRITERS[form], form, tie_word_embeddings=False, **options)


@every_writer
@every_position
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cache_changes_nothing(form, position, attention):
    model = writer(form, position=position, attn_implementation=attention)
    prompt = tokens(2, 5)
    cached = model.generate(prompt, **VARIED)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **VARIED))
    assert cached.shape == (2, 8 + (5 if form == "decoder" else 1))
    assert len(set(cached[0, -8:].tolist())) == 8


@every_writer
@every_position
def test_greedy_is_the_argmax_of_the_forward_pass(form, position):
    model = writer(form, position=position)
    prompt = tokens(2, 5)
    written = model.generate(prompt, **GREEDY)
    with torch.no_grad():
        inputs = {"input_ids": written} if form == "decoder" else {"input_ids": prompt, "decoder_input_ids": written}
        predicted = model(**inputs).logits.argmax(-1)
    start = 5 if form == "decoder" else 1
    assert torch.equal(predicted[:, start - 1 : -1], written[:, start:])


@every_writer
@every_position
def test_left_padded_batch_writes_what_each_text_writes_alone(form, position):
    model = writer(form, position=position)
    prompts = [tokens(1, length, seed=length) for length in (3, 6, 1)]
    batch = torch.cat([torch.cat((torch.zeros(1, 6 - p.shape[1]).long(), p), 1) for p in prompts])
    together = model.generate(batch, attention_mask=(batch != 0).long(), **VARIED)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row, -8:], model.generate(prompt, **VARIED)[0, -8:])


def test_right_padded_source():
    model = writer("encoder-decoder")
    source = tokens(1, 4)
    padded = torch.cat((source, torch.zeros(1, 3).long()), 1)
    assert torch.equal(
        model.generate(padded, attention_mask=(padded != 0).long(), **VARIED), model.generate(source, **VARIED)
    )


@every_writer
@torch.no_grad()
def test_beam_search_with_all_beams_finds_the_likeliest_text(form):
    """As many beams as tokens make the search for two tokens exhaustive."""
    model = writer(form)
    prompt = tokens(1, 4)
    found = model.generate(prompt, num_beams=VOCABULARY, do_sample=False, max_new_tokens=2)[0, -2:]
    pairs = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
    if form == "decoder":
        logits = model(input_ids=torch.cat((prompt.expand(len(pairs), -1), pairs), 1)).logits[:, 3:5]
    else:
        start = torch.zeros(len(pairs), 1, dtype=torch.long)
        source = prompt.expand(len(pairs), -1)
        logits = model(input_ids=source, decoder_input_ids=torch.cat((start, pairs[:, :1]), 1)).logits
    scores = logits.log_softmax(-1).gather(-1, pairs[:, :, None]).sum((1, 2))
    assert found.tolist() == pairs[scores.argmax()].tolist()


@every_writer
@every_position
def test_beam_search_reorders_the_cache(form, position):
    model = writer(form, position=position)
    prompt = tokens(2, 4)
    without_cache = model.generate(prompt, num_beams=4, use_cache=False, **VARIED)
    assert torch.equal(model.generate(prompt, num_beams=4, **VARIED), without_cache)


@every_writer
def test_sampling_follows_the_seed(form):
    model = writer(form)
    prompt = tokens(2, 4)
    options = {"do_sample": True, "max_new_tokens": 8, "top_k": 0}
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(prompt, **options))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@every_writer
def test_stops_at_the_end_token(form):
    model = writer(form)
    prompt = tokens(1, 4)
    free = model.generate(prompt, **VARIED)[0, -8:]
    end = free[2].item()
    stopped = model.generate(prompt, eos_token_id=end, **VARIED)[0]
    first = free.tolist().index(end)
    assert stopped.tolist()[-(first + 1) :] == free.tolist()[: first + 1]


@every_writer
@every_position
@torch.no_grad()
def test_steps_with_a_cache_equal_one_pass(form, position):
    """Also in chunks of several tokens, which a cache must offset."""
    model = writer(form, position=position)
    words = tokens(2, 9)
    extra = {} if form == "decoder" else {"encoder_outputs": model.get_encoder()(input_ids=tokens(2, 6))}
    name = "input_ids" if form == "decoder" else "decoder_input_ids"
    whole = model(**{name: words}, **extra).logits
    cache, parts = None, []
    for chunk in words.split([4, 1, 3, 1], dim=1):
        outputs = model(**{name: chunk}, **extra, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        parts.append(outputs.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=3e-5, rtol=3e-5)
    assert isinstance(cache, DynamicCache if form == "decoder" else EncoderDecoderCache)
    assert cache.get_seq_length() == 9


@every_position
def test_static_cache(position):
    model = writer("decoder", position=position)
    prompt = tokens(2, 5)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        first = model(input_ids=prompt, past_key_values=cache).logits
        second = model(input_ids=tokens(2, 1, seed=5), past_key_values=cache).logits
        whole = model(input_ids=torch.cat((prompt, tokens(2, 1, seed=5)), 1)).logits
    torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=3e-5, rtol=3e-5)


@torch.no_grad()
def test_last_logits_alone():
    model = writer("decoder")
    words = tokens(2, 6)
    whole = model(input_ids=words).logits
    torch.testing.assert_close(model(input_ids=words, logits_to_keep=2).logits, whole[:, -2:])


def test_encoder_runs_once(monkeypatch):
    model = writer("encoder-decoder")
    calls = []
    forward = model.model.encoder.forward
    monkeypatch.setattr(model.model.encoder, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    model.generate(tokens(2, 5), **GREEDY)
    assert len(calls) == 1


def test_decoder_deeper_or_shallower_than_its_encoder():
    for layers in (1, 4):
        model = writer("encoder-decoder", num_decoder_layers=layers)
        prompt = tokens(1, 4)
        assert torch.equal(model.generate(prompt, **GREEDY), model.generate(prompt, use_cache=False, **GREEDY))
        assert model.config.get_text_config(decoder=True).num_hidden_layers == layers
        assert model.config.num_hidden_layers == 2


@every_position
def test_assisted_generation_writes_the_same(position):
    """Drafted tokens that are refused are taken out of the cache again."""
    model = writer("decoder", position=position)
    prompt = tokens(1, 5).repeat(1, 2)
    expected = model.generate(prompt, **GREEDY)
    never = {"eos_token_id": VOCABULARY}  # the lookup of transformers 5.10 cannot do without an end of text
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=2, **GREEDY, **never), expected)
    assert torch.equal(model.generate(prompt, assistant_model=writer("decoder", seed=3), **GREEDY), expected)


@every_position
def test_generation_from_embeddings_and_from_a_filled_cache(position):
    model = writer("decoder", position=position)
    prompt = tokens(2, 5)
    expected = model.generate(prompt, **GREEDY)
    embeddings = model.get_input_embeddings()(prompt).detach()
    assert torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY), expected[:, 5:])
    first = model.generate(prompt, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=5, do_sample=False)
    assert torch.equal(rest, expected)
