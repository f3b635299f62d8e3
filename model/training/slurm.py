"""The processes of a SLURM step (`srun python ...`) in the variables that torchrun would set.

Source: the output environment variables of srun's manual page.
"""

import re

PORTS = range(20000, 50000)  # one of them by the job's number, so that jobs do not meet


def ranks(environment):
    """Variables of torch.distributed for this task, {} outside a step of several tasks.

    environment: os.environ, whose RANK (a launcher set it) wins.
    """
    get = environment.get
    tasks = int(get("SLURM_STEP_NUM_TASKS", 0))
    # A script of sbatch without srun is one process, however many tasks its job may start
    if not tasks and get("ENVIRONMENT") != "BATCH":
        tasks = int(get("SLURM_NTASKS", 1))
    if tasks < 2 or "RANK" in environment or "SLURM_PROCID" not in environment:
        return {}
    nodes = int(get("SLURM_STEP_NUM_NODES") or get("SLURM_NNODES") or 1)
    here = get("SLURM_GTIDS", "").count(",") + 1  # tasks of this node, by their numbers
    address = "127.0.0.1"
    if nodes > 1:
        address = first_host(get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": tasks if nodes == 1 else here,
        "MASTER_ADDR": address,
        "MASTER_PORT": PORTS[int(get("SLURM_JOB_ID", "0")) % len(PORTS)],
    }


def first_host(nodes):
    """Of a list as SLURM writes it: "gpu[03-05,9],login" -> "gpu03"."""
    name, number, rest = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodes).groups()
    return name + (number or "") + rest
