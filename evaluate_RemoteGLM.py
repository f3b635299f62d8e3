"""Answer every row of a file with a checkpoint and measure: how often is the scene named rightly?

    python evaluate_RemoteGLM.py --from_pretrained checkpoints/demo --data data/demo/demo-prompt-test.json --base

Answers are greedy, kept in predictions.jsonl as they come (a second run goes on from there), measures in metrics.json.
"""
import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from cli_demo import add_loading_options, loading

PROJECT = Path(__file__).resolve().parent
LEXICON = PROJECT / "data" / "lexicon.json"


def first_scene(text, scenes):
    """The scene a Chinese text names first; where two begin together the longer word wins. None if it names none."""
    found = [(text.index(word), -len(word), scene) for scene, words in scenes.items() for word in words["zh"] if word in text]
    return min(found)[2] if found else None


def read_answers(path, checkpoint):
    """Answers this checkpoint gave in an earlier run, (img, prompt, system) -> answer; a line torn by a crash is left out."""
    answers = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry["checkpoint"] == checkpoint:
                answers[entry["img"], entry["prompt"], entry["system"]] = entry["answer"]
    return answers


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_loading_options(parser, required=True)
    add("--data", required=True, help="rows to answer: what data/generate_prompt.py writes")
    add("--image-root", default="", help="folder of relative images; default: beside the rows, then the project root")
    add("--output", type=Path, help="folder of predictions.jsonl and metrics.json; default: <checkpoint>/eval-<rows>")
    add("--base", action="store_true", help="measure the untuned base as well")
    add("--batch-size", type=int, default=16, help="rows answered together (%(default)s)")
    add("--max_new_tokens", type=int, default=128, help="length limit of an answer, in tokens (%(default)s)")
    add("--limit", type=int, default=0, help="only the first rows; 0: all")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.max_new_tokens < 1:
        parser.error("--batch-size and --max_new_tokens must be at least 1")
    return args


def evaluate(args):
    from model import Sampling, UserError, load_assistant, read_image
    from model.find import find_checkpoint
    from model.rows import check_images, load_rows

    samples = [s for s in load_rows(args.data, args.image_root) if not s.history][:args.limit or None]
    check_images(samples, args.data)
    scenes = json.loads(LEXICON.read_text(encoding="utf-8"))["scenes"]
    folder = find_checkpoint(args.from_pretrained, args.download)
    assistant = load_assistant(folder, **loading(args))
    output = args.output or folder / f"eval-{Path(args.data).stem}"
    predictions = output / "predictions.jsonl"
    try:
        output.mkdir(parents=True, exist_ok=True)
        answers = read_answers(predictions, str(folder))
        journal = open(predictions, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror}") from None

    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=args.max_new_tokens)
    systems = (["base"] if args.base else []) + ["tuned"]

    def answer(system):
        left = [s for s in samples if (str(s.image), s.question, system) not in answers]
        for start in tqdm(range(0, len(left), args.batch_size), desc=system, unit="batch", disable=not left):
            batch = left[start:start + args.batch_size]
            images = [read_image(s.image) if s.image else None for s in batch]
            for s, text in zip(batch, assistant.answer_batch([s.question for s in batch], images, sampling)):
                answers[str(s.image), s.question, system] = text
                entry = {"img": str(s.image), "prompt": s.question, "system": system, "answer": text, "label": s.answer,
                         "checkpoint": str(folder)}
                journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
            journal.flush()

    with journal:
        if args.base:
            with assistant.untuned():
                answer("base")
        answer("tuned")

    named = [s for s in samples if first_scene(s.answer, scenes)]
    metrics = {"data": str(args.data), "checkpoint": str(folder), "rows": len(samples), "rows_with_scene": len(named)}
    for system in systems:
        texts = [answers[str(s.image), s.question, system] for s in samples]
        right = sum(first_scene(answers[str(s.image), s.question, system], scenes) == first_scene(s.answer, scenes) for s in named)
        metrics[system] = {"scene_accuracy": right / len(named) if named else None,
                           "distinct_answers": len(set(texts)) / len(texts)}
        print(f"{system:>5}: scene named rightly in {right} of {len(named)} rows"
              + (f" ({right / len(named):.1%})" if named else "") + f", {len(set(texts))} distinct answers")
    example = max(samples, key=lambda s: answers[str(s.image), s.question, "tuned"] != answers.get((str(s.image), s.question, "base")))
    print(f"example {example.image}\n  label: {example.answer}")
    for system in systems:
        print(f"  {system}: {answers[str(example.image), example.question, system]}")
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False), encoding="utf-8")
    print(f"answers and measures: {output}")
    return metrics


def main(argv=None):
    args = parse(argv)
    from model import UserError
    try:
        return evaluate(args)
    except UserError as error:
        sys.exit(f"evaluate_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
