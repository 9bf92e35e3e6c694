"""`audiotag.corpus.child` in which opening a file may end the process, hang, or take all memory, as its name says."""

import builtins
import os
import signal
import time

from audiotag.audio import libsndfile


def hostile_open(file, *args, **kwargs):
    name = os.fspath(file) if not isinstance(file, int) else ""
    if "segfault" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in name:
        time.sleep(1000)
    if "memory" in name:
        held = []
        while True:
            held.append(bytes(1 << 26).replace(b"\0", b"\1"))
    if "once" in name and not os.path.exists(name + ".seen"):
        builtins.open(name + ".seen", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return builtins.open(file, *args, **kwargs)


libsndfile.open = hostile_open

if __name__ == "__main__":
    from audiotag.corpus.child import main

    main()
