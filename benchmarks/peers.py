"""LoRA of a LLaVA-1.5 of 149 M random weights: this project and others on the same rows, one run.

    python benchmarks/peers.py
    python benchmarks/peers.py --rows data/UCM/UCM-prompt-train.json
    python benchmarks/peers.py --llamafactory /tmp/lf/bin/python --swift /tmp/swift/bin/python

By LLaMA-Factory 0.9.5 and ms-swift 4.6.0 where their Python is named, each in an environment of
its own; where none is, by transformers' Trainer with peft (trainer_peft.py). All start from one
adapter that peft wrote, take the same rows in the same order, and train in float32 on the CPU,
without activation checkpointing; their templates of LLaVA differ by a space. The ways take turns
--rounds times. Each is a process of its own, imports, loading and the end included. CPU seconds are
those of all its threads, which other load changes less than the clock's.
"""

import json
import os
import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from networks import PROJECT, machine, table

from command_line import Parser, ctrl_c_ends_at_once, sigterm_cleans_up

with ctrl_c_ends_at_once():
    import torch

from bench import Bench
from hf_networks import on_meta, write_llava
from processes import Failed, as_words, gigabytes, readings, watch

HERE = Path(__file__).resolve().parent
RANK = 8
LR = 1e-4
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEED = 1234  # finetune_RemoteGLM.py's own
MOST_TOKENS = 2048  # of a row: none is cut
COMPARED = 20  # first steps whose losses are compared
# No network, no hub, and transformers' newest release although they ask for others
ENVIRONMENT = {"DISABLE_VERSION_CHECK": "1", "USE_HF": "1", "HF_HUB_OFFLINE": "1"}


class Llava(Bench):
    """The network, an adapter to start from, rows in the order of the steps."""

    question = "这张遥感图像展现了什么场景？"

    def prepare(self, rows, count, batch_size, epochs):
        """rows: a row file, or None: random. Returns self."""
        write_llava(self.base)
        self.adapter = write_adapter(self.folder / "adapter", self.base)
        self.file = self.chosen(rows, count) if rows else self.rows("rows", count, count)
        self.batch_size, self.epochs = batch_size, epochs
        self.ordered = self.in_order()
        return self

    def answer(self, chance, tokens):
        return "".join(
            chance.choices("一片绿色的农田在道路旁，有三座灰白屋顶房子和树木。", k=tokens)
        )

    def chosen(self, rows, count):
        """The first rows of a file, their images as PNG, which all ways read alike."""
        from model.rows import load_image, load_rows

        folder = self.folder / "rows"
        folder.mkdir()
        found = []
        for index, sample in enumerate(load_rows(rows)[:count]):
            image = folder / f"{index}.png"
            load_image(sample.image).save(image)
            row = {"img": image.name, "prompt": sample.question, "label": sample.answer}
            found.append(row)
        file = folder / "rows.json"
        file.write_text(json.dumps(found))
        return file

    def in_order(self):
        """A file of the rows of all steps in turn, as finetune_RemoteGLM.py takes them."""
        from model.family import Limits
        from model.rows import load_rows
        from model.training.sampler import plan_epoch

        family = on_meta(self.base)
        samples = load_rows(self.file)
        lengths = [family.render(sample, Limits()).length for sample in samples]
        rows = json.loads(self.file.read_text())
        ordered = []
        for epoch in range(self.epochs):
            for step in plan_epoch(lengths, self.batch_size, SEED, epoch):
                for index in step:
                    ordered.append(rows[index] | {"img": str(samples[index].image)})
        file = self.folder / "ordered.json"
        file.write_text(json.dumps(ordered))
        self.images = len(ordered)
        return file

    @property
    def steps(self):
        return self.images // self.batch_size


def write_adapter(folder, base):
    """LoRA on all linear layers of the language model as peft begins it -> its folder."""
    import peft
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=rf".*language_model.*\.({'|'.join(LINEAR)})",
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


# The ways: a Llava and a name for its files -> (processes.Run, losses of the steps)


def remoteglm(bench, name):
    file = bench.folder / name / "rows.json"
    file.parent.mkdir()
    file.write_bytes(bench.file.read_bytes())
    options = {
        "--from-pretrained": bench.adapter,
        "--image-root": bench.file.parent,
        "--epochs": bench.epochs,
        "--batch-size": bench.batch_size,
        "--device": "cpu",
        "--vision-cache": bench.folder / name / "features",  # none is there yet
        "--lr": LR,
        "--lr-decay-style": "constant",
        "--warmup": 0,
        "--adam-beta2": 0.999,
        "--weight-decay": 0,
        "--clip-grad": 1,
        "--max-target-length": MOST_TOKENS,
        "--log-interval": 1,
        "--save-interval": sys.maxsize,
        "--train-data": file,
        "--save": bench.folder / "runs",
        "--experiment-name": name,
    }
    run = watch(
        [sys.executable, PROJECT / "finetune_RemoteGLM.py", *as_words(options)], bench.threads
    )
    return run, [entry["loss"] for entry in readings(bench.folder / "runs" / name)]


def trainer_peft(bench, name):
    options = {"--steps": bench.steps, "--batch-size": bench.batch_size, "--lr": LR}
    files = [bench.base, bench.adapter, bench.ordered]
    command = [sys.executable, HERE / "trainer_peft.py", *files, *as_words(options)]
    run = watch(command, bench.threads)
    return run, json.loads(run.output.strip().splitlines()[-1])


def conversations(bench, image):
    """The rows as LLaMA-Factory and ms-swift read them. image: what marks it in a text."""
    found = []
    for row in json.loads(bench.ordered.read_text()):
        messages = [
            {"role": "user", "content": image + row["prompt"]},
            {"role": "assistant", "content": row["label"]},
        ]
        found.append({"messages": messages, "images": [row["img"]]})
    return found


def llamafactory(python, bench, name):
    folder = bench.folder / name
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(conversations(bench, "<image>\n")))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
    entry = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": tags | {"assistant_tag": "assistant"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    settings = {
        "model_name_or_path": str(bench.base),
        "adapter_name_or_path": str(bench.adapter),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "llava",
        "default_system": "",  # it would be longer than the rows
        "cutoff_len": MOST_TOKENS,
        "disable_shuffling": True,
        "preprocessing_num_workers": 1,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": bench.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": bench.steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_gradient_checkpointing": True,  # as the others
        "use_cpu": True,
        "overwrite_cache": True,
    }
    file = folder / "settings.yaml"  # JSON is YAML as well
    file.write_text(json.dumps(settings))
    run = watch([python, "-m", "llamafactory.cli", "train", file], bench.threads)
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    return run, [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def swift(python, bench, name):
    folder = bench.folder / name
    folder.mkdir()
    file = folder / "rows.jsonl"
    lines = [json.dumps(row) for row in conversations(bench, "<image>")]
    file.write_text("\n".join(lines) + "\n")
    options = {
        "--model": bench.base,
        "--model_type": "llava1_5_hf",
        "--adapters": bench.adapter,
        "--load_args": "false",
        "--dataset": file,
        "--dataset_shuffle": "false",
        "--train_dataloader_shuffle": "false",
        "--split_dataset_ratio": 0,
        "--torch_dtype": "float32",
        "--output_dir": folder / "out",
        "--add_version": "false",
        "--per_device_train_batch_size": bench.batch_size,
        "--gradient_accumulation_steps": 1,
        "--max_steps": bench.steps,
        "--learning_rate": LR,
        "--lr_scheduler_type": "constant",
        "--warmup_ratio": 0,
        "--weight_decay": 0,
        "--logging_steps": 1,
        "--save_strategy": "no",
        "--report_to": "none",
        "--gradient_checkpointing": "false",
        "--max_length": MOST_TOKENS,
        "--dataset_num_proc": 1,
        "--dataloader_num_workers": 0,
        "--use_cpu": "true",
    }
    command = [python, "-m", "swift.cli.sft", *as_words(options)]
    run = watch(command, bench.threads)
    lines = (folder / "out" / "logging.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return run, [entry["loss"] for entry in entries if "loss" in entry]


# The table


def measured(bench, ways, rounds):
    """way -> [(Run, losses)] of each round; of one that fails its reason is printed."""
    found = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            print(f"{name}, round {number + 1}", file=sys.stderr, flush=True)
            try:
                found[name].append(way(bench, f"{name}-{number}"))
            except (Failed, MemoryError, OSError) as error:
                print(f"{name}: {str(error)[-1500:]}", file=sys.stderr, flush=True)
    return {name: runs for name, runs in found.items() if runs}


def report(bench, found):
    own_losses = found["RemoteGLM"][0][1]

    def row(name, runs):
        seconds = statistics.median(run.total for run, _ in runs)
        return {
            "way": name,
            "images/s": bench.images / seconds,
            "CPU seconds": statistics.median(run.cpu_seconds for run, _ in runs),
            "peak": statistics.median(run.memory for run, _ in runs),
            "losses": difference(runs[0][1], own_losses),
        }

    rows = [row(name, runs) for name, runs in found.items()]
    own = rows[0]
    for other in rows:
        yield {
            "way": other["way"],
            "images/s": f"{other['images/s']:.2f}",
            "RemoteGLM against it": f"{own['images/s'] / other['images/s']:.2f}",
            "CPU seconds": f"{other['CPU seconds']:.0f}",
            "its CPU seconds against RemoteGLM's": (
                f"{other['CPU seconds'] / own['CPU seconds']:.2f}"
            ),
            "peak GB": gigabytes(other["peak"]),
            "RemoteGLM's peak against its": f"{own['peak'] / other['peak']:.2f}",
            f"losses of {COMPARED} steps differ by": other["losses"],
        }


def difference(losses, own):
    pairs = list(zip(losses, own))[:COMPARED]
    return f"{max(abs(a - b) / b for a, b in pairs):.2%} at most"


def parse():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--rows", type=Path, help="row file whose first rows are taken (default: random rows)")
    add("--count", type=int, default=64, help="rows of an epoch (default: 64)")
    add("--epochs", type=int, default=3, help="default: 3")
    add("--batch-size", type=int, default=4, help="rows of a step (default: 4)")
    add("--rounds", type=int, default=1, help="each way trains so many times (default: 1)")
    add("--threads", type=int, default=2, help="of the CPU (default: 2)")
    add("--llamafactory", help="Python of an environment with LLaMA-Factory (default: left out)")
    add("--swift", help="Python of an environment with ms-swift (default: left out)")
    return parser.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    os.environ.update(ENVIRONMENT)
    random.seed(0)
    ways = {"RemoteGLM": remoteglm}
    if args.llamafactory:
        ways["LLaMA-Factory"] = partial(llamafactory, args.llamafactory)
    if args.swift:
        ways["ms-swift"] = partial(swift, args.swift)
    if len(ways) == 1:
        ways["Trainer + peft"] = trainer_peft
    with sigterm_cleans_up(), tempfile.TemporaryDirectory() as scratch:
        bench = Llava(Path(scratch), args.threads)
        bench.prepare(args.rows, args.count, args.batch_size, args.epochs)
        print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the start\n", flush=True)
        table(report(bench, measured(bench, ways, args.rounds)))
        print(
            f"\n{bench.images} images in {bench.steps} steps of {bench.batch_size}; LoRA of rank "
            f"{RANK} on all linear layers of the language model, float32. Medians of "
            f"{args.rounds} round(s); peak: greatest resident size."
        )


if __name__ == "__main__":
    main()
