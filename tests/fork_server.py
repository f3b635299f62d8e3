"""Processes of the scripts that start at once: `run` and `Popen` as in subprocess.

Importing torch, DeepSpeed and transformers takes seconds. Here a process is forked from a server
that has imported them, and is one of its own all the same: arguments, environment, signals, exit
status. What a test says of the start itself (which modules are loaded, what the interpreter reads
of its environment, the launchers) needs subprocess.
"""

import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parent.parent
IMPORTED = ("finetune_RemoteGLM", "model.visualglm.family", "model.hf.family", "matplotlib.figure")
LONGEST = 200_000  # bytes of a request


class Popen:
    """[python, script, *arguments] or [python, "-c", code, *arguments]; what it prints is kept.

    before: called in the new process ahead of the script.
    """

    def __init__(self, command, env=None, cwd=None, start_new_session=False, before=None):
        python, *words = map(str, command)
        assert python == sys.executable
        self.returncode = None
        env = _environment(os.environ if env is None else env)
        self._encoding = env.get("PYTHONIOENCODING", "utf-8")
        self._printed = [tempfile.NamedTemporaryFile() for _ in range(2)]
        request = {
            "words": words,
            "printed": [file.name for file in self._printed],
            "env": env,
            "cwd": str(cwd or os.getcwd()),
            "start_new_session": start_new_session,
            "before": before,
        }
        report, its_end = os.pipe()
        socket.send_fds(_server(), [pickle.dumps(request)], [its_end])
        os.close(its_end)
        self._report = open(report, "rb", buffering=0)
        self.pid = int(self._report.readline())

    def poll(self):
        return self._status(0)

    def _status(self, timeout):
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def wait(self, timeout=None):
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired("a process of the tests", timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """What it printed -> (standard output, errors)."""
        self.wait(timeout)
        return tuple(Path(file.name).read_bytes().decode(self._encoding) for file in self._printed)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def run(command, ranks=1, timeout=300, **how):
    """As subprocess.run with text captured.

    ranks: so many processes with the variables that torchrun gives them; what they print is joined,
    and the first failure is the exit status.
    """
    processes = start(command, ranks, **how)
    try:
        printed = [process.communicate(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    status = next((process.returncode for process in processes if process.returncode), 0)
    return subprocess.CompletedProcess(command, status, *map("".join, zip(*printed)))


def start(command, ranks, env=None, **how):
    """A Popen of each rank."""
    if ranks == 1:
        return [Popen(command, env, **how)]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(ranks):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank}
        own = {name: str(value) for name, value in own.items()}
        processes.append(Popen(command, (os.environ if env is None else env) | own, **how))
    return processes


def _environment(env):
    """With the threads of the server; what else an interpreter reads at its start is the same."""
    # The trainer starts itself again where the allocator is not set: see allocator.py
    env = {"GLIBC_TUNABLES": "", **env, "OMP_NUM_THREADS": "1"}
    for name in {*env, *os.environ} - {"PYTHONPATH", "PYTHONIOENCODING"}:
        same = env.get(name) == os.environ.get(name)
        assert same or not name.startswith("PYTHON"), f"{name} needs subprocess"
    return env


@cache
def _server():
    """A socket to this process's server, which ends with it."""
    ours, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its_end:
        subprocess.Popen(
            [sys.executable, __file__, str(its_end.fileno())],
            pass_fds=[its_end.fileno()],
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
        )
    return ours


# In the server


def serve(requests, path):
    """Answer requests for processes until nobody can send any; path: sys.path of a new one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, reports, *_ = socket.recv_fds(requests, LONGEST, 1)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            become_python(path, **pickle.loads(watched_request(request, *reports)))
            return
        os.close(reports[0])


def watched_request(request, report):
    """Returns in the new process; this one tells its number and waits for its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.write(report, b"%d\n" % pid)
        status = os.waitpid(pid, 0)[1]
        os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(report)
    return request


def become_python(path, words, printed, env, cwd, start_new_session, before):
    """Run words[0] as an interpreter that has just started would."""
    if start_new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    open_streams(printed, env.get("PYTHONIOENCODING", "utf-8"))
    if before:
        before()

    module = sys.modules["__main__"] = ModuleType("__main__")
    if words[0] == "-c":
        code, sys.argv = words[1], ["-c", *words[2:]]
        first, module.__file__ = "", "<string>"
    else:
        code, sys.argv = Path(words[0]).read_text(encoding="utf-8"), words
        first, module.__file__ = str(Path(words[0]).resolve().parent), words[0]
    more = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *filter(None, more), *path]
    exec(compile(code, module.__file__, "exec"), vars(module))


def open_streams(printed, encoding):
    for number, name in enumerate(printed, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    how = {"encoding": encoding, "closefd": False}
    sys.stdout = open(1, "w", **how)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", **how)


def main():
    requests = socket.socket(fileno=int(sys.argv[1]))
    path = sys.path[1:]
    sys.path.insert(0, str(PROJECT))
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # or each process would copy the pages of all objects when it collects garbage
    serve(requests, path)


if __name__ == "__main__":
    main()
