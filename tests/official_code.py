"""Runs VisualGLM-6B's official code over what tests/test_official.py has exported.

Under the Python of another environment: official_code.py <folder of the exports> <where to write>
"""

import json
import sys
from pathlib import Path

import torch

# The torchvision of the package index has the kernels of CUDA's torch; here only its transforms
# are used, and its import needs no more than these names
library = torch.library.Library("torchvision", "DEF")
for kernel in ("nms", "qnms"):
    library.define(f"{kernel}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402


@torch.no_grad()
def logits_and_answer(model, config, ids, pixels, limit=30):
    """Logits of the prompt [T, V], and the greedy answer until it ends by itself."""
    given = {"images": pixels, "pre_image_length": ids.index(3), "use_cache": False}
    logits = model(torch.tensor([ids]), **given).logits[0]
    answer, last = [], logits[-1]
    while len(answer) < limit and last.argmax().item() != config.eos_token_id:
        answer.append(last.argmax().item())
        last = model(torch.tensor([ids + answer]), **given).logits[0, -1]
    return logits, answer


def main(work, output):
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(work / "hf", trust_remote_code=True).float().eval()
    config = model.config
    ids = json.loads((work / "ids.json").read_text())
    pixels = load_file(work / "pixels.safetensors")["pixels"]

    logits, answers = {}, {}
    logits["base"], answers["base"] = logits_and_answer(model, config, ids, pixels)
    if transformers.__version__ == "4.33.3":
        tokenizer = AutoTokenizer.from_pretrained(work / "hf", trust_remote_code=True)
        answers["text"], _ = model.chat(
            tokenizer,
            str(work / "image.png"),
            "图中有什么？",
            history=[],
            do_sample=False,
            repetition_penalty=1.0,
            min_length=0,
        )
    tuned = PeftModel.from_pretrained(model, str(work / "peft")).eval()
    logits["adapter"], answers["adapter"] = logits_and_answer(tuned, config, ids, pixels)
    save_file(logits, output / "logits.safetensors")
    (output / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
