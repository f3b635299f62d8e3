#!/usr/bin/env bash
# Start finetune_RemoteGLM.py on what this machine has. Every option goes through: bash finetune_RemoteGLM.sh --help
#   one process           bash finetune_RemoteGLM.sh --dataset UCM --from_pretrained visualglm-6b
#   some GPUs             NUM_GPUS=2 bash finetune_RemoteGLM.sh ...   or   CUDA_VISIBLE_DEVICES=0,3 bash ...
#   several nodes         HOSTFILE=hosts bash finetune_RemoteGLM.sh ...        (DeepSpeed's hostfile)
#   SLURM                 srun --ntasks-per-node=4 --gpus-per-node=4 bash finetune_RemoteGLM.sh ...
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$here/.venv/bin/python" ] && PATH=$here/.venv/bin:$PATH
export PATH
script=$here/finetune_RemoteGLM.py

if [ -n "${HOSTFILE:-}" ]; then
    grep -qs '^[^# ][^ ]* *slots=[0-9]' "$HOSTFILE" || {
        echo "finetune_RemoteGLM.sh: error: HOSTFILE=$HOSTFILE: no file with lines like 'node1 slots=4'" >&2; exit 1; }
    exec deepspeed --hostfile "$HOSTFILE" ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} "$script" "$@"
fi
# Under srun every task is a process of the run already
[ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ] && exec python "$script" "$@"
gpus=${NUM_GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
case $gpus in *[!0-9]*) echo "finetune_RemoteGLM.sh: error: NUM_GPUS=$gpus: expected a number" >&2; exit 1 ;; esac
if [ "$gpus" -gt 1 ]; then
    exec python -P "$here/model/training/launch.py" --standalone --nproc_per_node "$gpus" "$script" "$@"
fi
exec python "$script" "$@"
