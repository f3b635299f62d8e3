"""Make the bundled tiny base from nothing: the same architecture as VisualGLM-6B, small numbers.

    python model/tiny/make.py

Draws pictures that are not aerial scenes and writes texts about them (data/tiny_pictures.py), trains a small vocabulary,
trains all parameters with finetune_RemoteGLM.py, and stores the result in half precision beside this file.
"""
import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
sys.path.insert(0, str(PROJECT))

from model import checkpoint  # noqa: E402
from model.tokenizer import FILE_NAME, train_vocabulary  # noqa: E402

CONTROL_TOKENS = 8  # ids kept free above the pieces: [MASK], [gMASK], <sop>, <eop> and room


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=PROJECT / "data" / "tiny", help="folder of pictures, rows and runs")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the finished base")
    parser.add_argument("--pictures", type=int, default=12000, help="pictures to draw")
    parser.add_argument("--seed", type=int, default=1234, help="of pictures, texts and weights")
    args, training = parser.parse_known_args(argv)

    subprocess.run([sys.executable, PROJECT / "data" / "tiny_pictures.py", "--output", args.work,
                    "--pictures", str(args.pictures), "--seed", str(args.seed)], check=True)
    config = checkpoint.read_config(HERE / checkpoint.CONFIG)
    texts = (args.work / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    train_vocabulary(texts, args.work / FILE_NAME, config["vocab_size"] - CONTROL_TOKENS)

    import finetune_RemoteGLM
    folder = finetune_RemoteGLM.main([
        "--mode", "pretrain", "--model_config", str(HERE / checkpoint.CONFIG), "--tokenizer", str(args.work / FILE_NAME),
        "--train-data", str(args.work / "base-train.json"), "--save", str(args.work), "--experiment-name", "base",
        "--batch-size", "16", "--lr", "1e-3", "--clip-grad", "1", "--warmup", "0.03", "--epochs", "2",
        "--eval-iters", "20", "--eval-batch-size", "32", "--seed", str(args.seed), *training])

    network, tokenizer, card = checkpoint.load(folder, device="cpu", dtype="float16")
    checkpoint.write_folder(args.output / "base", config=config, tokenizer=tokenizer, tensors=network.state_dict(),
                            card={key: card[key] for key in ("format", "method", "base", "prompt", "english", "step")})
    print(f"{args.output / 'base'}: {sum(p.numel() for p in network.parameters()):,} parameters in half precision")


if __name__ == "__main__":
    main()
