"""Work is counted right: against torch's own counter, and against closed forms worked out by hand."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from accord.models import LoraSettings, load_base
from benchmarks.counting import ModelShape, PhaseCounter, Work, WorkCounter

ROWS, TOKENS = 3, 7
SHAPE = ModelShape(layers=3, hidden=32, intermediate=64, heads=4, key_heads=2, head_width=8, vocabulary=259)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_counts_what_torch_counts(tiny_model: Path, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    ids = torch.randint(259, (ROWS, TOKENS))
    counts = []
    for counter in (WorkCounter(), FlopCounterMode(display=False)):
        with counter:
            model(ids).logits.float().logsumexp(-1).sum().backward()
        counts.append(counter.work.flops if isinstance(counter, WorkCounter) else counter.get_total_flops())
    if attention == "eager":
        assert counts[0] == counts[1]
    else:  # torch's table has no line for the CPU's fused attention
        assert counts[0] > counts[1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_forward_pass_has_the_closed_form(tiny_model: Path, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    assert ModelShape.from_config(model.config) == SHAPE
    counter = WorkCounter()
    with torch.no_grad(), counter:
        model(torch.randint(259, (ROWS, TOKENS)), use_cache=False, logits_to_keep=2)
    angles = 2 * TOKENS * 8 // 2  # positions times frequencies is a product too, half a head's width for each token
    expected = SHAPE.count_forward_flops(ROWS * TOKENS, ROWS * TOKENS * TOKENS, 2 * ROWS)
    assert counter.work.flops == expected + angles


def test_adapters_are_counted(tiny_model: Path) -> None:
    """Matrices with one input share a product: R = r times their number, so that they add 2 N R (in + out)."""
    base = load_base(str(tiny_model), dtype="float32", split=1, device="cpu")
    base.add_policy("policy", lora=LoraSettings(rank=4, alpha=8), seed=0)
    ids = torch.randint(259, (ROWS, TOKENS))
    counts = {}
    for role in (None, "policy"):
        with torch.no_grad(), WorkCounter() as counter:
            base.compute_logits(role, ids, torch.ones_like(ids, dtype=torch.bool), 2)
        counts[role] = counter.work.flops
    packs = [(3, 32, 32 + 16 + 16), (1, 32, 32), (2, 32, 64 + 64), (1, 64, 32)]
    thin = sum(2 * ROWS * TOKENS * 4 * matrices * (i + o) for matrices, i, o in packs)
    assert counts["policy"] - counts[None] == 2 * thin  # two of three layers are adapted


def test_bytes_are_operands_and_results() -> None:
    left, right = torch.ones(2, 3), torch.ones(3, 4, dtype=torch.float32)
    with WorkCounter() as counter:
        left @ right
    assert counter.work == Work(2 * 2 * 3 * 4, 4 * (6 + 12 + 8))


def test_decoding_by_hand() -> None:
    """One layer of width 2, one head: 2 * (2 * 2 + 2 * 2) / 2 = 16 weights in attention, 3 * 2 * 3 in the MLP."""
    shape = ModelShape(layers=1, hidden=2, intermediate=3, heads=1, key_heads=1, head_width=2, vocabulary=5)
    assert shape.layer_weights == 4 * 4 + 18
    assert shape.matrix_weights == 34 + 10
    # prompt of 2, 3 new: tokens 1 to 4 pass the layers, with 1 + 2 + 3 + 4 keys; 3 pass the head
    flops = 2 * 34 * 4 + 2 * 10 * 3 + 4 * 2 * 10
    # 3 steps read all weights; steps 2 and 3 read keys and values of 3 and 4 tokens, 4 entries each
    moved = 2 * (3 * 44 + 4 * (3 + 4))
    assert shape.count_decoding([2], [3], 2) == Work(flops, moved)
    # a second, shorter row costs operations, but no more weights
    both = shape.count_decoding([2, 2], [3, 1], 2)
    assert both.moved_bytes == moved
    assert both.flops == flops + 2 * 34 * 2 + 2 * 10 + 4 * 2 * 3


def test_phases_get_their_own_work_and_none_while_paused() -> None:
    product = torch.ones(2, 2)
    counter = PhaseCounter()
    product @ product
    counter.lap("before the start")
    counter.start()
    product @ product
    counter.lap("a")
    with counter.paused():
        product @ product
    counter.lap("b")
    product @ product
    product @ product
    counter.lap("c")
    counter.stop()
    counter.stop()
    product @ product
    assert {phase: work.flops for phase, work in counter.phases.items()} == {"a": 16, "b": 0, "c": 32}
