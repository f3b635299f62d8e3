"""LoRA by transformers' Trainer and peft alone: what peers.py compares this project with.

    python benchmarks/trainer_peft.py BASE ADAPTER ROWS --steps 48 --batch-size 4 --lr 1e-4

It trains ADAPTER over BASE on the rows in their order: images are opened and go through the vision
part in every step, as in any script of this kind. The last line it prints is the list of losses.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import peft
    import torch
    import transformers

from PIL import Image


def collate(processor, rows):
    """Rows -> the arguments of the model; labels are the answer and its end."""
    texts, images, lengths = [], [], []
    for row in rows:
        question = {"type": "text", "text": row["prompt"]}
        asked = [{"role": "user", "content": [{"type": "image"}, question]}]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
        answer = row["label"] + processor.tokenizer.eos_token
        texts.append(prompt + answer)
        lengths.append(len(processor.tokenizer(answer, add_special_tokens=False).input_ids))
        images.append(Image.open(row["img"]).convert("RGB"))
    batch = processor(
        text=texts,
        images=images,
        padding=True,
        padding_side="right",
        add_special_tokens=False,  # the template has written them
        return_tensors="pt",
    )

    labels = torch.full_like(batch["input_ids"], -100)
    for index, (width, length) in enumerate(zip(batch["attention_mask"].sum(1), lengths)):
        labels[index, width - length : width] = batch["input_ids"][index, width - length : width]
    return dict(batch) | {"labels": labels}


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("base")
    add("adapter")
    add("rows")
    add("--steps", type=int, required=True)
    add("--batch-size", type=int, required=True)
    add("--lr", type=float, required=True)
    args = parser.parse_args()

    processor = transformers.AutoProcessor.from_pretrained(args.base)
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    with open(args.rows, encoding="utf-8") as file:
        rows = json.load(file)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(Path(args.adapter).with_name("trainer")),  # made, and left empty
            use_cpu=True,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            train_sampling_strategy="sequential",
            learning_rate=args.lr,
            lr_scheduler_type="constant",
            weight_decay=0,
            max_grad_norm=1,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=lambda some: collate(processor, some),
    )
    trainer.train()
    print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))


if __name__ == "__main__":
    main()
