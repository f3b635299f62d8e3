"""Write a checkpoint in another form: merged for SwissArmyTransformer or Hugging Face, as a PEFT adapter, or quantized.

python export_RemoteGLM.py --from_pretrained checkpoints/RemoteGLM --format hf --output checkpoints/merged-hf
python export_RemoteGLM.py --from_pretrained visualglm-6b --format int4 --output checkpoints/visualglm-6b-int4
"""

import sys
from pathlib import Path

from cli_demo import Parser, add_loading_options, loading

FORMATS = {
    "sat": "LoRA merged into the weights, as SwissArmyTransformer stores a model",
    "hf": "LoRA merged into the weights, as THUDM/visualglm-6b on Hugging Face stores them, in safetensors",
    "peft": "LoRA alone, as the peft library stores an adapter; it goes over what --format hf makes of the base",
    "int8": "merged, weights of the language model in 8 bits: loads without ever needing the full weights",
    "int4": "merged, weights of the language model in 4 bits: loads without ever needing the full weights",
}


def parse(argv=None):
    parser = Parser(__doc__)
    add_loading_options(parser, whole=True, required=True)
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()),
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="folder to write; it must not exist"
    )
    parser.set_defaults(
        dtype="stored", device="cpu", quant=None
    )  # as it is on disk, changed only by the format
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"--output {args.output} exists: name a new folder, or remove this one first")
    return args


def export(args):
    from model.visualglm import export
    from model.visualglm import loading as checkpoint

    options = loading(args)
    if args.format.startswith("int"):
        export.to_quantized(
            args.output, args.from_pretrained, **options | {"bits": int(args.format[3:])}
        )
    else:
        network, tokenizer, card = checkpoint.load(args.from_pretrained, **options)
        if args.format == "peft":
            export.to_peft(
                args.output, network, args.base_path or (card.get("base") or {}).get("path")
            )
        else:
            write = export.to_sat if args.format == "sat" else export.to_huggingface
            write(args.output, network, tokenizer, card)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.1f} MB, {FORMATS[args.format]}")


def main(argv=None):
    args = parse(argv)
    from model import UserError

    try:
        export(args)
    except UserError as error:
        sys.exit(f"export_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
