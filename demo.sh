#!/usr/bin/env bash
# The whole job on this machine, no GPU and no network needed after the installation: synthetic aerial scenes -> Chinese
# pairs -> LoRA on the bundled tiny base -> answers about held-out images, before and after.
set -eu
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. .ci/venv.sh
name=demo
step() { printf '\n== %s\n' "$*"; }

step "1/5 scenes and captions (data/synthetic/demo_scenes.py)"
"$python" data/synthetic/demo_scenes.py --output data/demo --train 384 --test 16
step "2/5 captions -> records -> Chinese descriptions -> questions and answers (data/)"
"$python" data/transform.py --dataset demo
"$python" data/translation_en2zh.py --dataset demo --memory data/demo/memory.jsonl
"$python" data/generate_prompt.py --dataset demo --negatives random \
    --tasks description=4 scene objects=0.5 existence counting=0.5
step "3/5 LoRA fine-tuning (finetune_RemoteGLM.sh)"
bash finetune_RemoteGLM.sh --dataset demo --from_pretrained model/tiny/base --experiment-name $name --resume \
    --lora_rank 16 --lora_alpha 64 --lora_targets attention mlp --trainable projection \
    --lr 2e-3 --clip-grad 1 --batch-size 16 --train-iters 2800 --eval-interval 1400 --eval-batch-size 32
step "4/5 does it describe, invent, look? before and after, on held-out test images (evaluate_RemoteGLM.py)"
"$python" evaluate_RemoteGLM.py --from_pretrained checkpoints/$name --data data/demo/demo-prompt-test.json --base \
    --references data/demo/dataset.json
step "5/5 the first held-out image, before and after (cli_demo.py)"
image=data/demo/images/farmland_test_000.tif
echo "$image"
"$python" cli_demo.py --from_pretrained checkpoints/$name --image $image --base --temperature 0

step "what to try next"
[ "$from" = "$PWD" ] || echo "cd $PWD"
cat <<EOF
.venv/bin/python cli_demo.py --from_pretrained checkpoints/$name        # talk in the terminal
.venv/bin/python web_demo.py --from_pretrained checkpoints/$name        # talk in the browser
bash test.sh                                                      # test everything on this machine
bash finetune_RemoteGLM.sh --help                                 # your own data and VisualGLM-6B: see README.md
EOF
