"""Write a checkpoint in another form.

Merged for SwissArmyTransformer or Hugging Face, as a PEFT adapter, or quantized:

    python export_RemoteGLM.py --from_pretrained checkpoints/RemoteGLM --format hf \\
        --output checkpoints/merged-hf
    python export_RemoteGLM.py --from_pretrained visualglm-6b --format int4 \\
        --output checkpoints/visualglm-6b-int4
"""

import sys
from pathlib import Path

from command_line import Parser, add_loading_options, ctrl_c_ends_at_once, loading
from model.errors import UserError

FORMATS = {
    "sat": "LoRA merged into the weights, as SwissArmyTransformer stores a model",
    "hf": "LoRA merged into the weights, as Hugging Face stores a model (VisualGLM as "
    "THUDM/visualglm-6b, other bases as they came), in safetensors",
    "peft": "LoRA alone, as the peft library stores an adapter; it goes over what --format hf "
    "makes of the base",
    "int8": "merged, weights of the language model in 8 bits: loads without ever needing the full "
    "weights",
    "int4": "merged, weights of the language model in 4 bits: loads without ever needing the full "
    "weights",
}


def parse(argv=None):
    parser = Parser(__doc__)
    add_loading_options(parser, whole=True, required=True)
    add = parser.add_argument
    add(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()),
    )
    add("--output", required=True, type=Path, help="folder to write; it must not exist")
    # As it is on disk, changed only by the format
    parser.set_defaults(dtype="stored", device="cpu", quant=None, max_pixels=None, min_pixels=None)

    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"--output {args.output} exists: name a new folder, or remove this one first")
    return args


def export(args):
    """Write the folder -> what the user should know of it. Raises UserError."""
    with ctrl_c_ends_at_once():
        from model.opening import export_checkpoint

    return export_checkpoint(args.from_pretrained, args.format, args.output, **loading(args))


def report(args, remarks):
    """Print what was written, its size, and the remarks."""
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.1f} MB, {FORMATS[args.format]}")
    for remark in remarks:
        print(remark)


def main(argv=None):
    args = parse(argv)
    try:
        remarks = export(args)
    except UserError as error:
        sys.exit(f"export_RemoteGLM.py: error: {error}")
    report(args, remarks)


if __name__ == "__main__":
    main()
