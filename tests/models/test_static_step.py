"""Static steps: recorded once, replayed on the same memory, they give what the model's own forward gives."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from recording import HostReadError, StandIn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import LlamaConfig, LlamaForCausalLM

from accord.models import LoraSettings, decoding, packing, static_step
from accord.models.decoding import PackedDecoder, check_packed_decoding
from accord.models.static_step import GraphRecorder, choose_columns, choose_recorder, choose_rows, send
from accord.rollout import draw_tokens

LORA = LoraSettings(rank=3, alpha=6)


def fill(base, role, seed=1):
    generator = torch.Generator().manual_seed(seed)
    base.load_state(role, {n: 0.2 * torch.randn(v.shape, generator=generator) for n, v in base.state(role).items()})


@torch.no_grad()
def expect(base, role, tokens):
    with base.activate(role) as model:
        return model(input_ids=torch.tensor([tokens], device=base.device), use_cache=False).logits[0, -1]


@torch.no_grad()
def play(base, role, decoder, steps=4):
    """Rows of several lengths come, go and come, as a sampler has them; each step is compared with the whole row."""
    texts = [list(range(3, 12)), [40, 41], [60] * 6]
    with base.activate(role):
        decoder.admit(texts)
        for step in range(steps):
            if step == 2:  # the first row leaves, the last takes its place, two others enter
                decoder.free(0)
                texts = [texts[2], texts[1], [7, 8, 9], [7, 8, 9]]
                decoder.admit(texts[2:])
            tokens = [20 + 5 * step + row for row in range(len(texts))]
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
            logits = decoder.step(torch.tensor(tokens, device=base.device))
            for row, text in enumerate(texts):
                torch.testing.assert_close(logits[row], expect(base, role, text), atol=2e-5, rtol=1e-4)


def test_rows_are_rounded_up_to_few_sizes_by_a_third_at_most():
    sizes = {choose_rows(taken, 256) for taken in range(1, 257)}
    assert sorted(sizes) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    for taken in range(1, 257):
        assert taken <= choose_rows(taken, 256) <= 1.5 * taken
    assert [choose_rows(taken, 5) for taken in range(1, 6)] == [1, 2, 3, 4, 5]


def test_columns_are_rounded_up_to_multiples_and_never_beyond_the_last():
    assert [choose_columns(seen, 300) for seen in (1, 128, 129, 256, 257, 300)] == [128, 128, 256, 256, 300, 300]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("column_step", [2, 5, 128])
def test_replayed_steps_give_the_models_own_logits_whatever_the_sizes(
    tiny_base, monkeypatch, architecture, column_step
):
    monkeypatch.setattr(static_step, "COLUMN_STEP", column_step)
    base = tiny_base(architecture)
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    recorder = StandIn()
    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 5, 16, record=recorder)
    play(base, "policy", decoder)
    assert recorder.replays == 4
    assert 2 <= recorder.records <= 4


@pytest.mark.parametrize("width_step", [1, 3, 32])
def test_a_cache_that_grows_gives_the_models_own_logits(tiny_base, monkeypatch, width_step):
    monkeypatch.setattr(decoding, "WIDTH_STEP", width_step)
    base = tiny_base()
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 5, 16)
    play(base, "policy", decoder)


def test_a_step_is_recorded_once_for_its_sizes(tiny_base):
    base = tiny_base()
    recorder = StandIn()
    with torch.no_grad():
        decoder = PackedDecoder(base, 8, 300, record=recorder)
        decoder.admit([[5] * 120, [6], [7], [8], [9]])
        for _ in range(20):
            decoder.step(torch.tensor([4] * 5))
    assert recorder.replays == 20
    assert recorder.records == 2  # 6 rows, 128 and then 256 columns


def test_a_kept_trunk_is_that_of_a_step_that_is_not_static(tiny_base):
    base = tiny_base(split=1)
    decoders = [PackedDecoder(base, 4, 40, record=record) for record in (None, StandIn())]
    with torch.no_grad():
        for decoder in decoders:
            decoder.keep_trunk(1)
            decoder.admit([[3, 4, 5], [6, 7]])
            for token in (8, 9, 10):
                decoder.step(torch.tensor([token, token + 1]))
    for row in (0, 1):
        torch.testing.assert_close(decoders[0].read_trunk(row), decoders[1].read_trunk(row))
    assert len(decoders[0].read_trunk(0)) == 6


def test_a_decoder_goes_on_with_what_it_recorded_under_new_weights(tiny_base):
    base = tiny_base()
    base.add_policy("policy", lora=LORA, seed=0)
    base.add_policy("wider", lora=LoraSettings(rank=4, alpha=8), seed=0)
    fill(base, "policy")
    recorder = StandIn()
    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 5, 16, record=recorder)
    play(base, "policy", decoder)
    records = recorder.records
    fill(base, "policy", seed=2)
    with torch.no_grad():
        with base.activate("policy"):
            assert decoder.restart()
        play(base, "policy", decoder)
        assert recorder.records == records
        for other in (None, "wider"):
            with base.activate(other):
                assert not decoder.restart()


def test_torch_traces_a_step_without_knowing_any_number_on_the_device(tiny_base):
    base = tiny_base(split=1)
    with torch.no_grad():
        decoder = PackedDecoder(base, 4, 40, record=StandIn())
        decoder.keep_trunk(1)
        tokens, places = torch.tensor([5, 6, 7]), torch.tensor([3, 0, 11])

        def step(tokens, places, cache, trunk, head):
            decoder.cache, decoder.trunk, decoder.head = cache, trunk, head
            return decoder._compute_step(tokens, places, 16, 1)

        buffers = (decoder.cache, decoder.trunk, decoder.head)
        expected = step(tokens, places, *(buffer.clone() for buffer in buffers))
        traced = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(tokens, places, *buffers)
        found = traced(tokens, places, *(buffer.clone() for buffer in buffers))
    torch.testing.assert_close(found, expected)


def test_the_stand_in_repeats_operations_alone_on_the_memory_of_then():
    buffer, result = torch.ones(3), torch.zeros(3)
    holder = {"buffer": buffer}
    replay = StandIn()(lambda: result.copy_(holder["buffer"] * 2 + 1))
    buffer.fill_(4)
    replay()
    assert result.tolist() == [9, 9, 9]
    holder["buffer"] = torch.zeros(3)  # a graph does not see that a buffer was replaced
    replay()
    assert result.tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    "read", [lambda t: int(t.max()), lambda t: t[t > 0], lambda t: t.nonzero(), lambda t: t.max().item()]
)
def test_the_stand_in_refuses_a_host_that_reads_the_device(read):
    numbers = torch.tensor([1, 0, 2])
    with pytest.raises(HostReadError):
        StandIn()(lambda: read(numbers * 2))


def test_where_passes_stay_transformers_own_the_weights_are_packed_for_decoding_alone(tiny_base, monkeypatch):
    monkeypatch.setattr(packing, "PASSING", ())
    base = tiny_base()
    assert len(base.packed) == base.layers
    assert not any("forward" in layer.__dict__ for layer in base.stack)
    assert base.decodes_packed
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 5, 16, record=StandIn())
    play(base, "policy", decoder)


def test_a_cpu_has_no_recorder_and_numbers_are_sent_as_they_are():
    assert choose_recorder(torch.device("cpu")) is None
    assert send([3, 1], torch.device("cpu")).tolist() == [3, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
def test_cuda_graphs_give_the_models_own_logits(tiny_folder):
    from accord.models import load_base

    base = load_base(str(tiny_folder("llama")), dtype="float32", device="cuda")
    assert check_packed_decoding(base)
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 5, 16, record=GraphRecorder(base.device))
    play(base, "policy", decoder)
    assert decoder.is_static


@torch.no_grad()
def test_on_a_pretended_device_no_operation_mixes_devices_or_reads_a_number(tiny_folder):
    """PyTorch's fake tensors know shape and device and hold no numbers: what would read one, or mix devices, fails."""
    config = LlamaConfig.from_pretrained(tiny_folder("llama"))
    device = torch.device("lazy:0")  # like a GPU apart from the host, and PyTorch asks for no driver of it
    replays = []
    with FakeTensorMode():
        with device:
            model = LlamaForCausalLM(config).requires_grad_(False)
        layers, inverse = model.model.layers, torch.rand(config.head_dim // 2, device=device)

        def turn(x, positions):  # the model's own would ask whether the device computes in several precisions
            angles = (positions[..., None] * inverse).repeat(1, 1, 2)
            return angles.cos(), angles.sin()

        inner = SimpleNamespace(
            get_input_embeddings=model.get_input_embeddings, rotary_emb=turn, norm=model.model.norm
        )  # fmt: skip
        base = SimpleNamespace(
            model=SimpleNamespace(base_model=inner, get_output_embeddings=model.get_output_embeddings), stack=layers,
            packed=tuple(packing._pack(layer) for layer in layers), layers=len(layers),
            hidden_size=config.hidden_size, dtype=torch.float32, device=device,
        )  # fmt: skip
        decoder = PackedDecoder(base, 4, 40, record=lambda work: lambda: replays.append(work()))
        decoder.keep_trunk(1)
        tokens, _ = draw_tokens(decoder.admit([[3, 4, 5], [6]]), torch.rand(2, dtype=torch.float64), 0.9)
        logits = decoder.step(tokens)
        decoder.free(0)
        assert logits.device == tokens.device == decoder.read_trunk(0).device == device
        assert logits.shape == (2, config.vocab_size) and len(replays) == 1
        with pytest.raises(DataDependentOutputException):
            int(tokens.max())
        with pytest.raises(RuntimeError, match="same device"):
            logits + torch.zeros(2, 1)


def test_a_decoder_that_is_let_go_is_freed_at_once(tiny_base):
    base = tiny_base()
    gc.disable()
    try:
        with torch.no_grad():
            decoder = PackedDecoder(base, 2, 16, record=StandIn())
            decoder.admit([[5, 6]])
            decoder.step(torch.tensor([7]))
            cache = weakref.ref(decoder.cache)
            del decoder
        assert cache() is None
    finally:
        gc.enable()
