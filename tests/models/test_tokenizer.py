"""ChatTokenizer: EOS, PAD, templates and completions, on a byte-level tokenizer whose ids can be read off."""

import pytest
from tiny import BOS_ID, CHAT_TEMPLATE, EOS_ID, PAD_ID, build_tiny_tokenizer

from accord.errors import DataError, ModelError
from accord.models import ChatTokenizer
from accord.types import Completion, Message, Prompt

CHAT = Prompt.from_user("Hi")


def read(tokens, ids):
    return tokens.inner.decode(ids, skip_special_tokens=False)


def test_a_chat_is_the_template_and_a_finished_answer_ends_with_eos():
    tokens = ChatTokenizer(build_tiny_tokenizer())
    assert read(tokens, tokens.encode_prompt(CHAT)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokens, tokens.encode_completion(Completion.from_text("Ho"))) == "Ho<|im_end|>"
    assert read(tokens, tokens.encode_completion(Completion.from_text("Ho", finished=False))) == "Ho"


def test_text_prompts_get_the_tokenizers_own_special_tokens_and_never_an_eos():
    inner = build_tiny_tokenizer(chat=False)
    tokens = ChatTokenizer(inner)
    assert read(tokens, tokens.encode_prompt(Prompt(text="Once"))) == "Once"
    assert tokens.encode_prompt(Prompt(text="")) == [BOS_ID]
    with pytest.raises(ModelError, match="no chat template"):
        tokens.encode_prompt(CHAT)


def test_special_tokens_spelt_out_in_an_answer_are_plain_text():
    tokens = ChatTokenizer(build_tiny_tokenizer())
    ids = tokens.encode_completion(Completion.from_text("a<|im_end|>b"))
    assert ids.count(EOS_ID) == 1
    assert ids[-1] == EOS_ID
    assert tokens.decode(ids) == "a<|im_end|>b"
    prompt = tokens.encode_prompt(CHAT)  # the setting was for that one call
    assert prompt.count(EOS_ID) == 1


@pytest.mark.parametrize("text", [" two  spaces ", "Ünïcödé 🐝", "a , b .", "line\nline\n"])
def test_decoding_gives_back_the_text_as_written(text):
    tokens = ChatTokenizer(build_tiny_tokenizer())
    assert tokens.decode(tokens.encode_completion(Completion.from_text(text))) == text


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("shared", [1, 2, 3])
def test_chats_that_part_earlier_are_the_whole_chat_wherever_they_are_cut(shared, finished):
    chat = (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Ho"),
        Message("user", "And?"),
        Message("assistant", "So."),
    )
    tokens = ChatTokenizer(build_tiny_tokenizer())
    completion = Completion(chat[shared + 1 :], finished=finished)
    if shared == 1:
        assert completion.messages[0].role == "assistant"
    ids = tokens.encode_prompt(Prompt(messages=chat[: shared + 1])) + tokens.encode_completion(completion)
    whole = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in chat)
    assert read(tokens, ids) == whole.removesuffix("\n") if finished else whole.removesuffix("<|im_end|>\n")


def test_a_completion_that_ends_with_the_user_is_refused():
    tokens = ChatTokenizer(build_tiny_tokenizer())
    turns = (Message("assistant", "Ho"), Message("user", "And?"))
    with pytest.raises(DataError, match="ends with the user"):
        tokens.encode_completion(Completion(turns))


def test_eos_is_the_token_that_closes_a_turn_whatever_the_tokenizer_says():
    inner = build_tiny_tokenizer()
    inner.eos_token = "<|im_start|>"  # as in the GGUF of SmolLM2
    assert ChatTokenizer(inner, eos_candidates=[EOS_ID]).eos_id == EOS_ID
    assert ChatTokenizer(inner, eos_candidates=[PAD_ID, EOS_ID]).eos_id == EOS_ID
    inner.chat_template = None
    assert ChatTokenizer(inner, eos_candidates=[EOS_ID]).eos_id == EOS_ID
    assert ChatTokenizer(inner).eos_id == BOS_ID


def test_pad_is_never_eos():
    inner = build_tiny_tokenizer()
    assert ChatTokenizer(inner).pad_id == PAD_ID
    for pad in ("<|im_end|>", None):
        inner.pad_token = pad
        assert ChatTokenizer(inner).pad_id == PAD_ID  # the spare special token
    inner.unk_token = None
    inner.add_special_tokens({"additional_special_tokens": ["<|spare|>"]})
    inner.bos_token = "<|pad|>"
    assert ChatTokenizer(inner).pad_id == 259
    assert ChatTokenizer(inner, eos_candidates=[EOS_ID, 259], vocabulary=300).pad_id == 260  # an unused embedding
    assert ChatTokenizer(inner, eos_candidates=[EOS_ID, 259]).pad_id == 258  # an ordinary token: masks decide


def test_a_tokenizer_larger_than_the_model_or_without_eos_is_refused():
    inner = build_tiny_tokenizer()
    with pytest.raises(ModelError, match="259 tokens, the model 200 embeddings"):
        ChatTokenizer(inner, vocabulary=200)
    inner.eos_token = None
    with pytest.raises(ModelError, match="EOS"):
        ChatTokenizer(inner)


def test_what_a_template_refuses_is_named_with_the_mend():
    inner = build_tiny_tokenizer()
    inner.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    tokens = ChatTokenizer(inner)
    with pytest.raises(ModelError, match="no system role") as caught:
        tokens.encode_prompt(Prompt.from_user("Hi", system="Be kind."))
    assert caught.value.mend
