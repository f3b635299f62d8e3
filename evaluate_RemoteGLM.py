"""Answer every row of a file with a checkpoint and measure: how often is the scene named rightly?

    python evaluate_RemoteGLM.py --from_pretrained checkpoints/demo --data data/demo/demo-prompt-test.json --base

Answers are greedy, kept in predictions.jsonl as they come (a second run goes on from there), measures in metrics.json.
"""
import argparse
import json
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cli_demo import add_bands_option, add_loading_options, compares, loading

PROJECT = Path(__file__).resolve().parent
LEXICON = PROJECT / "data" / "lexicon.json"


def first_scene(text, scenes):
    """The scene a Chinese text names first; where two begin together the longer word wins. None if it names none."""
    found = [(text.index(word), -len(word), scene) for scene, words in scenes.items() for word in words["zh"] if word in text]
    return min(found)[2] if found else None


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_loading_options(parser, required=True)
    add("--data", required=True, help="rows to answer: what data/generate_prompt.py writes")
    add("--image-root", default="", help="folder of relative images; default: beside the rows, then the project root")
    add_bands_option(parser)
    add("--output", type=Path, help="folder of predictions.jsonl and metrics.json; default: <checkpoint>/eval-<rows>; of a "
        "base: checkpoints/eval-<base>-<rows>")
    add("--base", action="store_true", help="measure the untuned base as well")
    add("--batch-size", type=int, default=16, help="rows answered together (%(default)s)")
    add("--max_new_tokens", type=int, default=128, help="length limit of an answer, in tokens (%(default)s)")
    add("--limit", type=int, default=0, help="only the first rows; 0: all")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.max_new_tokens < 1:
        parser.error("--batch-size and --max_new_tokens must be at least 1")
    return args


def evaluate(args):
    from model import Sampling, UserError, load_assistant
    from model.batch import AnswerFile, answer_rows
    from model.find import find_checkpoint
    from model.rows import check_images, load_rows

    samples = [s for s in load_rows(args.data, args.image_root) if not s.history][:args.limit or None]
    check_images(samples, args.data, args.bands)
    scenes = json.loads(LEXICON.read_text(encoding="utf-8"))["scenes"]
    folder = find_checkpoint(args.from_pretrained, args.download)
    assistant = load_assistant(folder, **loading(args))
    rows = Path(args.data).stem
    # A base is somebody else's folder.
    output = args.output or (PROJECT / "checkpoints" / f"eval-{Path(args.from_pretrained).name}-{rows}" if assistant.is_base
                             else folder / f"eval-{rows}")
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=args.max_new_tokens)
    texts = {}  # system -> answers
    with AnswerFile(output / "predictions.jsonl") as file:
        for system in (["base"] if assistant.is_base else ["base", "tuned"] if compares(args, assistant) else ["tuned"]):
            entries = answer_rows(assistant, samples, file, checkpoint=folder, base=system == "base", sampling=sampling,
                                  bands=args.bands, batch_size=args.batch_size,
                                  progress=partial(tqdm, desc=system, unit="batch"))
            if failed := [entry["error"] for entry in entries if "error" in entry]:
                raise UserError(f"{len(failed)} of {len(samples)} rows have no answer; the first: {failed[0]}")
            texts[system] = [entry["answer"] for entry in entries]

    named = [i for i, s in enumerate(samples) if first_scene(s.answer, scenes)]
    metrics = {"data": str(args.data), "checkpoint": str(folder), "rows": len(samples), "rows_with_scene": len(named)}
    for system, said in texts.items():
        right = sum(first_scene(said[i], scenes) == first_scene(samples[i].answer, scenes) for i in named)
        metrics[system] = {"scene_accuracy": right / len(named) if named else None,
                           "distinct_answers": len(set(said)) / len(said)}
        print(f"{system:>5}: scene named rightly in {right} of {len(named)} rows"
              + (f" ({right / len(named):.1%})" if named else "") + f", {len(set(said))} distinct answers")
    example = max(range(len(samples)), key=lambda i: len({said[i] for said in texts.values()}))
    print(f"example {samples[example].image}\n  label: {samples[example].answer}")
    for system, said in texts.items():
        print(f"  {system}: {said[example]}")
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False), encoding="utf-8")
    print(f"answers and measures: {output}")
    return metrics


def main(argv=None):
    args = parse(argv)
    try:
        from model import UserError

        return evaluate(args)
    except KeyboardInterrupt:  # what is answered is kept
        sys.exit(130)
    except UserError as error:
        sys.exit(f"evaluate_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
