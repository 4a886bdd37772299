from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mupscale import GrowthError
from mupscale.study.data.stream import collate, training_order
from mupscale.study.data.tokens import END_OF_TEXT, Tokens, load_tokens
from mupscale.study.spec.recipe import TrainConfig


def test_tokens_decode_to_the_text(tokens: Tokens, text_file: Path) -> None:
    text = tokens.tokenizer.decode(np.concatenate([tokens.train_ids, tokens.held_out_ids]).tolist())
    assert text.replace(END_OF_TEXT, "") == text_file.read_text()
    assert text.count(END_OF_TEXT) == 2  # after the training and after the held-out part


def test_tokenizer_encodes_what_it_never_saw_and_is_saved_as_any_other(
    tokens: Tokens, tmp_path: Path
) -> None:
    tokens.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    strange = "Ωμέγα 鸡 \t\n  two  spaces"
    assert loaded.decode(loaded(strange)["input_ids"]) == strange
    assert loaded(strange)["input_ids"] == tokens.tokenizer(strange)["input_ids"]
    assert loaded.eos_token == END_OF_TEXT


def test_cache_gives_the_same_tokens_and_notices_other_text(tmp_path: Path, text_file: Path) -> None:
    first = load_tokens(text_file, vocab_size=300, cache=tmp_path)
    stored = sorted(tmp_path.glob("tokens-*"))
    again = load_tokens(text_file, vocab_size=300, cache=tmp_path)
    assert (first.train_ids == again.train_ids).all()
    assert (first.held_out_ids == again.held_out_ids).all()
    assert len(again.tokenizer) == len(first.tokenizer)
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "one more sentence")
    load_tokens(other, vocab_size=300, cache=tmp_path)
    assert len(sorted(tmp_path.glob("tokens-*"))) == len(stored) + 1


def test_blocks_are_full_and_in_order(tokens: Tokens) -> None:
    ids = np.arange(23, dtype=np.uint32)
    blocks = Tokens(ids, ids, tokens.tokenizer, "numbers").held_out(TrainConfig(block_size=5))
    assert len(blocks) == 4
    assert blocks[1]["input_ids"].tolist() == [5, 6, 7, 8, 9]
    assert torch.equal(blocks[3]["labels"], blocks[3]["input_ids"])
    assert blocks[0]["labels"].dtype == torch.int64
    batch, one_by_one = collate(blocks.__getitems__([2, 0])), collate([blocks[2], blocks[0]])
    assert all(torch.equal(batch[key], one_by_one[key]) for key in ("input_ids", "labels"))


def test_too_little_text_is_an_error(tokens: Tokens) -> None:
    with pytest.raises(GrowthError, match="too few for one block of 100000"):
        tokens.training(TrainConfig(block_size=100_000))
    with pytest.raises(GrowthError, match=r"held-out text .*too few"):
        tokens.held_out(TrainConfig(block_size=100_000))


def test_order_is_one_endless_stream() -> None:
    stream = training_order(10, start=0, count=35, seed=3)
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert (stream[:10] != stream[10:20]).any()
    assert (training_order(10, start=17, count=9, seed=3) == stream[17:26]).all()
    assert (training_order(10, start=0, count=35, seed=4) != stream).any()


def test_held_out_blocks_are_spread_evenly(tokens: Tokens) -> None:
    everything, some = (tokens.held_out(TrainConfig(block_size=16, eval_blocks=n)) for n in (None, 5))
    assert len(some) == 5
    assert torch.equal(some[0]["input_ids"], everything[0]["input_ids"])
    assert torch.equal(some[4]["input_ids"], everything[len(everything) - 1]["input_ids"])
