"""Talk about an aerial image in the terminal.

    python cli_demo.py --from_pretrained checkpoints/demo                                   # a dialogue
    python cli_demo.py --from_pretrained checkpoints/demo --image a.tif --prompt 这是哪里？   # one answer
"""
import argparse
import json
import sys

WORDS = {  # what a person sees, by --english
    False: {"image": "请输入图像路径（回车进入纯文本对话，stop 退出）：", "user": "用户：", "model": "RemoteGLM：", "base": "微调前：",
            "hint": "clear 换一张图像，stop 退出。", "error": "错误："},
    True: {"image": "Path of an image (empty: plain text, stop: leave): ", "user": "You: ", "model": "RemoteGLM: ",
           "base": "Before fine-tuning: ", "hint": "clear: another image, stop: leave.", "error": "error: "},
}


def add_loading_options(parser, whole=False, **from_pretrained):
    """The options by which every script finds and loads a checkpoint; `loading` hands them on. whole: as it is on disk."""
    add = parser.add_argument_group("checkpoint").add_argument
    add("--from_pretrained", help="checkpoint: a folder (an adapter, a full checkpoint, a base in SAT's or Hugging Face's layout) "
        "or a name such as visualglm-6b, looked up in SAT_HOME and the Hugging Face and ModelScope caches", **from_pretrained)
    add("--base_path", help="the adapter's base, if it is no longer where it was in training")
    add("--tokenizer", help="vocabulary file; default: ice_text.model in the checkpoint folder, then in those caches")
    add("--download", nargs="?", const="huggingface", choices=("huggingface", "modelscope"),
        help="fetch a checkpoint that is not found (default source: huggingface, or the mirror HF_ENDPOINT names)")
    if whole:
        return
    add("--quant", type=int, choices=(8, 4), help="weights in 8 or 4 bits: less memory; default: as they are")
    add("--device", help="cuda, mps or cpu; default: the first that works")
    add("--dtype", choices=("float32", "float16", "bfloat16"),
        help="default: float16 on a GPU; on a CPU float32, or bfloat16 with --quant and for large networks")


def loading(args):
    return {"base": args.base_path, "tokenizer": args.tokenizer, "bits": args.quant, "download": args.download,
            "device": args.device, "dtype": args.dtype}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_loading_options(parser, default="checkpoints/RemoteGLM")
    add("--base", action="store_true", help="show the answer of the untuned base as well")
    add("--image", help="with --prompt: one question about this image, then leave")
    add("--prompt", help="one question, then leave; default with --image: the one the checkpoint was trained on")
    add("--prompt_zh", help="first question of a dialogue; default: the one the checkpoint was trained on")
    add("--prompt_en", default="Describe the image.", help="the same with --english (%(default)s)")
    add("--english", action="store_true", help="ask and answer in English")
    add("--json", action="store_true", help="print a one-shot answer as one JSON object")
    add("--max_length", type=int, default=2048, help="prompt and answer together, in tokens (%(default)s)")
    add("--top_p", type=float, default=0.4, help="nucleus sampling, 0 to 1; 0: greedy (%(default)s)")
    add("--top_k", type=int, default=100, help="choose among this many tokens; 1: greedy, 0: all (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0: greedy (%(default)s)")
    add("--repetition_penalty", type=float, default=1.2, help="1: none (%(default)s)")
    add("--seed", type=int, help="makes sampled answers repeatable")
    args = parser.parse_args(argv)
    for name, low, high in (("max_length", 2, None), ("top_p", 0, 1), ("top_k", 0, None), ("temperature", 0, None)):
        value = getattr(args, name)
        if value < low or high is not None and value > high:
            parser.error(f"--{name} {value}: must be at least {low}" + (f" and at most {high}" if high else ""))
    if args.repetition_penalty <= 0:
        parser.error(f"--repetition_penalty {args.repetition_penalty}: must be above 0")
    if args.json and not (args.image or args.prompt):
        parser.error("--json needs --image or --prompt")
    return args


def main(argv=None):
    args = parse(argv)
    # Imported here: --help and wrong options answer at once, without loading torch.
    from model import Sampling, UserError, load_assistant, read_image

    words = WORDS[args.english]
    sampling = Sampling(max_length=args.max_length, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k,
                        repetition_penalty=args.repetition_penalty, seed=args.seed)

    def say(name, pieces):
        """Print an answer as it comes; return it whole."""
        print(words[name], end="", flush=True)
        answer = ""
        for piece in pieces:
            print(piece, end="", flush=True)
            answer += piece
        print()
        return answer

    def both(question, image, history=()):
        """The checkpoint's answer, after the untuned base's where that was asked for."""
        if args.base:
            with assistant.untuned():
                say("base", assistant.stream(question, image, history, sampling, args.english))
        return say("model", assistant.stream(question, image, history, sampling, args.english))

    try:
        image = read_image(args.image) if args.image else None
        assistant = load_assistant(args.from_pretrained, **loading(args))
        first = args.prompt_en if args.english else args.prompt_zh or assistant.prompt
        if not (args.image or args.prompt):
            return converse(both, first, words, read_image, UserError)
        question = args.prompt or first
        if not args.json:
            both(question, image)
            return
        result = {"image": args.image, "prompt": question}
        if args.base:
            with assistant.untuned():
                result["base_answer"] = "".join(assistant.stream(question, image, (), sampling, args.english))
        result["answer"] = "".join(assistant.stream(question, image, (), sampling, args.english))
        print(json.dumps(result, ensure_ascii=False))
    except UserError as error:
        sys.exit(f"cli_demo.py: error: {error}")


def converse(ask, first, words, read_image, UserError):
    """Image after image, question after question, until `stop` or Ctrl-D."""
    try:
        import readline  # noqa: F401  (line editing and history of input(); Windows has none)
    except ImportError:
        pass
    try:
        while (path := input(words["image"]).strip().strip("'\"")) != "stop":
            try:
                image = read_image(path) if path else None
            except UserError as error:
                print(words["error"] + str(error))
                continue
            print(words["hint"])
            history, question = [], first
            if image is None:
                question = input(words["user"]).strip()
            else:
                print(words["user"] + question)
            while question not in ("clear", "stop"):
                if question:
                    try:
                        history.append((question, ask(question, image, history)))
                    except KeyboardInterrupt:
                        print()
                question = input(words["user"]).strip()
            if question == "stop":
                return
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    main()
