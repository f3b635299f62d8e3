"""How a training is started: the shell script, SLURM, and options that make no sense."""

import json
import os
import random
import re
import shutil
import subprocess

import pytest
from conftest import PROJECT
from train_runs import ENVIRONMENT, command, run

import finetune_RemoteGLM as finetune
from model.training import slurm
from model.training.options import layers


def test_shell_script(pretrained, rows, tmp_path):
    """finetune_RemoteGLM.sh from another directory, two processes by NUM_GPUS, dialogues and rows
    without a picture.
    """
    talk = [
        {
            "img": str(rows / "images/0.tif"),
            "conversations": [
                {"role": "user", "content": "有什么？"},
                {"role": "assistant", "content": "屋顶。"},
                {"role": "user", "content": "什么颜色？"},
                {"role": "assistant", "content": "红色。"},
            ],
        },
        {"prompt": "你好", "label": "是"},
    ]
    (tmp_path / "talk.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in talk), encoding="utf-8"
    )
    result = subprocess.run(
        [
            "bash",
            PROJECT / "finetune_RemoteGLM.sh",
            "--from_pretrained",
            pretrained[0],
            "--train-data",
            "talk.jsonl",
            "--save",
            tmp_path,
            "--train-iters",
            "2",
            "--batch-size",
            "2",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"NUM_GPUS": "2"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (
        "3 rows, 0 validation rows, 1 images" in result.stdout and "2 process(es)" in result.stdout
    )


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a-[12,14].lab.cn,b1", "a-12.lab.cn"),
        ("n1,n[2-3]", "n1"),
    ],
)
def test_ranks_of_a_slurm_step(nodes, host):
    """The second of two nodes with two tasks each."""
    step = {
        "SLURM_JOB_ID": "123456",
        "SLURM_NTASKS": "8",  # of the job; the step may have fewer
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_GTIDS": "2,3",
    }
    found = slurm.ranks(step)
    assert 20000 <= found.pop("MASTER_PORT") < 50000
    assert found == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": 4,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": host,
    }
    assert slurm.ranks(step | {"RANK": "0"}) == {}  # torchrun under srun
    assert slurm.ranks(step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert slurm.ranks({}) == {}
    script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}
    assert slurm.ranks(script) == {}  # sbatch without srun
    assert slurm.ranks(script | {"SLURM_STEP_NUM_TASKS": "8"})["WORLD_SIZE"] == 8


def test_tasks_of_srun_train_together(pretrained, rows, tmp_path):
    """`srun -n 2 bash finetune_RemoteGLM.sh`, whose tasks only differ in their number."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(random.randrange(30000))}
    arguments = command(
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--save",
        tmp_path,
        "--train-iters",
        2,
    )
    tasks = []
    for task in ("0", "1"):
        environment = ENVIRONMENT | step | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        arguments[:2] = ["bash", str(PROJECT / "finetune_RemoteGLM.sh")]
        tasks.append(subprocess.Popen(arguments, env=environment, text=True, stdout=-1, stderr=-1))
    outputs = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "2 process(es)" in outputs[0][0] and "task 0 of 2 of a SLURM step" in outputs[0][0]
    assert "process(es)" not in outputs[1][0]


@pytest.mark.parametrize(
    "options, words",
    [
        ("--model-parallel-size 2", "--model-parallel-size 2: only 1"),
        ("--epochs 1 --train-iters 5", "exclude each other"),
        (
            "--fp16 --bf16 --lr 0",
            "--dtype float16 and bfloat16 exclude each other.*--lr 0.0: must be above 0",
        ),
        ("--use_lora --use_ptuning", "exclude each other"),
        ("--use_qlora --use_ptuning", "exclude each other"),
        ("--mode pretrain --use_qlora", "--method qlora and full exclude each other"),
        ("--model_config a.json", "needs --method full"),
        ("--layer_range all", "--layer_range all: expected numbers"),
        ("--method full --use_lora", "--method full and lora exclude each other"),
        ("--dtype float32 --bf16", "--dtype float32 and bfloat16 exclude each other"),
        ("--resume --overwrite", "--resume and --overwrite exclude each other"),
        ("--offload", "--offload needs --zero-stage"),
        ("--use_qlora --zero-stage 3", "4-bit weights cannot be partitioned"),
        ("--gradient-accumulation-steps 0", "must be above 0"),
        (
            "--train-iters -3 --lora_dropout 2 --warmup 7",
            "--train_iters -3: must not be below 0; --lora_dropout 2.0: must be below 1; "
            "--warmup 7.0",
        ),
        ("--layer_range 3-0", "--layer_range 3-0: expected numbers"),
        (
            "--augment 1.5 --patch_dropout 1",
            "--patch_dropout 1.0: must be below 1; --augment 1.5: a share of each side",
        ),
        ("--label_smoothing 1", "--label_smoothing 1.0: must be below 1"),
        ("--max_target_length 1", "--max_target_length 1: must be at least 3"),
        (
            "--augment nan --lr inf",
            "--augment nan: must be a finite number; --lr inf: must be a finite number",
        ),
        ("--report tensorboard", "--report tensorboard needs its package: pip install tensorboard"),
    ],
)
def test_contradictions(capsys, options, words):
    with pytest.raises(SystemExit):
        finetune.parse(options.split())
    assert re.search(words, capsys.readouterr().err)


def test_layer_range_forms():
    assert layers(["0", "14"]) == [0, 14] and layers(["0-3", "9"]) == [
        0,
        1,
        2,
        3,
        9,
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--train-data", "nowhere.json"], "rows nowhere.json: no such file"),
        (["--from_pretrained", "nowhere"], "checkpoint nowhere: no such folder"),
        (["--save", "/proc/x"], "checkpoint folder /proc/x/RemoteGLM cannot be written"),
        (["--layer_range", "5"], r"layer_range names layers \[5\]"),
        (
            [
                "--from_pretrained",
                PROJECT / "tests/fixtures/visualglm-sat-lora",
                "--tokenizer",
                "VOCABULARY",
            ],
            "is no base to train on: it holds lora; merge",
        ),
        (["--trainable", "tower"], "--trainable tower: expected language, embeddings, head, vis"),
        (["--vision_cache", "/proc/x"], "feature cache /proc/x cannot be written.*--vision_cache"),
    ],
    ids=["rows", "base", "save", "layers", "lora", "trainable", "cache"],
)
def test_user_errors_are_one_line(pretrained, rows, vocabulary, tmp_path, options, words):
    options = [{"VOCABULARY": vocabulary}.get(word, word) for word in options]
    result = run(
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--save",
        tmp_path,
        *options,
    )
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert result.returncode == 1 and len(lines) == 1 and re.search(words, lines[0]), result.stderr


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"NUM_GPUS": "1"}, "python {script} --lr 1"),
        ({"NUM_GPUS": ""}, "python {script} --lr 1"),  # as many as there are: the stand-in says 0
        ({"NUM_GPUS": "2"}, "python -P {launch} --standalone --nproc_per_node 2 {script} --lr 1"),
        ({"HOSTFILE": "hosts"}, "deepspeed --hostfile hosts {script} --lr 1"),
        (
            {"HOSTFILE": "hosts", "NUM_GPUS": "4"},
            "deepspeed --hostfile hosts --num_gpus 4 {script} --lr 1",
        ),
        ({"NUM_GPUS": "two"}, "finetune_RemoteGLM.sh: error: NUM_GPUS=two: expected a number"),
        (
            {"HOSTFILE": "nowhere"},
            "finetune_RemoteGLM.sh: error: HOSTFILE=nowhere: no file with lines like "
            "'node1 slots=4'",
        ),
    ],
)
def test_the_launch_script(tmp_path, environment, expected):
    """What finetune_RemoteGLM.sh starts, by stand-ins for the launchers that print their command
    lines.
    """
    script = shutil.copy(PROJECT / "finetune_RemoteGLM.sh", tmp_path)
    (tmp_path / "hosts").write_text("# machines\nnode1 slots=4\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "torchrun", "deepspeed"):
        stand_in = tmp_path / ".venv/bin" / name
        stand_in.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo 0 || echo {name} "$@"\n')
        stand_in.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if key not in ("NUM_GPUS", "HOSTFILE")}
    result = subprocess.run(
        ["bash", script, "--lr", "1"],
        cwd=tmp_path,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    error = "error" in expected
    assert (result.stderr if error else result.stdout).strip() == expected.format(
        script=tmp_path / "finetune_RemoteGLM.py",
        launch=tmp_path / "model/training/launch.py",
    )
    assert result.returncode == error
