"""The peer of benchmarks.reward: TRL's RewardTrainer on Anthropic-format pairs, as one JSON line, in TRL's own venv."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def read_turns(transcript: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for exchange in transcript.split("\n\nHuman:")[1:]:
        question, *answers = exchange.split("\n\nAssistant:")
        turns.append({"role": "user", "content": question.strip()})
        turns.extend({"role": "assistant", "content": answer.strip()} for answer in answers)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs a pass; 16 a step")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(a.model)

    def fits(messages: list[dict[str, str]]) -> bool:
        return len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]) <= a.max_tokens

    def read(path: str) -> Dataset:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [{side: read_turns(json.loads(line)[side]) for side in ("chosen", "rejected")} for line in file]
        return Dataset.from_list([row for row in rows if fits(row["chosen"]) and fits(row["rejected"])])

    train, test = read(a.train), read(a.test)
    model = AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=1, dtype=torch.bfloat16)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=os.path.join(os.environ.get("TMPDIR", "/dev/shm"), "trl-reward"),
            per_device_train_batch_size=a.micro_batch,
            gradient_accumulation_steps=16 // a.micro_batch,
            per_device_eval_batch_size=2 * a.micro_batch,
            num_train_epochs=1,
            learning_rate=a.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            max_length=a.max_tokens,
            seed=0,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=test,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["score"]
        ),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    row = {
        "name": "trl 1.10 RewardTrainer",
        "train_pairs": len(train),
        "test_pairs": len(test),
        "seconds": seconds,
        "accuracy": trainer.evaluate()["eval_accuracy"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
