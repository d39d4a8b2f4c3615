"""attn_implementation="tidal" against torch's attention, and against the engine on the same cache."""

import copy

import pytest
import torch

import tidal_attention.transformers as tidal
from conftest import CONFIG, own_sets, random_model, random_tokens
from tidal_attention import Options, Refused

WHOLE, FEW = 4096, 128


def text(model, tokens, mask=None, budget=None, count=24, **more):
    cache = tidal.TidalCache(model.config, budget=budget) if budget else None
    return model.generate(
        tokens, attention_mask=mask, past_key_values=cache, max_new_tokens=count, do_sample=False, **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def sdpa():
    return random_model("sdpa")


@pytest.fixture(scope="module")
def model():
    return random_model("tidal")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [5, 63, 300])
def test_the_text_with_room_for_everything_is_that_of_full_attention(model, attention, length):
    tokens = random_tokens(2, length)
    assert torch.equal(text(model, tokens, budget=WHOLE), text(random_model(attention), tokens))


def test_sequences_padded_on_the_left_get_what_each_gets_alone(model, sdpa):
    tokens, mask = random_tokens(3, 400), torch.ones(3, 400, dtype=torch.long)
    mask[1, :77] = 0
    mask[2, :130] = 0
    assert torch.equal(text(model, tokens, mask, budget=WHOLE), text(sdpa, tokens, mask))
    few = text(model, tokens, mask, budget=FEW)
    assert not torch.equal(few, text(sdpa, tokens, mask)), "128 positions of 400 give another text in a random model"
    for row, padding in enumerate([0, 77, 130]):
        alone = text(model, tokens[row : row + 1, padding:], budget=FEW)
        assert torch.equal(few[row, padding:], alone[0]), row


def test_a_prompt_in_pieces_is_the_prompt(model):
    """Several tokens on top of a cache, padding on the left of one sequence."""
    tokens, mask = random_tokens(2, 330), torch.ones(2, 330, dtype=torch.long)
    mask[1, :90] = 0
    cache = tidal.TidalCache(model.config, budget=FEW)
    for begin, end in [(0, 200), (200, 330)]:
        own = model(tokens[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache).logits
    whole = model(tokens, attention_mask=mask, past_key_values=tidal.TidalCache(model.config, budget=FEW)).logits
    # Sums of some hundred terms of float32 in another order.
    torch.testing.assert_close(own, whole[:, 200:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [[0, 40, 80, 230], [0, 1, 2, 91, 230]])
def test_padding_may_be_longer_than_the_first_pieces(model, pieces):
    """Then one token more: what it would be behind the whole prompt."""
    tokens, mask = random_tokens(2, 231), torch.ones(2, 231, dtype=torch.long)
    mask[1, :90] = 0
    caches = [tidal.TidalCache(model.config, budget=WHOLE) for _ in range(2)]
    for cache, ends in zip(caches, (pieces, [0, 230])):
        for begin, end in zip(ends, ends[1:]):
            model(tokens[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
    own, whole = (model(tokens[:, 230:], attention_mask=mask, past_key_values=cache).logits for cache in caches)
    torch.testing.assert_close(own, whole, rtol=1e-4, atol=1e-4)  # as above


def test_a_mask_that_changes_its_mind_is_refused(model):
    tokens, mask = random_tokens(1, 60), torch.ones(1, 60, dtype=torch.long)
    mask[0, :40] = 0
    cache = tidal.TidalCache(model.config, budget=FEW)
    model(tokens[:, :30], attention_mask=mask[:, :30], past_key_values=cache)
    mask[0, 20] = 1
    with pytest.raises(Refused, match="attention_mask: leaves out tokens inside or at the end"):
        model(tokens[:, 30:], attention_mask=mask, past_key_values=cache)


def test_without_a_scale_it_is_one_by_the_root_of_the_heads_size():
    """And has the query's own heads, whoever made a handle before."""
    torch.manual_seed(3)
    cache = tidal.TidalCache(random_model("tidal").config, budget=WHOLE)
    key, value = torch.randn(1, 2, 70, 64), torch.randn(1, 2, 70, 64)
    query, module = torch.randn(1, 8, 1, 64), torch.nn.Module()
    module.num_key_value_groups = 4
    for first, last in [(0, 69), (69, 70)]:
        own = cache.layers[0].update(key[:, :, first:last], value[:, :, first:last])
        asked = query if first else torch.randn(1, 8, 69, 64)
        out = tidal.tidal_attention_forward(module, asked, *own, None, scaling=None)[0]
    full = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sets_are_those_of_the_engine(engine_sets, dtype):
    """Every set of every layer of tokens on both sides of a block's end, three sequences of unlike lengths."""
    model = random_model("tidal", dtype)
    tokens, mask = random_tokens(3, 316), torch.ones(3, 316, dtype=torch.long)
    mask[1, :60] = 0
    mask[2, :200] = 0
    cache = tidal.TidalCache(model.config, budget=FEW)
    compared = []

    def watch(layer, read):
        if int(read.contexts[0]) not in (317, 319, 320, 321):
            return
        own, engine = own_sets(read), engine_sets("cpu", Options(budget=FEW), read)
        for row, context in enumerate(read.contexts.tolist()):
            for head in range(read.pages.kv_heads):
                index = row * read.pages.kv_heads + head
                assert own[index] == engine[index], (layer, row, head)
                assert len(own[index]) == (0 if context <= FEW else min(FEW + context % 64, context))
        compared.append(layer)

    cache.watch = watch
    model.generate(tokens, attention_mask=mask, past_key_values=cache, max_new_tokens=7, do_sample=False)
    assert compared == [0, 1, 2] * 4


def test_beams_and_cropping_move_pages_and_all(model, sdpa):
    tokens = random_tokens(2, 130)
    assert torch.equal(text(model, tokens, budget=WHOLE, num_beams=3), text(sdpa, tokens, num_beams=3))
    cache = tidal.TidalCache(model.config, budget=FEW)
    first = model(tokens, past_key_values=cache).logits
    model(random_tokens(2, 1, 9), past_key_values=cache)
    cache.crop(-31)  # into the block before
    assert cache.get_seq_length() == 100
    again = model(tokens[:, 100:], past_key_values=cache).logits
    torch.testing.assert_close(again, first[:, 100:], rtol=1e-4, atol=1e-4)


def test_what_it_does_not_do_is_refused(model, sdpa):
    with pytest.raises(Refused, match="attn_implementation: 'sdpa', expected 'tidal'"):
        tidal.TidalCache(sdpa.config)
    with pytest.raises(Refused, match="budget: 0, expected 1 to 16777216"):
        tidal.TidalCache(model.config, budget=0)
    with pytest.raises(Refused, match="buget: not known, expected one of budget, sketch_bits, threads"):
        tidal.TidalCache(model.config, buget=3)
    windowed = copy.deepcopy(model.config)
    windowed.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(Refused, match="layer_types: 'sliding_attention' is among them"):
        tidal.TidalCache(windowed)
    with pytest.raises(Refused, match="past_key_values: a cache of another kind"):
        model.generate(random_tokens(1, 8), max_new_tokens=2)
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[0, 4] = 0
    with pytest.raises(Refused, match="attention_mask: leaves out tokens inside or at the end"):
        text(model, random_tokens(1, 9), mask, budget=FEW)
    for name, word in [("sliding_window", "window"), ("softcap", "caps"), ("s_aux", "sinks"), ("position_bias", "adds")]:
        with pytest.raises(Refused, match=f"{name}: this layer .*{word}"):
            query = torch.zeros(1, 8, 1, 32)
            tidal.tidal_attention_forward(None, query, query, query, None, **{name: 1})
    with pytest.raises(Refused, match="dtype: torch.float16, expected torch.bfloat16"):
        text(random_model("tidal", torch.float16), random_tokens(1, 9), budget=FEW)


def test_without_a_cache_it_is_full_attention(model, sdpa):
    tokens = random_tokens(2, 40)
    assert torch.equal(model(tokens, use_cache=False).logits, sdpa(tokens, use_cache=False).logits)
