"""The options of training: names, defaults, help, and which of them contradict each other.

finetune_RemoteGLM.py makes its command line of these fields; a saved run stores them by name.
"""

import argparse
import dataclasses
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from model.files import PROJECT


def option(group, default, help, **argparse_options):
    """A field that is an option. group: its heading in --help; the rest as for add_argument."""
    metadata = {"group": group, "help": help} | argparse_options
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


DATA, MODEL, METHOD = "data", "model", "what is trained"
OPTIMIZATION, MEMORY, RUN = "optimization", "memory and speed", "run folder and reports"


@dataclass
class Options:
    """Each field is --field-name (or --field_name)."""

    dataset: str = option(
        DATA, "UCM", "set whose rows data/generate_prompt.py wrote: names the default row files"
    )
    train_data: str = option(
        DATA,
        "",
        "training rows: JSON, JSONL, or shards of generate_prompt.py --pack, of which a quoted "
        "pattern names several ('data/set-train-*.tar'); empty: "
        "data/<dataset>/<dataset>-prompt-train.json",
    )
    valid_data: str = option(
        DATA, "", "validation rows; empty: the -val file beside the training rows, if there"
    )
    stream: bool = option(
        DATA,
        False,
        "for millions of rows, JSONL: they stay on the disk and are read in every step, so that "
        "memory hardly grows with the set; always so for shards. No feature cache then, and images "
        "are not opened before the training",
    )
    image_root: str = option(
        DATA, "", "folder of relative images; empty: beside the row file, then the project root"
    )
    max_source_length: int = option(DATA, 0, "tokens of image and question together; 0: no limit")
    max_target_length: int = option(
        DATA,
        256,
        "tokens of an answer; longer ones are cut, counted and reported; 0: no limit",
    )
    max_pixels: int = option(
        DATA,
        0,
        "of a base of transformers: larger images are shrunk to so many pixels, whatever their "
        "shape; 0: 768 x 768 = 589824, or the base's own where that is less",
    )
    min_pixels: int = option(
        DATA, 0, "of such a base: smaller images are enlarged to so many; 0: the base's own"
    )
    english: bool | None = option(
        DATA,
        None,
        "frame questions with Q: / A: instead of 问： / 答：; default: as what it starts from was "
        "trained, else not",
        action=argparse.BooleanOptionalAction,
    )
    num_workers: int = option(DATA, -1, "processes that read images; -1: 4 with a GPU, else 0")
    augment: float = option(
        DATA,
        0.0,
        "rotate, flip, crop, stretch and color-jitter training images at random, resampled every "
        "epoch; a crop keeps at least this share of each side (0.8 if none is named). Rows that "
        "name a direction are not rotated, those that name colors not recolored; no feature cache "
        "then",
        nargs="?",
        const=0.8,
    )

    from_pretrained: str = option(
        MODEL,
        "visualglm-6b",
        "base, or a full checkpoint or an adapter to train on from in a new run: a folder, or a "
        "name to look up in SAT_HOME and the Hugging Face and ModelScope caches",
    )
    base_path: str = option(
        MODEL, "", "an adapter's base, if it is no longer where it was in training"
    )
    download: str = option(
        MODEL,
        "",
        "where to fetch a base from that is not found",
        choices=("huggingface", "modelscope"),
        nargs="?",
        const="huggingface",
    )
    model_config: str = option(
        MODEL,
        "",
        "configuration (.json) of a network to train from scratch, with --method full: randomly "
        "initialised",
    )
    tokenizer: str = option(MODEL, "", "vocabulary file; empty: in the checkpoint folder")
    device: str = option(MODEL, "", "cuda or cpu; empty: cuda where there is one")
    dtype: str = option(
        MODEL,
        "",
        "of weights and activations; float16 trains with loss scaling and needs a GPU; empty: "
        "bfloat16 on a GPU that has it, else float16; float32 on a CPU",
        choices=("float32", "float16", "bfloat16"),
    )

    method: str = option(
        METHOD,
        "lora",
        "lora; qlora: LoRA over frozen weights in 4 bits (NF4), less memory, slower; ptuning: "
        "P-tuning v2 prefixes; full: all parameters",
        choices=("lora", "qlora", "ptuning", "full"),
    )
    trainable: list = option(
        METHOD,
        [],
        "parts of the network that are trained in full: beside an adapter these as well, with "
        "--method full only these (default: none beside an adapter, with full all)",
        nargs="+",
    )
    lora_rank: int = option(METHOD, 10, "rank r of LoRA")
    lora_alpha: float = option(METHOD, 1.0, "LoRA is scaled by alpha / r")
    lora_dropout: float = option(METHOD, 0.0, "dropout on LoRA's input, 0 to 1")
    lora_targets: list = option(
        METHOD,
        ["attention"],
        "what gets LoRA: attention and mlp of the language model, vision (attention of the whole "
        "tower), projection (of a base of transformers: projector)",
        nargs="+",
    )
    layer_range: list = option(
        METHOD,
        None,
        "language-model layers that get LoRA: `0 14` lists two, `0-13` is a range; default: all",
        nargs="+",
    )
    pre_seq_len: int = option(METHOD, 4, "prefix length of P-tuning v2")

    epochs: float = option(
        OPTIMIZATION, 0.0, "epochs over the training rows; 0: as --train-iters says, else 3"
    )
    train_iters: int = option(OPTIMIZATION, 0, "optimizer steps; 0: as --epochs says")
    batch_size: int = option(OPTIMIZATION, 4, "micro-batch size: rows per process")
    gradient_accumulation_steps: int = option(OPTIMIZATION, 1, "micro-batches per optimizer step")
    lr: float = option(OPTIMIZATION, 1e-4, "highest learning rate")
    lr_decay_style: str = option(
        OPTIMIZATION, "cosine", "after warm-up", choices=("constant", "linear", "cosine")
    )
    warmup: float = option(OPTIMIZATION, 0.02, "warm-up ratio: share of the steps, 0 to 1")
    adam_beta1: float = option(OPTIMIZATION, 0.9, "AdamW's beta1")
    adam_beta2: float = option(OPTIMIZATION, 0.95, "AdamW's beta2")
    adam_eps: float = option(OPTIMIZATION, 1e-8, "AdamW's epsilon")
    weight_decay: float = option(
        OPTIMIZATION, 0.01, "AdamW's decay of matrices; biases and norms have none"
    )
    clip_grad: float = option(OPTIMIZATION, 0.1, "gradient norm is clipped to this; 0: not")
    label_smoothing: float = option(
        OPTIMIZATION, 0.0, "share of each target that goes to all tokens: less overfitting"
    )
    patch_dropout: float = option(
        OPTIMIZATION,
        0.0,
        "share of an image's patches that each training step leaves out at random: less compute "
        "and less overfitting where the vision part is trained; no feature cache then",
    )
    early_stopping: int = option(
        OPTIMIZATION, 0, "stop after so many validations without a lower loss; 0: never"
    )
    seed: int = option(OPTIMIZATION, 1234, "of initial weights, row order and shuffled images")

    vision_cache: str = option(
        MEMORY,
        str(PROJECT / "checkpoints" / "vision-cache"),
        "folder of cached vision features: a frozen vision part sees each image once; off: in "
        "every step",
    )
    vision_cache_gb: float = option(
        MEMORY, 20.0, "beyond this size the least recently used features are removed"
    )
    zero_stage: int = option(
        MEMORY,
        0,
        "ZeRO: what processes share: 0 nothing, 1 optimizer state, 2 gradients, 3 weights",
        choices=(0, 1, 2, 3),
    )
    offload: bool = option(
        MEMORY, False, "keep optimizer state (with --zero-stage 3 weights, too) in CPU memory"
    )
    checkpoint_activations: bool = option(
        MEMORY, False, "recompute layers in the backward pass: less memory, slower"
    )
    compile: bool = option(
        MEMORY, False, "compile the language model's layers: slow start, faster steps"
    )

    experiment_name: str = option(RUN, "RemoteGLM", "folder under --save")
    save: str = option(RUN, str(PROJECT / "checkpoints"), "folder of experiments")
    resume: bool = option(
        RUN, False, "continue, with the same settings, from the experiment's last complete step"
    )
    extend: bool = option(
        RUN,
        False,
        "with --resume: train on to a larger --train-iters or --epochs than the run was planned "
        "for; from here on the learning rate follows the schedule of the new number of steps",
    )
    overwrite: bool = option(RUN, False, "start again where the experiment's folder holds a run")
    save_interval: int = option(
        RUN, 0, "save every so many steps; 0: after each validation, and at the end"
    )
    keep: int = option(RUN, 3, "saved steps to keep beside the best one; 0: all")
    eval_interval: int = option(RUN, 0, "validate every so many steps; 0: once an epoch")
    eval_batch_size: int = option(RUN, 8, "rows per process in validation")
    eval_iters: int = option(RUN, 0, "validation batches per process; 0: all")
    log_interval: int = option(RUN, 10, "steps between loss readings")
    report: list = option(
        RUN, [], "also log metrics to these", nargs="+", choices=("tensorboard", "wandb")
    )


# Upstream's spellings of a choice: flag -> (field, value, or None where the flag takes a value)
ALIASES = {
    "--use_lora": ("method", "lora"),
    "--use_qlora": ("method", "qlora"),
    "--use_ptuning": ("method", "ptuning"),
    "--fp16": ("dtype", "float16"),
    "--bf16": ("dtype", "bfloat16"),
}
# Upstream's --mode: pretrain trains all parameters, finetune an adapter
MODES = {"pretrain": "full", "finetune": None}
# Upstream's flags that nothing depends on any more: flag -> (values it takes, why)
IGNORED = {
    "--resume-dataloader": (0, "row order is a function of seed and epoch"),
    "--skip-init": (0, "loaded weights are never initialised first"),
    "--distributed-backend": (1, "nccl on GPUs, gloo on CPUs"),
    "--split": (1, "splits come from the row files"),
    "--local_rank": (1, "the launcher's environment says it"),
    "--model-parallel-size": (1, "one network per process; --zero-stage 3 shares its weights"),
}

# What an adapter decides: method -> option -> key of the method in its card
ADAPTER_OPTIONS = {
    "lora": {
        "lora_rank": "rank",
        "lora_alpha": "alpha",
        "lora_targets": "targets",
        "layer_range": "layers",
    },
    "ptuning": {"pre_seq_len": "length"},
}
LORA_OPTIONS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "layer_range")
POSITIVE = (
    "batch_size",
    "eval_batch_size",
    "lora_rank",
    "log_interval",
    "pre_seq_len",
    "lr",
    "gradient_accumulation_steps",
    "vision_cache_gb",
)
NOT_NEGATIVE = (
    "train_iters",
    "epochs",
    "warmup",
    "eval_interval",
    "save_interval",
    "eval_iters",
    "keep",
    "early_stopping",
    "max_source_length",
    "max_target_length",
    "max_pixels",
    "min_pixels",
    "weight_decay",
    "clip_grad",
    "lora_dropout",
    "adam_beta1",
    "adam_beta2",
    "augment",
    "patch_dropout",
    "label_smoothing",
)
BELOW_ONE = (
    "lora_dropout",
    "patch_dropout",
    "label_smoothing",
    "adam_beta1",
    "adam_beta2",
    "warmup",
)


def contradictions(options):
    """Yield what is wrong with the options, each as a line for the user."""
    yield from _out_of_range(options)
    if options.epochs and options.train_iters:
        yield "--epochs and --train-iters exclude each other: give one"
    if options.model_config and options.method != "full":
        yield "--model_config is a network to train from scratch, which needs --method full"
    if options.resume and options.overwrite:
        yield "--resume and --overwrite exclude each other: give one"
    if options.extend and not options.resume:
        yield "--extend needs --resume"
    if Path(options.experiment_name).name in ("", ".."):
        yield f"--experiment-name {options.experiment_name!r}: expected the name of a folder"
    if options.offload and not options.zero_stage:
        yield "--offload needs --zero-stage 1, 2 or 3"
    if options.method == "qlora" and options.zero_stage == 3:
        yield (
            "--method qlora and --zero-stage 3 exclude each other: 4-bit weights cannot be "
            "partitioned"
        )
    if not options.vision_cache:
        yield "--vision_cache is empty: name a folder, or off"
    for package in options.report:
        if importlib.util.find_spec(package) is None:
            yield f"--report {package} needs its package: pip install {package}"
    try:
        if options.layer_range and not layers(options.layer_range):
            raise ValueError
    except ValueError:
        given = " ".join(options.layer_range)
        yield f"--layer_range {given}: expected numbers (0 14) or a range (0-13)"


def _out_of_range(options):
    for name, value in vars(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"--{name} {value}: must be a finite number"
        if isinstance(value, int) and abs(value) >= 2**63:
            yield f"--{name} {value}: must be below 2**63"
    for name in POSITIVE:
        if getattr(options, name) <= 0:
            yield f"--{name} {getattr(options, name)}: must be above 0"
    for name in NOT_NEGATIVE:
        if getattr(options, name) < 0:
            yield f"--{name} {getattr(options, name)}: must not be below 0"
    for name in BELOW_ONE:
        if getattr(options, name) >= 1:
            yield f"--{name} {getattr(options, name)}: must be below 1"
    if options.max_target_length in (1, 2):
        yield (
            f"--max_target_length {options.max_target_length}: must be at least 3 (two tokens "
            "frame the answer), or 0 for no limit"
        )
    if options.augment > 1:
        yield f"--augment {options.augment}: a share of each side, at most 1"


def without_effect(options):
    """Names of options that were chosen but have no effect with this method."""
    methods = dict.fromkeys(LORA_OPTIONS, ("lora", "qlora")) | {"pre_seq_len": ("ptuning",)}
    chosen = {field.name: field.default for field in dataclasses.fields(Options)}
    chosen["lora_targets"] = Options().lora_targets
    return [
        name
        for name, users in methods.items()
        if options.method not in users and getattr(options, name) != chosen[name]
    ]


def like_adapter(options, method, source):
    """The options with an adapter's method, which a run that starts from it trains on.

    method: of its card; source: named in the message of UserError, which lists what was asked for
    and is another.
    """
    own = dict(ADAPTER_OPTIONS.get(method["name"], {}))
    default = Options()
    if "peft" in method:
        _leave_to_peft(options, [name for name, key in own.items() if key not in method], source)
    values = {name: method[key] for name, key in own.items() if key in method}
    values["trainable"] = method.get("parts", [])
    if "layer_range" in values:
        values["layer_range"] = [str(layer) for layer in values["layer_range"]]
    is_same = options.method.removeprefix("q") == method["name"]  # qlora trains lora
    if not is_same and options.method != Options.method:
        raise UserError(
            f"adapter {source} holds {method['name']}: it cannot be trained on as --method "
            f"{options.method}; leave that out, or merge it first (export_RemoteGLM.py --format "
            "sat)"
        )
    if not is_same:
        values["method"] = method["name"]

    for name, value in values.items():
        asked = getattr(options, name)
        if name == "layer_range" and asked:
            asked = [str(layer) for layer in layers(asked)]
        if name != "method" and asked not in (getattr(default, name), value):
            raise UserError(
                f"--{name} {asked}: the adapter {source} has {value}; leave it out to train on "
                "from there"
            )
    return dataclasses.replace(options, **values)


def _leave_to_peft(options, names, source):
    """UserError for one of these options that was chosen: adapter_config.json decides them."""
    default = Options()
    for name in names:
        if getattr(options, name) != getattr(default, name):
            raise UserError(
                f"--{name}: the adapter {source} says itself where its modules are; leave it out "
                "to train on from there"
            )


def layers(words):
    """`["0", "14"]` -> [0, 14] (upstream's list form); `["0-13"]` -> [0, ..., 13]."""
    chosen = set()
    for word in words:
        first, _, last = str(word).partition("-")
        chosen.update(range(int(first), int(last or first) + 1))
    return sorted(chosen)


def from_saved(saved, parts):
    """The Options of a saved run, also of a version that named or had fewer of them.

    saved: field names -> values, as a run stores them; parts: those of the network's family.
    """
    values = dict(saved)
    if "mode" in values:
        values |= _since_method(values, parts)
    known = {field.name for field in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in values.items() if name in known})


def _since_method(values, parts):
    """--mode, --use_..., --train, --freeze, --fp16, --bf16 -> --method, --trainable, --dtype."""
    method = "lora"
    if values["mode"] == "pretrain":
        method = "full"
    elif values.get("use_ptuning"):
        method = "ptuning"
    elif values.get("use_qlora"):
        method = "qlora"

    trainable = values.get("train") or []
    frozen = values.get("freeze") or []
    if frozen:
        trainable = [part for part in parts if part not in frozen]

    dtype = ""
    if values.get("bf16"):
        dtype = "bfloat16"
    elif values.get("fp16"):
        dtype = "float16"
    return {"method": method, "trainable": trainable, "dtype": dtype}
